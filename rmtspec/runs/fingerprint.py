"""A fingerprint of a checkpoint: identifies it without reading all of it."""

import hashlib
import json
import math
from typing import Any

import numpy as np

from rmtspec.checkpoint.gguf_reader import GgufTensor
from rmtspec.checkpoint.listing import Checkpoint
from rmtspec.checkpoint.quantised.tensor import QuantisedTensor
from rmtspec.checkpoint.stored import MappedTensor, StoredTensor, ZippedTensor
from rmtspec.errors import RmtspecError

#: Tensors up to this many bytes are read whole; larger ones are sampled up to it, in pieces.
_SAMPLED = 2**16
_PIECES = 16


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a SHA-256 over the names, shapes, dtypes and samples of the content of all tensors.

    Up to 64 KiB of each tensor are read, in 16 pieces spread over it; for an .npz file the
    checksums of the archive are used. Training changes nearly every entry, so another step, seed
    or model is recognised as such, wherever the files are and whatever their names. A manual edit
    of single entries may go unnoticed.
    """
    digest = hashlib.sha256()
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        head = [name, tensor.dtype, list(tensor.shape), tensor.nbytes]
        digest.update(json.dumps(head).encode())
        digest.update(_sample(tensor))
    for name, matrix in sorted(checkpoint.matrices.items()):  # the config affects these too
        digest.update(json.dumps([name, matrix.kind, list(matrix.shape)]).encode())
    return digest.hexdigest()


def source_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a report says of the checkpoint that it is on; see `Report.source`.

    Without the fingerprint where a tensor cannot be read, which is a matter of its own row.
    """
    source = {
        "name": checkpoint.path.absolute().name,
        "parameters": sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()),
        "bytes": sum(file.stat().st_size for file in checkpoint.files if file.is_file()),
    }
    try:
        return source | {"fingerprint": fingerprint(checkpoint)}
    except (RmtspecError, OSError, MemoryError):
        return source


def _sample(tensor: StoredTensor) -> bytes:
    if isinstance(tensor, QuantisedTensor):
        return b"".join(_sample(source) for source in tensor.layout.sources)
    if isinstance(tensor, ZippedTensor):
        return tensor.checksum.to_bytes(4, "little")
    piece = _SAMPLED // _PIECES
    if isinstance(tensor, MappedTensor | GgufTensor):
        size = tensor.nbytes if isinstance(tensor, MappedTensor) else tensor.stored_bytes
        if size > _SAMPLED:  # no more is read than is used
            return b"".join(tensor.piece(start, piece).tobytes() for start in _starts(size))
    content = tensor.raw() if isinstance(tensor, GgufTensor) else tensor()
    flat = content.reshape(-1, order="A")  # in memory order, without a copy if possible
    raw = np.ascontiguousarray(flat).view(np.uint8)
    if raw.size <= _SAMPLED:
        return raw.tobytes()
    return b"".join(raw[start : start + piece].tobytes() for start in _starts(raw.size))


def _starts(size: int) -> list[int]:
    """Return where the pieces of so many bytes begin."""
    starts = np.linspace(0, size - _SAMPLED // _PIECES, _PIECES).astype(np.int64)
    return [int(start) for start in starts]
