"""A fingerprint of a checkpoint: tells it from another one without reading it all."""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.listing import Checkpoint
from rmtspec.checkpoint.stored import StoredTensor, ZippedTensor

#: A tensor up to this many bytes is read whole; of a larger one as much, in pieces.
_SAMPLED = 2**16
_PIECES = 16


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a SHA-256 over the names, shapes, dtypes and samples of the content of all tensors.

    Of each tensor up to 64 KiB are read, in 16 pieces spread over it (of an .npz file the
    archive's own checksums are taken): training changes nearly every entry, so that another
    step, another seed or another model is told apart, wherever the files lie and however they
    are called. A change of single entries by hand may go unseen.
    """
    digest = hashlib.sha256()
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        head = [name, tensor.dtype, list(tensor.shape), tensor.nbytes]
        digest.update(json.dumps(head).encode())
        digest.update(_sample(tensor))
    for name, matrix in sorted(checkpoint.matrices.items()):  # a config decides these too
        digest.update(json.dumps([name, matrix.kind, list(matrix.shape)]).encode())
    return digest.hexdigest()


def _sample(tensor: StoredTensor) -> bytes:
    if isinstance(tensor, ZippedTensor):
        return tensor.checksum.to_bytes(4, "little")
    raw = _bytes_of(tensor())
    if raw.size <= _SAMPLED:
        return raw.tobytes()
    piece = _SAMPLED // _PIECES
    starts = np.linspace(0, raw.size - piece, _PIECES).astype(np.int64)
    return b"".join(raw[start : start + piece].tobytes() for start in starts)


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of an array as they lie in memory, without a copy where that is possible."""
    flat = array.reshape(-1, order="A") if array.ndim else array.reshape(1)
    return np.ascontiguousarray(flat).view(np.uint8)
