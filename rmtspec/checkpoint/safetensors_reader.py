"""Reading the header of a .safetensors file, checked.

The safetensors package cannot give bfloat16 or float8 tensors to numpy, and its errors do not
say which tensor is at fault; the format is small enough to read here.
"""

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

from rmtspec.checkpoint.stored import MappedTensor, named_dtype
from rmtspec.errors import FileError

#: The format's own limit.
_LONGEST_HEADER = 100_000_000

#: The header's key for free text; no tensor can have this name.
METADATA = "__metadata__"

#: Names of the format's dtypes, as numpy or ml_dtypes calls them.
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
    "C64": "<c8",
}


def stored_tensors(file: Path) -> list[MappedTensor]:
    """Return the tensors that the header of `file` lists, or raise where it cannot be right."""
    header, begin, size = _header(file)
    header.pop(METADATA, None)
    tensors = [_tensor(file, name, entry, begin) for name, entry in header.items()]
    _check_spans(file, tensors, size)
    return tensors


def stored_metadata(file: Path) -> dict[str, str]:
    """Return the file's free text by key; loaders of some frameworks want it ("format": "pt")."""
    found = _header(file)[0].get(METADATA)
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header, where the entries begin, and the size of the file."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        too_long = 8 + length > size
        zipped = too_long and start.startswith(b"PK\x03\x04")
        if size < 8 or length > _LONGEST_HEADER or zipped:
            raise FileError(f"{file} is no .safetensors file{looks_like(start)}")
        if too_long:
            raise FileError(
                f"{file} is truncated or no .safetensors file: {size} bytes, and its header alone "
                f"announces {8 + length}. Copy or save the file again."
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"{file} is damaged or no .safetensors file: its header is no JSON ({error}). "
            "Copy or save the file again."
        ) from None
    if not isinstance(header, dict):
        raise FileError(
            f"{file} is no .safetensors file: its header is no JSON object. Save it again."
        )
    return header, 8 + length, size


def looks_like(start: bytes) -> str:
    """Return what a file that begins so is instead, and what to do about it."""
    if start.startswith(b"PK"):
        return ": it is a zip archive. If it is numpy's, name it .npz."
    if start.startswith(b"\x93NUMPY"):
        return ": it is a .npy file. Name it so."
    if start.startswith(b"version "):
        return ": it is a pointer of Git LFS, not the file itself. Fetch that: git lfs pull."
    if start.startswith(b"\x80"):
        return ": it is pickled, and never opened here. Save it in another format."
    if not start:
        return ": it is empty. Copy or save the file again."
    return ": its first bytes are of no format known here. Save it in that format, or rename it."


def _tensor(file: Path, name: str, entry: Any, begin: int) -> MappedTensor:
    """Return what the header says of a tensor, if it is consistent."""
    try:
        dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        good = isinstance(dtype, str) and isinstance(shape, list) and len(shape) <= 64
        good = good and all(type(n) is int and 0 <= n < 2**62 for n in (*shape, first, last))
    except (TypeError, KeyError, ValueError):
        good = False
    if not (good and first <= last):
        raise FileError(
            f"{file} is damaged: its header's entry of {name!r} is {str(entry)[:80]}; expected "
            "dtype, shape and two ascending data_offsets. Save the file again."
        )
    numpy_name = DTYPES.get(dtype, "")
    tensor = MappedTensor(
        path=str(file), name=name, dtype=dtype, numpy_name=numpy_name, shape=tuple(shape),
        begin=begin + first, end=begin + last,
    )  # fmt: skip
    if numpy_name:
        needed = math.prod(shape) * named_dtype(numpy_name).itemsize
        if needed != last - first:
            raise FileError(
                f"{file} is damaged: the tensor {name!r} has {last - first} bytes, and its shape "
                f"{shape} of {dtype} needs {needed}. Save the file again."
            )
    return tensor


def _check_spans(file: Path, tensors: list[MappedTensor], size: int) -> None:
    """Raise where tensors lie past the end of the file, or on each other."""
    for tensor in tensors:
        if tensor.end > size:
            raise FileError(
                f"{file} is truncated: the tensor {tensor.name!r} ends at byte {tensor.end}, and "
                f"the file has {size}. Copy or save the file again."
            )
    filled = sorted((t.begin, t.end, t.name) for t in tensors if t.end > t.begin)
    for (_, end, name), (begin, _, other) in itertools.pairwise(filled):
        if begin < end:
            raise FileError(
                f"{file} is damaged: the tensors {name!r} and {other!r} overlap. Save it again."
            )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name appears twice")
    return found
