"""Writing a .safetensors file tensor by tensor, each made when its turn comes.

The safetensors package wants all tensors in memory at once, and takes neither bfloat16 from numpy
nor tensors of a dtype that numpy lacks.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.safetensors_reader import DTYPES, METADATA
from rmtspec.checkpoint.stored import named_dtype
from rmtspec.errors import InvalidTypeError, InvalidValueError

#: Header and tensors begin at multiples of it.
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A tensor to be written.

    Attributes
    ----------
    name : str
        As the file shall call it.
    dtype : str
        The format's own name of the dtype ("BF16").
    shape : tuple of int
        Its sides.
    load : callable
        Called without arguments when its turn comes; returns an array whose bytes are right, or
        an iterable of arrays whose bytes one after the other are.
    stored_bytes : int, optional
        Its size; needed only for a dtype that numpy lacks.
    costly : bool
        Whether `load` computes more than it copies.
    errors : dict of str to float
        Relative error of each matrix in it that `load` lowers in rank; empty until it was written.
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
        """Return an array that is in memory as a tensor to be written."""
        return cls(name, format_dtype(array.dtype), array.shape, lambda: array)

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        if self.dtype in DTYPES:
            return math.prod(self.shape) * named_dtype(DTYPES[self.dtype]).itemsize
        if self.stored_bytes is None:
            raise InvalidTypeError(
                f"The tensor {self.name!r} has dtype {self.dtype!r}, whose size is not known here; "
                f"expected one of {', '.join(DTYPES)}. Give `stored_bytes`."
            )
        return self.stored_bytes


def format_dtype(dtype: np.dtype[Any]) -> str:
    """Return the format's name of a dtype of numpy or ml_dtypes ("BF16"), or raise."""
    for name, numpy_name in DTYPES.items():
        if named_dtype(numpy_name) == dtype:
            return name
    raise InvalidTypeError(
        f"The dtype is {dtype!r}, which .safetensors files do not have; expected one of "
        f"{', '.join(DTYPES.values())}. Convert the array first."
    )


def write_safetensors(
    path: Path,
    tensors: Sequence[Outgoing],
    metadata: dict[str, str] | None = None,
    *,
    written: Collection[str] = (),
    note: Callable[[Outgoing], None] | None = None,
) -> str:
    """Write the file, one tensor in memory at a time, and return its SHA-256 in hexadecimal.

    Tensors are ordered by the size of their entries, large ones first, then by name, so that
    each is aligned. The file is on the disk when this returns; it is left unfinished where
    something fails, so write into `finished_folder` or `work_folder`.

    Parameters
    ----------
    path : Path
        The file; replaced if it is there, unless `written` says that it is to be gone on with.
    tensors : sequence of Outgoing
        What it shall hold.
    metadata : dict of str to str, optional
        Free text of its header.
    written : collection of str
        Names of tensors that an earlier call wrote: those that come first in the order are not
        made again.
    note : callable, optional
        Called with each tensor when it is on the disk.

    Raises
    ------
    InvalidValueError
        Two tensors of one name, or one whose array has another size than announced.
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
        digest = hashlib.file_digest(stream, "sha256")  # reads up to where it is gone on with
        pending: list[Outgoing] = []
        for index, tensor in enumerate(ordered[count:], count):
            _append(tensor, stream, digest)
            pending.append(tensor)
            # What cost work is made safe at once, what was copied with the next of these.
            if note is not None and (tensor.costly or index == len(ordered) - 1):
                _to_disk(stream)
                for made in pending:
                    note(made)
                pending = []
        _to_disk(stream)
    return digest.hexdigest()


def _start(path: Path, ordered: Sequence[Outgoing], metadata: dict[str, str] | None) -> bytes:
    """Return the first bytes of the file: the length of the header, and the header."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    position = 0
    for tensor in ordered:
        if tensor.name == METADATA:
            raise InvalidValueError(
                f"A tensor is named {METADATA!r}, which the format keeps for itself. Rename it."
            )
        if tensor.name in header:
            raise InvalidValueError(
                f"{path.name} cannot hold two tensors named {tensor.name!r}. Rename one."
            )
        end = position + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _append(tensor: Outgoing, stream: IO[bytes], digest: Any) -> None:
    """Load a tensor and write it; its memory is free when this returns."""
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
        del piece, array, content  # before the next one is made
    if size != tensor.nbytes:
        raise InvalidValueError(
            f"The tensor {tensor.name!r} is {size} bytes{shown}; expected the {tensor.nbytes} "
            f"bytes of shape {tensor.shape} of {tensor.dtype}."
        )


def _to_disk(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _entry_bytes(tensor: Outgoing) -> int:
    """Return the bytes of an entry; 0 for those smaller than a byte."""
    if tensor.dtype in DTYPES:
        return named_dtype(DTYPES[tensor.dtype]).itemsize
    return tensor.nbytes // max(1, math.prod(tensor.shape))
