"""Codes of a few bits each, packed into words of 32."""

import numpy as np
from numpy.typing import NDArray

_Codes = NDArray[np.uint8]
_Words = NDArray[np.int32]
#: Which column each four bits of a word of AWQ hold, from the lowest on.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpacked_stream(words: _Words, bits: int, count: int) -> _Codes:
    """Return `count` codes of each row of words, which are one stream of bits, the lowest first.

    A code may begin in one word and end in the next. GPTQ and compressed-tensors pack like this.
    """
    rows, used = words.shape
    stream = words.view(np.uint32)
    if used % bits:
        stream = np.pad(stream, ((0, 0), (0, -used % bits)))
    codes = np.empty((rows, stream.shape[1] // bits * 32), np.uint8)
    mask = np.uint32(2**bits - 1)
    for index in range(32):
        word, offset = divmod(index * bits, 32)
        found = stream[:, word::bits] >> np.uint32(offset)
        if offset + bits > 32:
            found |= stream[:, word + 1 :: bits] << np.uint32(32 - offset)
        codes[:, index::32] = found & mask
    return codes[:, :count]


def unpacked_words(words: _Words, bits: int, count: int) -> _Codes:
    """Return `count` codes of each row of words, each of which holds as many whole codes as fit.

    compressed-tensors packed like this before it packed a stream.
    """
    per_word = 32 // bits
    codes = np.empty((len(words), words.shape[1] * per_word), np.uint8)
    for index in range(per_word):
        codes[:, index::per_word] = (words.view(np.uint32) >> np.uint32(index * bits)) & np.uint32(
            2**bits - 1
        )
    return codes[:, :count]


def unpacked_awq(words: _Words) -> _Codes:
    """Return the codes of four bits of each row of words, in the order of AWQ's "gemm"."""
    codes = np.empty((len(words), words.shape[1] * 8), np.uint8)
    for index, column in enumerate(_AWQ_ORDER):
        codes[:, column::8] = (words.view(np.uint32) >> np.uint32(4 * index)) & np.uint32(15)
    return codes


def unpacked_pairs(pairs: _Codes) -> _Codes:
    """Return the codes of four bits in bytes, along the last axis, the lower four bits first."""
    codes = np.empty((*pairs.shape[:-1], 2 * pairs.shape[-1]), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = pairs & 15, pairs >> 4
    return codes


def stream_words(count: int, bits: int) -> int:
    """Return how many words a stream of so many codes takes."""
    return -(-count * bits // 32)


def whole_words(count: int, bits: int) -> int:
    """Return how many words so many codes take if none begins in one word and ends in the next."""
    return -(-count // (32 // bits))
