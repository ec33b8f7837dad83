"""Tensors and matrices in files: what the headers say about them, and how to load one."""

import abc
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rmtspec._files.reading import open_regular
from rmtspec._files.writing import cause
from rmtspec.checkpoint.memory import lacking
from rmtspec.checkpoint.stamps import Stamp
from rmtspec.errors import FileError

#: What reading a damaged zip archive, or a damaged header of .npy, may raise; RuntimeError for an
#: encrypted member, the errors of Python's parser for a header, which is text of Python.
ZIP_ERRORS = (
    OSError, ValueError, EOFError, LookupError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    RuntimeError, SyntaxError, tokenize.TokenError, ArithmeticError, TypeError, AttributeError,
    MemoryError, struct.error,
)  # fmt: skip


#: NumPy's arrays have no more; such a tensor is only copied.
_MOST_DIMENSIONS = 32


@dataclass(frozen=True, slots=True)
class StoredTensor(abc.ABC):
    """A tensor in a file of any format; calling it returns the array.

    Attributes
    ----------
    path, name : str
        The file, and the name of the tensor in it.
    dtype : str
        Type of its entries in the terms of the file's format ("BF16", "<f4").
    numpy_name : str
        The same type for `named_dtype`; empty if numpy has no such type.
    shape : tuple of int
        Its sides.
    nbytes : int
        Size of its entries in bytes.
    stamp : Stamp or None
        Of the file when its header was read; None if nothing compares it.
    """

    path: str
    name: str
    dtype: str
    numpy_name: str
    shape: tuple[int, ...]
    nbytes: int
    stamp: Stamp | None = field(default=None, kw_only=True, compare=False)

    def __call__(self) -> NDArray[Any]:
        """Return the tensor; bytes (uint8, one dimension) if numpy has no such dtype.

        Raises
        ------
        FileError
            The file is damaged, or has changed since it was listed.
        """
        if self.stamp is not None:
            self.stamp.check(self.path, elsewhere=True)
        return self._load()

    @abc.abstractmethod
    def _load(self) -> NDArray[Any]:
        """Return what `__call__` returns, without comparing the stamp."""

    def check_unchanged(self) -> None:
        """Raise `FileError` if the file that holds it was rewritten since it was listed."""
        if self.stamp is not None:
            self.stamp.check(self.path)

    def stamps(self) -> Iterable[tuple[str, Stamp]]:
        """Return the files that hold it, with the stamps that they had when it was listed."""
        return () if self.stamp is None else ((self.path, self.stamp),)

    def matrix(self, part: "Part") -> NDArray[Any]:
        """Return the matrix that is a part of it."""
        return part.of(self())

    def steps(self) -> NDArray[Any] | None:
        """Return the distance of neighbouring values at each entry of a quantised tensor.

        None if it is not quantised, or they are not known.
        """
        return None

    def part_steps(self, part: "Part") -> NDArray[Any] | None:
        """Return the same for the entries of a part of it."""
        steps = self.steps()
        return None if steps is None else part.of(steps)


Tensor = TypeVar("Tensor", bound=StoredTensor)


@dataclass(frozen=True, slots=True)
class MappedTensor(StoredTensor):
    """A tensor that is contiguous in its file (.safetensors, .npy), from the byte `begin` on.

    `order` is "C" or "F".
    """

    begin: int
    order: str = "C"

    @property
    def end(self) -> int:
        """The byte after its last one."""
        return self.begin + self.nbytes

    def _load(self) -> NDArray[Any]:
        """Return the tensor; bytes if numpy has no such dtype."""
        raw = self.piece(0, self.nbytes)
        if not self.numpy_name or len(self.shape) > _MOST_DIMENSIONS:
            return raw
        order: Any = self.order
        return raw.view(named_dtype(self.numpy_name)).reshape(self.shape, order=order)

    def piece(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Return some of its bytes, from the byte `start` of the tensor on."""
        return read_bytes(self.path, self.name, self.begin + start, nbytes)

    def matrix(self, part: "Part") -> NDArray[Any]:
        """Return a part of it; of a stack of many, no more than the range that holds it is read."""
        if self.order != "C":
            return part.of(self())
        if self.stamp is not None:
            self.stamp.check(self.path, elsewhere=True)
        dtype = named_dtype(self.numpy_name)
        spans = [
            (0, side) if span is None else span
            for span, side in zip(part.box, part.view, strict=True)
        ]
        steps = [math.prod(part.view[i + 1 :]) for i in range(len(part.view))]
        first = sum(start * step for (start, _), step in zip(spans, steps, strict=True))
        last = sum((stop - 1) * step for (_, stop), step in zip(spans, steps, strict=True))
        raw = self.piece(first * dtype.itemsize, (last + 1 - first) * dtype.itemsize)
        box = np.lib.stride_tricks.as_strided(
            raw.view(dtype),
            shape=tuple(stop - start for start, stop in spans),
            strides=tuple(step * dtype.itemsize for step in steps),
        )
        return box.reshape(part.shape)


@dataclass(frozen=True, slots=True)
class ZippedTensor(StoredTensor):
    """A tensor in an .npz file; `member` is its name there, `checksum` the archive's CRC-32."""

    member: str
    checksum: int

    def _load(self) -> NDArray[Any]:
        """Return the tensor, unpacked into memory."""
        if words := lacking(self.nbytes):
            raise FileError(
                f"{self.path} holds {self.name!r}, which is too large for the memory: {words}. "
                "Read it on a computer with more, or free some."
            )
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
                stream.read(1)  # past the end, where zipfile checks the CRC
                return array
        except ZIP_ERRORS as error:
            raise FileError(
                f"{self.path} is damaged at {self.name!r}: {error}. Copy or save the file again."
            ) from error


@dataclass(frozen=True, slots=True)
class Part:
    """A matrix that is part of a tensor: an expert of a stack, the q of a fused qkv.

    Attributes
    ----------
    label : str
        Which part it is: "q", "gate", "0"; the matrix is named ``tensor[label]``.
    kind : str
        "attention", "mlp", "expert", "recurrent".
    view : tuple of int
        The shape, in C order, in which the part is a box of the tensor.
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
        """Return the matrix, without a copy if it is contiguous."""
        return self.box_of(tensor).reshape(self.shape)

    def box_of(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """Return the part as a view of the tensor, not yet in the shape of a matrix."""
        ranges = tuple(slice(None) if span is None else slice(*span) for span in self.box)
        return tensor.reshape(self.view)[ranges]


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix in a file; calling it returns the array.

    Attributes
    ----------
    name : str
        Of the tensor, followed by the part in brackets, if any: "experts.gate_up_proj[3,gate]".
    kind : str
        "matrix", "embedding", "conv" (a kernel read as output channels x everything else),
        "parameter", or the kind of the part: "attention", "mlp", "expert", "recurrent".
    tensor : StoredTensor
        The tensor that holds it.
    part : Part or None
        The part of the tensor; None for all of it.
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
        """Bytes per entry as stored."""
        return named_dtype(self.tensor.numpy_name).itemsize

    def __call__(self) -> NDArray[Any]:
        """Return the matrix.

        Raises
        ------
        FileError
            The file is damaged, or has changed since it was listed.
        """
        part = self.part
        return self.tensor().reshape(self.sides) if part is None else self.tensor.matrix(part)

    def rounding(self) -> tuple[str, NDArray[Any]] | None:
        """Return how the matrix was quantised, and the step at each entry; None if not known."""
        part = self.part
        steps = self.tensor.steps() if part is None else self.tensor.part_steps(part)
        return None if steps is None else (self.tensor.dtype, steps.reshape(self.sides))


def stamped(tensors: Iterable[Tensor], stamp: Stamp) -> list[Tensor]:
    """Return tensors of a file with the stamp that it had before its header was read."""
    return [replace(tensor, stamp=stamp) for tensor in tensors]


def check_unchanged(tensors: Iterable[StoredTensor]) -> None:
    """Raise `FileError` if a file that holds one of the tensors was rewritten since its listing."""
    check_stamps(stamps_of(tensors))


def stamps_of(tensors: Iterable[StoredTensor]) -> set[tuple[str, Stamp]]:
    """Return the files that hold the tensors, with the stamps that they had at their listing."""
    return {found for tensor in tensors for found in tensor.stamps()}


def check_stamps(stamps: Iterable[tuple[str, Stamp]]) -> None:
    """Raise `FileError` if one of the files was rewritten since its listing."""
    for path, stamp in stamps:
        stamp.check(path)


def read_bytes(path: str, name: str, begin: int, nbytes: int) -> NDArray[np.uint8]:
    """Return the bytes of the tensor called `name` in a file, from the byte `begin` on.

    They are read, not mapped: a file that shrinks while a mapping of it is used kills the process.
    """
    content = np.empty(nbytes, np.uint8)
    if not nbytes:
        return content
    try:
        with open_regular(path) as stream:
            stream.seek(begin)
            count = stream.readinto(content.data)
    except FileError:
        raise
    except (OSError, ValueError) as error:
        reason = cause(error) if isinstance(error, OSError) else str(error)
        raise FileError(
            f"{path} cannot be read at {name!r}: {reason}. Has it changed in the meantime? Read it "
            "again."
        ) from error
    if count < nbytes:
        raise FileError(
            f"{path} cannot be read at {name!r}: it ends {nbytes - count} bytes before the tensor "
            "does. Has it changed in the meantime? Read it again."
        )
    return content


def named_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype by its name in numpy, or in ml_dtypes for short floats."""
    if name.startswith(("bfloat", "float8")):
        import ml_dtypes

        name = getattr(ml_dtypes, name)
    return np.dtype(name)


def layer_of(tensor: str) -> str:
    """Return the name of the layer whose weight a tensor is, or its own if it is not a weight.

    The name of a layer that is the whole model, whose weight is "weight", is empty.
    """
    return "" if tensor == "weight" else tensor.removesuffix(".weight")
