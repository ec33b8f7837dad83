"""Writing a .safetensors file tensor by tensor, each made when its turn comes.

The safetensors package wants all tensors in memory at once, and takes neither bfloat16 from numpy
nor tensors of a dtype that numpy lacks.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._safetensors import DTYPES, METADATA, named_dtype
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
        Called without arguments when its turn comes; returns an array whose bytes are right.
    stored_bytes : int, optional
        Its size; needed only for a dtype that numpy lacks.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any]]
    stored_bytes: int | None = None

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
    path: Path, tensors: Sequence[Outgoing], metadata: dict[str, str] | None = None
) -> str:
    """Write the file, one tensor in memory at a time, and return its SHA-256 in hexadecimal.

    Tensors are ordered by the size of their entries, large ones first, then by name, so that
    each is aligned. The file is on the disk when this returns; it is left unfinished where
    something fails, so write into `finished_folder`.

    Raises
    ------
    InvalidValueError
        Two tensors of one name, or one whose array has another size than announced.
    """
    ordered = sorted(tensors, key=lambda tensor: (-_entry_bytes(tensor), tensor.name))
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
    start = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(start)
    with path.open("wb") as stream:
        stream.write(start)
        for tensor in ordered:
            _append(tensor, stream, digest)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _append(tensor: Outgoing, stream: IO[bytes], digest: Any) -> None:
    """Load a tensor and write it; its memory is free when this returns."""
    array = np.ascontiguousarray(tensor.load())
    if array.nbytes != tensor.nbytes:
        raise InvalidValueError(
            f"The tensor {tensor.name!r} is {array.nbytes} bytes, an array of shape {array.shape} "
            f"of {array.dtype}; expected the {tensor.nbytes} bytes of shape {tensor.shape} of "
            f"{tensor.dtype}."
        )
    content = array.reshape(-1).view(np.uint8).data
    stream.write(content)
    digest.update(content)


def _entry_bytes(tensor: Outgoing) -> int:
    """Return the bytes of an entry; 0 for those smaller than a byte."""
    if tensor.dtype in DTYPES:
        return named_dtype(DTYPES[tensor.dtype]).itemsize
    return tensor.nbytes // max(1, math.prod(tensor.shape))
