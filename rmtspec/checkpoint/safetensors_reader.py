"""Reading and checking the header of a .safetensors file.

The safetensors package cannot return bfloat16 or float8 tensors as numpy arrays, and does not say
where a tensor is in the file. Headers are therefore read here, with errors that name the tensor at
fault; a header is accepted if the package accepts it.
"""

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

from rmtspec._files.reading import open_regular
from rmtspec.checkpoint.stored import MappedTensor, named_dtype
from rmtspec.errors import FileError

#: The format's own limit, in bytes.
_LONGEST_HEADER = 100_000_000
#: The header's key for free text; no tensor can have this name.
METADATA = "__metadata__"
#: The format's names of dtypes, each with the name in numpy or ml_dtypes.
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
    "BOOL": "|b1", "C64": "<c8",
}  # fmt: skip


def stored_tensors(file: Path) -> list[MappedTensor]:
    """Return the tensors that the header of `file` lists, or raise if it is not valid."""
    header, begin, size = _header(file)
    header.pop(METADATA, None)
    tensors = [_tensor(file, name, entry, begin) for name, entry in header.items()]
    _check_spans(file, tensors, size)
    _check_by_reference(file)
    return tensors


def stored_metadata(file: Path) -> dict[str, str]:
    """Return the free text of the file by key; some loaders need it ("format": "pt")."""
    entries = _header(file)[0].get(METADATA)
    if not isinstance(entries, dict):
        return {}
    return {key: value for key, value in entries.items() if isinstance(value, str)}


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header, the offset of the first tensor, and the size of the file."""
    with open_regular(file) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        too_long = 8 + length > size
        zipped = too_long and start.startswith(b"PK\x03\x04")
        if size < 8 or length > _LONGEST_HEADER or zipped:
            raise FileError(f"{file} is not a .safetensors file{looks_like(start)}")
        if too_long:
            raise FileError(
                f"{file} is truncated or not a .safetensors file: it has {size} bytes, but its "
                f"header alone announces {8 + length}. Copy or save the file again."
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"{file} is damaged or not a .safetensors file: its header is not JSON ({error}). "
            "Copy or save the file again."
        ) from None
    if not isinstance(header, dict):
        raise FileError(
            f"{file} is not a .safetensors file: its header is not a JSON object. Save it again."
        )
    return header, 8 + length, size


def looks_like(start: bytes) -> str:
    """Say what a file with these first bytes is instead, and what to do about it."""
    if start.startswith(b"PK"):
        return ": it is a zip archive. If numpy wrote it, name it .npz."
    if start.startswith(b"\x93NUMPY"):
        return ": it is a .npy file. Give it that suffix."
    if start.startswith(b"version "):
        return ": it is a Git LFS pointer, not the file itself. Fetch the file: git lfs pull."
    if start.startswith(b"\x80"):
        return ": it is a pickle, which is never opened. Save it in another format."
    if not start:
        return ": it is empty. Copy or save the file again."
    return ": its first bytes match no known format. Save it in that format, or rename it."


def _tensor(file: Path, name: str, entry: Any, begin: int) -> MappedTensor:
    """Return the tensor that an entry of the header describes, if it is consistent."""
    if isinstance(entry, list) and len(entry) == 3:  # as the package reads a list
        entry = dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True))
    try:
        dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if isinstance(dtype, dict) and list(dtype.values()) == [None]:  # as the package reads it
            (dtype,) = dtype
        good = isinstance(dtype, str) and isinstance(shape, list)
        good = good and all(type(n) is int and 0 <= n < 2**62 for n in (*shape, first, last))
    except (TypeError, KeyError, ValueError):
        good = False
    if not (good and first <= last):
        raise FileError(
            f"{file} is damaged: the entry of {name!r} in its header is {str(entry)[:80]}; "
            "expected dtype, shape and two ascending data_offsets. Save the file again."
        )
    numpy_name = DTYPES.get(dtype, "")
    tensor = MappedTensor(
        path=str(file), name=name, dtype=dtype, numpy_name=numpy_name, shape=tuple(shape),
        nbytes=last - first, begin=begin + first,
    )  # fmt: skip
    if numpy_name:
        needed = math.prod(shape) * named_dtype(numpy_name).itemsize
        if needed != last - first:
            raise FileError(
                f"{file} is damaged: the tensor {name!r} has {last - first} bytes, but its shape "
                f"{shape} of {dtype} needs {needed}. Save the file again."
            )
    return tensor


def _check_spans(file: Path, tensors: list[MappedTensor], size: int) -> None:
    """Raise if a tensor extends past the end of the file, or if tensors overlap."""
    for tensor in tensors:
        if tensor.end > size:
            raise FileError(
                f"{file} is truncated: the tensor {tensor.name!r} ends at byte {tensor.end}, but "
                f"the file has {size}. Copy or save the file again."
            )
    filled = sorted((t.begin, t.end, t.name) for t in tensors if t.nbytes)
    for (_, end, name), (begin, _, other) in itertools.pairwise(filled):
        if begin < end:
            raise FileError(
                f"{file} is damaged: the tensors {name!r} and {other!r} overlap. Save it again."
            )


def _check_by_reference(file: Path) -> None:
    """Raise unless the safetensors package opens the file; it reads the header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise FileError(
            f"{file} is damaged: the safetensors package refuses its header ({reason}). Copy or "
            "save the file again; if it was written by a later version of that package, update it: "
            "pip install --upgrade safetensors."
        ) from None
