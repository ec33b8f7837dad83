"""What every layout of quantised weights has: its tensors, checked, and the matrix they mean."""

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.quantised.unpacked import Unpacked, blocks
from rmtspec.checkpoint.stored import MappedTensor, Part, StoredTensor, named_dtype
from rmtspec.errors import FileError

Shape = tuple[int, ...]
#: The sixteen values of E2M1, a float of four bits; the code is its bits.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
#: Tensors up to this many bytes are read while a checkpoint is listed.
_SMALL = 2**16


@dataclass(frozen=True, slots=True)
class Layout(abc.ABC):
    """How the tensors of one layer mean a weight.

    Attributes
    ----------
    method : str
        What a report calls it: "GPTQ 4 bits".
    shape : tuple of int
        Rows and columns of the weight; of a stack of matrices, first their number.
    dtype : str
        What the weight has where it is not quantised, as a name for `named_dtype`.
    sources : tuple of StoredTensor
        The tensors that hold it, in an order of the layout's own.
    """

    method: str
    shape: Shape
    dtype: str
    sources: tuple[MappedTensor, ...]

    @property
    def items(self) -> int:
        """Number of the matrices of a stack that are read one by one; 0 if it is none."""
        return 0

    @abc.abstractmethod
    def unpacked(self, item: int | None) -> Unpacked:
        """Return the codes of the matrix, or of one matrix of a stack."""

    def values(self, item: int | None = None) -> NDArray[np.float32]:
        """Return the weight in float32, or one matrix of a stack."""
        with np.errstate(all="ignore"):  # what a damaged scale makes shows as not finite
            return self._shaped(self.unpacked(item).values())

    def steps(self, item: int | None = None) -> NDArray[np.float32]:
        """Return the step at each entry of the weight, or of one matrix of a stack."""
        with np.errstate(all="ignore"):
            return self._shaped(self.unpacked(item).steps())

    def _shaped(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return values in the shape of the weight, without the rest of a last block."""
        shape = self.shape[1:] if self.items else self.shape
        return values.reshape(-1)[: math.prod(shape)].reshape(shape)


def refuse(what: str) -> NoReturn:
    """Raise the error that says what is wrong with a layer; the caller says which layer it is."""
    raise FileError(what)


def member(tensors: Mapping[str, StoredTensor], name: str) -> MappedTensor:
    """Return a tensor that a layout requires, or raise."""
    found = tensors.get(name)
    if not isinstance(found, MappedTensor):
        refuse(f"there is no tensor {name!r}; download or save the checkpoint again")
    return found


def of_shape(tensor: MappedTensor, *expected: Shape) -> None:
    """Raise unless a tensor has one of some shapes."""
    if tensor.shape not in expected:
        words = " or ".join(str(shape) for shape in expected)
        refuse(f"{tensor.name!r} is {tensor.shape}; expected {words}")


def of_kind(tensor: MappedTensor, kinds: str, itemsize: int | None = None) -> None:
    """Raise unless the dtype of a tensor is of some kinds ("f": floats, "i", "u"), and that size.

    Floats of a byte count as "f" here too.
    """
    dtype = named_dtype(tensor.numpy_name) if tensor.numpy_name else None
    if dtype is not None:
        kind = "f" if tensor.numpy_name.startswith(("bfloat", "float8")) else dtype.kind
        if kind in kinds and itemsize in (None, dtype.itemsize):
            return
    words = {"i": "integers", "u": "unsigned integers", "f": "floats"}
    expected = " or ".join(words[kind] for kind in kinds)
    bits = f" of {8 * itemsize} bits" if itemsize else ""
    refuse(f"{tensor.name!r} has dtype {tensor.dtype}; expected {expected}{bits}")


def small(tensor: MappedTensor) -> NDArray[Any]:
    """Return the content of a tensor that says how others are to be read."""
    if tensor.nbytes > _SMALL:
        refuse(f"{tensor.name!r} has {tensor.nbytes} bytes; expected at most {_SMALL}")
    return tensor()


def item_of(tensor: MappedTensor, item: int | None) -> NDArray[Any]:
    """Return a tensor, or of a stack one item, of which no more is read."""
    if item is None:
        return tensor()
    rest = tensor.shape[1:]
    size = math.prod(rest)
    view, box = (tensor.shape[0], size), ((item, item + 1), None)
    return tensor.matrix(Part("", "", view=view, box=box, shape=(1, size))).reshape(rest)


def numbers(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return scales in float32; bytes are the exponents of E8M0, as the MX formats have them."""
    if array.dtype == np.uint8:
        array = array.view(ml_dtypes.float8_e8m0fnu)
    return array.astype(np.float32)


def grid(
    sides: tuple[int, int], scales: MappedTensor, block: tuple[int, int] | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the groups of rows and of columns that share a scale, or raise if they do not fit.

    With `block`, a scale belongs to a block of these sides; without, to a row. One for all fits in
    either case.
    """
    rows, columns = sides
    shape, stacked = scales.shape, len(scales.shape) == 3
    own = shape[1:] if stacked else shape
    if math.prod(own) == 1:
        return np.zeros(rows, np.intp), np.zeros(columns, np.intp)
    if block is None:
        if own not in ((rows, 1), (rows,)):
            refuse(f"{scales.name!r} is {shape}; expected one scale, or one for each row: {rows}")
        return np.arange(rows), np.zeros(columns, np.intp)
    expected = -(-rows // block[0]), -(-columns // block[1])
    if own != expected:
        refuse(
            f"{scales.name!r} is {shape}; expected {expected}, one scale for each block of "
            f"{block[0]} x {block[1]}"
        )
    return blocks(rows, block[0]), blocks(columns, block[1])


def matrix_of(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scales as row groups x column groups."""
    return array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
