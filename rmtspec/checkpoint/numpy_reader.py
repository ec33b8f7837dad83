"""Reading the headers of numpy's .npy and .npz files. Nothing is ever unpickled."""

import math
import os
import sys
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from rmtspec._files.reading import open_regular
from rmtspec.checkpoint.safetensors_reader import looks_like
from rmtspec.checkpoint.stored import ZIP_ERRORS, MappedTensor, ZippedTensor
from rmtspec.errors import FileError
from rmtspec.terms import Why

_MAGIC = b"\x93NUMPY"
#: No byte of a deflated member stands for more than this many.
_DEFLATES = 1032


def npy_tensor(file: Path) -> MappedTensor:
    """Return the array of a .npy file, named after the file, or raise if the file is damaged."""
    with open_regular(file) as stream:
        start = stream.read(8)
        stream.seek(0)
        if not start.startswith(_MAGIC):
            raise FileError(f"{file} is not a .npy file{looks_like(start)}")
        try:
            shape, fortran, dtype = _header(stream)
        except ZIP_ERRORS as error:
            raise FileError(
                f"{file} has a damaged header: {_first_line(error)}. Copy or save the file again."
            ) from error
        begin = stream.tell()
        size = stream.seek(0, os.SEEK_END)
    nbytes = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise FileError(
            f"{file} holds pickled Python objects, which are never opened. Save an array of "
            "numbers: numpy.save(path, array.astype(float))."
        )
    if size < begin + nbytes:
        raise FileError(
            f"{file} is truncated: {size} bytes, but its header announces {begin + nbytes}. "
            "Copy or save the file again."
        )
    return MappedTensor(
        path=str(file), name=file.stem, dtype=dtype.str, numpy_name=dtype.str, shape=shape,
        nbytes=nbytes, begin=begin, order="F" if fortran else "C",
    )  # fmt: skip


def npz_tensors(file: Path) -> tuple[list[ZippedTensor], list[dict[str, str]]]:
    """Return the arrays of a .npz file, and "name" and "reason" of those that cannot be read."""
    tensors: dict[str, ZippedTensor] = {}
    skipped: list[dict[str, str]] = []
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                tensor = _member(file, archive, member)
                if name in tensors:
                    tensor = Why.SECOND_ARRAY.words()
                if isinstance(tensor, str):
                    skipped.append({"name": name, "reason": tensor})
                else:
                    tensors[name] = tensor
    except ZIP_ERRORS as error:
        with file.open("rb") as stream:
            start = stream.read(8)
        if start.startswith(b"PK"):
            raise FileError(
                f"{file} is truncated or damaged: {_first_line(error)}. Copy or save it again."
            ) from error
        raise FileError(f"{file} is not an .npz file{looks_like(start)}") from error
    return list(tensors.values()), skipped


def _member(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ZippedTensor | str:
    """Return the array, or why it cannot be read."""
    if not member.filename.endswith(".npy"):
        return Why.NOT_NPY.words()
    try:
        with archive.open(member) as stream:
            shape, _, dtype = _header(stream)
            begin = stream.tell()
    except ZIP_ERRORS as error:
        return Why.DAMAGED.words(error=_first_line(error))
    if dtype.hasobject:
        return Why.PICKLED.words()
    announced = begin + math.prod(shape) * dtype.itemsize
    if announced != member.file_size or announced > _most_bytes(member):
        what = f"its header announces {announced} bytes, the archive holds {member.file_size}"
        if announced == member.file_size:
            what = f"{announced} bytes cannot be packed into {member.compress_size}"
        return Why.DAMAGED.words(error=what)
    return ZippedTensor(
        path=str(file), name=member.filename.removesuffix(".npy"), dtype=dtype.str,
        numpy_name=dtype.str, shape=shape, nbytes=math.prod(shape) * dtype.itemsize,
        member=member.filename, checksum=member.CRC,
    )  # fmt: skip


def _most_bytes(member: zipfile.ZipInfo) -> int:
    """Return how many bytes a member can hold at most, by how it is packed."""
    if member.compress_type == zipfile.ZIP_STORED:
        return member.compress_size
    if member.compress_type == zipfile.ZIP_DEFLATED:
        return _DEFLATES * (member.compress_size + 1)
    return sys.maxsize


def _first_line(error: BaseException) -> str:
    """Return what went wrong in one line; the parser's errors quote the damaged header."""
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is Fortran's, and dtype; raise one of `ZIP_ERRORS`."""
    first = np.lib.format.read_magic(stream) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parser, and of headers as Python 2 wrote them
        shape, fortran, dtype = read(stream)
    if any(type(side) is not int or side < 0 for side in shape) or math.prod(shape) >= 2**62:
        raise ValueError(f"it announces the shape {str(shape)[:80]}")
    return shape, fortran, dtype
