"""The numbers of an array in an HDF5 file, read from where the file's structures say they lie.

The HDF5 library is not asked for them: on damaged files it crashes, unpacks 10 KB into 10 GB, or
gives what lies behind a piece that is too short in the memory of the process.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.terms import Why

#: Nothing that HDF5 or zip compress becomes more than about 1030 times smaller.
RATIO = 1100
SMALL = 2**20
_DEFLATE, _SHUFFLE, _CHECKSUM = 1, 2, 3
#: Without the checksum, which may stand anywhere.
_READ: tuple[list[int], ...] = ([], [_DEFLATE], [_SHUFFLE], [_SHUFFLE, _DEFLATE])
#: Bytes of a checksum, and its modulus.
_SUM, _MODULUS = 4, 65535
#: What packing adds to a piece that cannot be packed, at most: a part of it, and a few bytes.
_PART, _FEW = 64, 1024


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the numbers of an array lie.

    All from the byte `at` on; or in `content`; or in `pieces` with the sides `chunks`, each given
    as (its first indices, a bit for each of the `filters` that is not used, its first byte, its
    length). What lies nowhere is the number `fill`.
    """

    at: int | None
    content: bytes | None
    chunks: tuple[int, ...]
    pieces: tuple[tuple[tuple[int, ...], int, int, int], ...]
    filters: tuple[int, ...]
    fill: bytes

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Storage":
        """Return what an entry of `walk` says."""
        return cls(
            at=entry["at"],
            content=None if entry["content"] is None else bytes.fromhex(entry["content"]),
            chunks=tuple(entry["chunks"] or ()),
            pieces=tuple((tuple(corner), *rest) for corner, *rest in entry["pieces"]),
            filters=tuple(entry["filters"]),
            fill=bytes.fromhex(entry["fill"]),
        )


def not_unpacked(entry: Mapping[str, Any], size: int) -> str:
    """Return why an array that a file of that size announces is not read, or nothing."""
    if not entry["exact"]:
        words = f"a type of numbers that NumPy has not ({entry['item']} bytes)"
        hint = f"; save the array as {entry['type']}"
        return Why.UNSUPPORTED.words(dtype=words, hint=hint)
    filters = [number for number in entry["filters"] if number != _CHECKSUM]
    if filters not in _READ or entry["filters"].count(_CHECKSUM) > 1:
        return Why.PACKED.words(filters=", ".join(map(str, entry["filters"])))
    stored = entry["stored"]
    announced = entry["item"] * math.prod(entry["shape"])
    error = ""
    if announced > RATIO * stored + SMALL:
        error = f"it announces {announced} bytes and stores {stored}"
    elif stored > size:
        error = f"it stores {stored} bytes, and the file has {size}"
    elif entry["chunks"] is not None:
        error = _of_pieces(entry)
    elif 0 < stored < announced:
        error = f"it has {announced} bytes and stores {stored}"
    return Why.DAMAGED.words(error=error) if error else ""


def _of_pieces(entry: Mapping[str, Any]) -> str:
    chunks, shape, stored = entry["chunks"], entry["shape"], entry["stored"]
    if len(chunks) != len(shape) or not all(chunks):
        return f"a piece of it has the sides {tuple(chunks)}"
    piece = entry["item"] * math.prod(chunks)
    if piece > RATIO * stored + SMALL:
        return f"a piece of it has {piece} bytes, and it stores {stored}"
    seen = set()
    for corner, *_ in entry["pieces"]:
        inside = all(
            at < side and at % chunk == 0
            for at, side, chunk in zip(corner, shape, chunks, strict=True)
        )
        if not inside or tuple(corner) in seen:
            return f"a piece of it begins at {tuple(corner)}"
        seen.add(tuple(corner))
    return ""


def read_array(
    stream: IO[bytes], dtype: str, shape: tuple[int, ...], kept: Storage
) -> NDArray[Any]:
    """Return the array that is kept so in the stream of an HDF5 file.

    Raises ValueError for one that is damaged.
    """
    values: NDArray[Any] = np.empty(shape, dtype)
    if kept.content is not None:
        values[...] = np.frombuffer(kept.content, dtype).reshape(shape)
    elif kept.at is not None:
        stream.seek(kept.at)
        found = stream.readinto(values.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
        if found != values.nbytes:
            raise ValueError(f"the file ends {values.nbytes - found} bytes before it does")
    else:
        values[...] = np.frombuffer(kept.fill, dtype)[0]
        for corner, masked, at, length in kept.pieces:
            size = values.itemsize * math.prod(kept.chunks)
            if length > size + size // _PART + _FEW:
                raise ValueError(f"its piece at {corner} takes {length} bytes, and has {size}")
            stream.seek(at)
            used = [kind for bit, kind in enumerate(kept.filters) if not masked >> bit & 1]
            content = _unpacked(stream.read(length), used, size, values.itemsize)
            if len(content) != size:
                raise ValueError(f"its piece at {corner} is not of {size} bytes")
            piece = np.frombuffer(content, dtype).reshape(kept.chunks)
            place = tuple(
                slice(begin, begin + chunk)
                for begin, chunk in zip(corner, kept.chunks, strict=True)
            )
            taken = values[place]
            taken[...] = piece[tuple(map(slice, taken.shape))]
    return values


def _unpacked(content: bytes, used: list[int], size: int, item: int) -> bytes:
    """Return what a piece was before it was packed; no more than a few bytes above its size."""
    for kind in reversed(used):
        if kind == _DEFLATE:
            unpacker = zlib.decompressobj()
            content = unpacker.decompress(content, size + _SUM + 1)
            if not unpacker.eof:
                raise ValueError(f"a piece is cut, or has more than {size} bytes")
        elif kind == _CHECKSUM:
            content, checksum = content[:-_SUM], content[-_SUM:]
            if _fletcher(content) not in (_halves(checksum), _halves(checksum[::-1])):
                raise ValueError("the checksum of a piece does not match")
        else:
            content = np.frombuffer(content, np.uint8).reshape(item, -1).T.tobytes()
    return content


def _fletcher(content: bytes) -> tuple[int, int]:
    """Return the two sums of Fletcher's checksum, of big-endian pairs of bytes."""
    even = content + b"\0" if len(content) % 2 else content
    words = np.frombuffer(even, ">u2").astype(np.uint64)
    left = np.arange(len(words), 0, -1, dtype=np.uint64) % _MODULUS
    return int(words.sum() % _MODULUS), int((words * left).sum() % _MODULUS)


def _halves(checksum: bytes) -> tuple[int, int]:
    """Return the sums in a checksum as stored, in which 65535 stands for 0 at times."""
    number = int.from_bytes(checksum, "little")
    return (number & 0xFFFF) % _MODULUS, (number >> 16) % _MODULUS
