"""Tensors and matrices in files: what the headers tell of them, and how one is loaded."""

import math
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rmtspec.errors import FileError

#: What reading a damaged zip archive may raise.
ZIP_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # an encrypted member, an unknown compression
)


class StoredTensor(Protocol):
    """A tensor in a file, of whatever format; calling it returns the array."""

    @property
    def path(self) -> str:
        """The file."""

    @property
    def name(self) -> str:
        """Name of the tensor."""

    @property
    def dtype(self) -> str:
        """Type of its entries, as the file's format calls it ("BF16", "<f4")."""

    @property
    def numpy_name(self) -> str:
        """The same for `named_dtype`; empty where numpy has none."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""

    @property
    def nbytes(self) -> int:
        """Bytes of its entries."""

    def __call__(self) -> NDArray[Any]:
        """Return the tensor; bytes (uint8, one dimension) where numpy has no such dtype."""


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A tensor whose entries lie in one piece of a file: .safetensors, .npy.

    `begin` and `end` are its bytes in the file, `order` is "C" or "F".
    """

    path: str
    name: str
    dtype: str
    numpy_name: str
    shape: tuple[int, ...]
    begin: int
    end: int
    order: str = "C"

    @property
    def nbytes(self) -> int:
        """Bytes of its entries."""
        return self.end - self.begin

    def __call__(self) -> NDArray[Any]:
        """Return the tensor, memory-mapped; bytes where numpy has no such dtype."""
        raw: NDArray[Any] = np.empty(0, np.uint8)
        if self.nbytes:  # else there is nothing to map
            try:
                raw = np.memmap(
                    self.path, np.uint8, mode="r", offset=self.begin, shape=(self.nbytes,)
                )
            except (OSError, ValueError) as error:
                raise FileError(
                    f"{self.path} cannot be read at {self.name!r}: {error}. Was it changed "
                    "meanwhile? Read it again."
                ) from error
        if not self.numpy_name:
            return raw
        order: Any = self.order
        # Formats do not promise aligned entries; a view of such bytes is copied once.
        entries = np.require(raw.view(named_dtype(self.numpy_name)), requirements="A")
        return entries.reshape(self.shape, order=order)


@dataclass(frozen=True, slots=True)
class ZippedTensor:
    """A tensor in an .npz file; `member` is its name there, `checksum` the archive's CRC-32."""

    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    member: str
    checksum: int

    @property
    def numpy_name(self) -> str:
        """Name of the dtype."""
        return self.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its entries."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def __call__(self) -> NDArray[Any]:
        """Return the tensor, unpacked into memory."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
                stream.read(1)  # past the end, where zipfile compares the checksum
                return array
        except ZIP_ERRORS as error:
            raise FileError(
                f"{self.path} is damaged at {self.name!r}: {error}. Copy or save the file again."
            ) from error


@dataclass(frozen=True, slots=True)
class Part:
    """A matrix that is a part of a tensor: an expert of a stack, q of a fused qkv.

    Attributes
    ----------
    label : str
        What it is: "q", "gate", "0"; the matrix is called ``tensor[label]``.
    kind : str
        "attention", "mlp", "expert", "recurrent".
    view : tuple of int
        The shape in which the tensor is read (C order), so that the part is a box in it.
    box : tuple of (start, stop) or None
        Along each axis of `view`; None takes all of it.
    shape : tuple of int
        (rows, columns) of the matrix.
    """

    label: str
    kind: str
    view: tuple[int, ...]
    box: tuple[tuple[int, int] | None, ...]
    shape: tuple[int, int]

    def of(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """Return the matrix; without a copy where it lies in one piece."""
        return self.box_of(tensor).reshape(self.shape)

    def box_of(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """Return the part as a view of the tensor, not brought into the shape of a matrix."""
        ranges = tuple(slice(None) if span is None else slice(*span) for span in self.box)
        return tensor.reshape(self.view)[ranges]


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix in a file; calling it returns the array.

    Attributes
    ----------
    name : str
        Of the tensor, with the part in brackets where it is one: "experts.gate_up_proj[3,gate]".
    kind : str
        "matrix", "embedding", "conv" for a kernel read as output channels x everything else, or
        the part's: "attention", "mlp", "expert", "recurrent".
    tensor : StoredTensor
        Where it is.
    part : Part or None
        Which part of the tensor; None for all of it.
    """

    name: str
    kind: str
    tensor: StoredTensor
    part: Part | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sides of the tensor as stored, or of the part."""
        return self.tensor.shape if self.part is None else self.part.shape

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def layer(self) -> str:
        """Name of the layer that the tensor belongs to."""
        return layer_of(self.tensor.name)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `include`, `exclude` and `ranks` may use."""
        return tuple(dict.fromkeys((self.name, self.layer)))

    @property
    def itemsize(self) -> int:
        """Bytes of an entry as stored."""
        return named_dtype(self.tensor.numpy_name).itemsize

    def __call__(self) -> NDArray[Any]:
        """Return the matrix, memory-mapped where the format allows it.

        Raises
        ------
        FileError
            The file is damaged, or was changed since it was listed.
        """
        tensor = self.tensor()
        return tensor.reshape(self.sides) if self.part is None else self.part.of(tensor)


def named_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of numpy, or of ml_dtypes for its short floats."""
    if name.startswith(("bfloat", "float8")):
        import ml_dtypes

        short: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return short
    return np.dtype(name)


def layer_of(tensor: str) -> str:
    """Return the name of the layer whose weight a tensor is, or its own where it is no weight.

    A model that is one layer calls its weight "weight"; the layer's name is then empty.
    """
    if tensor == "weight":
        return ""
    return tensor.removesuffix(".weight")
