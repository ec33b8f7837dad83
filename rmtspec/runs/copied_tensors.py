"""The tensors of a checkpoint that go into a new one as they are."""

from collections.abc import Callable
from functools import partial
from typing import Any

from numpy.typing import NDArray

from rmtspec.checkpoint.safetensors_reader import DTYPES
from rmtspec.checkpoint.safetensors_writer import Outgoing, format_dtype
from rmtspec.checkpoint.stored import StoredTensor, named_dtype
from rmtspec.errors import FileError, InvalidTypeError


def check_holdable(tensor: StoredTensor) -> None:
    """Raise if a .safetensors file cannot hold a tensor because of its name or dtype."""
    tensor_dtype(tensor)
    try:
        tensor.name.encode("utf-8")
    except UnicodeEncodeError:
        raise FileError(
            f"{tensor.path} holds {tensor.name!a}, a name that cannot be encoded in UTF-8, as "
            ".safetensors files require. Rename it."
        ) from None


def tensor_dtype(tensor: StoredTensor) -> str:
    """Return the .safetensors name of a tensor's dtype; the stored one if numpy lacks it."""
    if not tensor.numpy_name or tensor.dtype in DTYPES:
        return tensor.dtype
    dtype = named_dtype(tensor.numpy_name)
    try:
        return format_dtype(dtype.newbyteorder("<"))
    except InvalidTypeError:
        raise FileError(
            f"{tensor.path} holds {tensor.name!r} of dtype {dtype}, which .safetensors files "
            "cannot hold. Remove or convert it, and save the file again."
        ) from None


def copied(tensor: StoredTensor, name: str) -> Outgoing:
    """Return a tensor as it goes into a new file under that name."""
    return Outgoing(
        name=name, dtype=tensor_dtype(tensor), shape=tensor.shape,
        load=partial(little_endian, tensor), stored_bytes=tensor.nbytes,
    )  # fmt: skip


def little_endian(tensor: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """Return the values in the byte order of .safetensors files."""
    array = tensor()
    return array if array.dtype.byteorder != ">" else array.astype(array.dtype.newbyteorder("<"))
