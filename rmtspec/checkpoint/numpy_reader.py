"""Reading the headers of numpy's .npy and .npz files. Nothing is ever unpickled."""

import math
import os
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from rmtspec.checkpoint.safetensors_reader import looks_like
from rmtspec.checkpoint.stored import ZIP_ERRORS, MappedTensor, ZippedTensor
from rmtspec.errors import FileError
from rmtspec.terms import Why

_MAGIC = b"\x93NUMPY"


def npy_tensor(file: Path) -> MappedTensor:
    """Return the array of a .npy file, named after the file, or raise if the file is damaged."""
    with file.open("rb") as stream:
        start = stream.read(8)
        stream.seek(0)
        if not start.startswith(_MAGIC):
            raise FileError(f"{file} is not a .npy file{looks_like(start)}")
        try:
            shape, fortran, dtype = _header(stream)
        except (ValueError, EOFError) as error:
            raise FileError(
                f"{file} has a damaged header: {error}. Copy or save the file again."
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
    except zipfile.BadZipFile as error:
        with file.open("rb") as stream:
            start = stream.read(8)
        if start.startswith(b"PK"):
            raise FileError(
                f"{file} is truncated or damaged: {error}. Copy or save the file again."
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
    except ZIP_ERRORS as error:
        return Why.DAMAGED.words(error=error)
    if dtype.hasobject:
        return Why.PICKLED.words()
    return ZippedTensor(
        path=str(file), name=member.filename.removesuffix(".npy"), dtype=dtype.str,
        numpy_name=dtype.str, shape=shape, nbytes=math.prod(shape) * dtype.itemsize,
        member=member.filename, checksum=member.CRC,
    )  # fmt: skip


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    if np.lib.format.read_magic(stream) == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)
