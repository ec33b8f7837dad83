"""Writing a .safetensors file tensor by tensor, each computed when it is written.

The safetensors package needs all tensors in memory at once, and accepts neither bfloat16 arrays
nor tensors of a dtype that numpy lacks.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.safetensors_reader import DTYPES, METADATA
from rmtspec.checkpoint.stored import named_dtype
from rmtspec.errors import InvalidTypeError, InvalidValueError

#: The header and the tensors begin at multiples of this many bytes.
_ALIGNMENT = 8
#: Seconds between two flushes to the disk.
_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A tensor to be written.

    Attributes
    ----------
    name : str
        Its name in the file.
    dtype : str
        The format's name of the dtype ("BF16").
    shape : tuple of int
        Its sides.
    load : callable
        Called without arguments when the tensor is written; returns an array with its bytes, or
        an iterable of arrays that hold its bytes in order.
    stored_bytes : int, optional
        Its size; needed only for a dtype that numpy lacks.
    costly : bool
        Whether `load` computes rather than copies.
    errors : dict of str to float
        Relative error of each of its matrices whose rank `load` lowers; filled during writing.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any] | Iterable[NDArray[Any]]]
    stored_bytes: int | None = None
    costly: bool = False
    errors: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, array: NDArray[Any]) -> "Outgoing":
        """Return an array in memory as a tensor to be written."""
        return cls(name, format_dtype(array.dtype), array.shape, lambda: array)

    @property
    def nbytes(self) -> int:
        """Its size in the file in bytes."""
        if self.dtype in DTYPES:
            return math.prod(self.shape) * named_dtype(DTYPES[self.dtype]).itemsize
        if self.stored_bytes is None:
            raise InvalidTypeError(
                f"The tensor {self.name!r} has dtype {self.dtype!r}, whose size is not known; "
                f"expected one of {', '.join(DTYPES)}. Pass `stored_bytes`."
            )
        return self.stored_bytes


def format_dtype(dtype: np.dtype[Any]) -> str:
    """Return the format's name ("BF16") of a dtype of numpy or ml_dtypes, or raise."""
    for name, numpy_name in DTYPES.items():
        if named_dtype(numpy_name) == dtype:
            return name
    raise InvalidTypeError(
        f"The dtype is {dtype!r}, which .safetensors files cannot hold; expected one of "
        f"{', '.join(DTYPES.values())}. Convert the array first."
    )


def write_safetensors(
    path: Path,
    tensors: Sequence[Outgoing],
    metadata: dict[str, str] | None = None,
    *,
    written: Mapping[str, str] = MappingProxyType({}),
    note: Callable[[Outgoing, str], None] | None = None,
) -> str:
    """Write the file, one tensor in memory at a time, and return its SHA-256 in hexadecimal.

    Tensors are ordered by the size of their entries, the largest first, then by name, so that each
    is aligned. The file has been flushed to disk when this returns. After a failure it is left
    incomplete, so write into `finished_folder` or `work_folder`.

    Parameters
    ----------
    path : Path
        The file; an existing one is replaced, or continued according to `written`.
    tensors : sequence of Outgoing
        Its tensors.
    metadata : dict of str to str, optional
        Free text for its header.
    written : mapping of str to str
        Names of tensors that an earlier call wrote, with the digests that `note` had. Those that
        come first in the order are kept if the file still has the digest of the last of them;
        otherwise all are written again. An empty digest is not compared.
    note : callable, optional
        Called with each tensor once it is on disk, and the SHA-256 of the file up to its end. Small
        tensors wait for each other, for a tenth of a second.

    Raises
    ------
    InvalidValueError
        Two tensors have the same name, or the size of an array differs from the announced size.
    """
    ordered = sorted(tensors, key=lambda tensor: (-_entry_bytes(tensor), tensor.name))
    start = _start(path, ordered, metadata)
    count = next((i for i, t in enumerate(ordered) if t.name not in written), len(ordered))
    kept = len(start) + sum(tensor.nbytes for tensor in ordered[:count])
    if not count or not path.exists() or path.stat().st_size < kept:
        path.write_bytes(start)
        count, kept = 0, len(start)
    with path.open("r+b") as stream:
        stream.truncate(kept)
        digest = hashlib.file_digest(stream, "sha256")  # reads up to where writing resumes
        expected = written.get(ordered[count - 1].name, "") if count else ""
        if expected and digest.hexdigest() != expected:  # damaged since it was written
            stream.seek(0)
            stream.truncate(0)
            stream.write(start)
            digest, count = hashlib.sha256(start), 0
        pending: list[tuple[Outgoing, str]] = []
        flushed = -math.inf
        for index, tensor in enumerate(ordered[count:], count):
            _append(tensor, stream, digest)
            pending.append((tensor, digest.hexdigest()))
            # Computed tensors are flushed at once unless that was a moment ago, copied ones
            # together with the next computed one.
            last = index == len(ordered) - 1
            due = tensor.costly and time.monotonic() - flushed >= _SECONDS
            if note is not None and (due or last):
                _to_disk(stream)
                flushed = time.monotonic()
                for finished, so_far in pending:
                    note(finished, so_far)
                pending = []
        _to_disk(stream)
    return digest.hexdigest()


def _start(path: Path, ordered: Sequence[Outgoing], metadata: dict[str, str] | None) -> bytes:
    """Return the first bytes of the file: the length of the header, then the header."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    position = 0
    for tensor in ordered:
        if tensor.name == METADATA:
            raise InvalidValueError(
                f"A tensor is named {METADATA!r}, which the format reserves. Rename it."
            )
        if tensor.name in header:
            raise InvalidValueError(
                f"{path.name} cannot hold two tensors named {tensor.name!r}. Rename one."
            )
        offsets = [position, position + tensor.nbytes]
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets
        }  # fmt: skip
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _append(tensor: Outgoing, stream: IO[bytes], digest: Any) -> None:
    """Load a tensor and write it; its memory is released when this returns."""
    loaded = tensor.load()
    pieces: Iterable[NDArray[Any]] = (loaded,) if isinstance(loaded, np.ndarray) else loaded
    size, shown = 0, ""
    for piece in pieces:
        array = np.ascontiguousarray(piece)
        size += array.nbytes
        shown = f", an array of shape {array.shape} of {array.dtype}"
        if size > tensor.nbytes:
            break
        content = array.reshape(-1).view(np.uint8).data
        stream.write(content)
        digest.update(content)
        del piece, array, content  # before the next piece is computed
    if size != tensor.nbytes:
        raise InvalidValueError(
            f"The tensor {tensor.name!r} is {size} bytes{shown}; expected the {tensor.nbytes} "
            f"bytes of shape {tensor.shape} of {tensor.dtype}."
        )


def _to_disk(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _entry_bytes(tensor: Outgoing) -> int:
    """Return the bytes per entry; 0 if an entry is smaller than a byte."""
    if tensor.dtype in DTYPES:
        return named_dtype(DTYPES[tensor.dtype]).itemsize
    return tensor.nbytes // max(1, math.prod(tensor.shape))
