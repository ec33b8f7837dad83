"""Reading and checking the header of a GGUF file: metadata, and where each tensor is.

The reader of the gguf package trusts the lengths in a file: one number makes it allocate gigabytes.
"""

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rmtspec.checkpoint.safetensors_reader import looks_like
from rmtspec.errors import FileError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
#: Formats of single values by their number in the file; 8 is a string and 9 an array.
_VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
           12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
#: Arrays of more values than this (vocabularies) are not kept.
_KEPT = 256
_LONGEST_NAME = 1024
_MOST_DIMENSIONS = 8
_DEFAULT_ALIGNMENT = 32


class TensorInfo(NamedTuple):
    """A tensor as the header describes it; `begin` is its first byte in the file."""

    name: str
    shape: tuple[int, ...]  # in the order of numpy: the last one is contiguous
    kind: int
    begin: int


@dataclass(slots=True)
class GgufHeader:
    """The header of a file.

    Attributes
    ----------
    version : int
        Of the format.
    metadata : dict
        Values by key; of long arrays (vocabularies), only the number of values.
    tensors : list of TensorInfo
        In the order of the file.
    size : int
        Of the file, in bytes.
    """

    version: int
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: list[TensorInfo] = field(default_factory=list)
    size: int = 0


def gguf_header(file: Path) -> GgufHeader:
    """Return the header of a GGUF file, or raise `FileError` if it is not valid."""
    with file.open("rb") as stream:
        start = stream.read(8)
        if start[:4] != _MAGIC:
            raise FileError(f"{file} is not a GGUF file{looks_like(start)}")
        if len(start) < 8:
            raise FileError(f"{file} is truncated: it has {len(start)} bytes. Copy it again.")
        version = int.from_bytes(start[4:], "little")
        if version not in _VERSIONS:
            if int.from_bytes(start[4:], "big") in _VERSIONS:
                raise FileError(
                    f"{file} is a big-endian GGUF file; expected a little-endian one, as all "
                    "common models are. Convert it with gguf's gguf-convert-endian."
                )
            raise FileError(
                f"{file} is a GGUF file of version {version}; expected 2 or 3. Convert the model "
                "again with a current llama.cpp, or update rmtspec."
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(file, content).header(version)


class _Reader:
    """Reads values one after the other, none beyond the end of the file."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self._file, self._content, self._at = file, content, 8
        self._size = len(content)

    def header(self, version: int) -> GgufHeader:
        found = GgufHeader(version, size=self._size)
        n_tensors, n_values = self._number("Q"), self._number("Q")
        self._fits(n_tensors, 24, "tensors")
        self._fits(n_values, 13, "metadata values")
        for _ in range(n_values):
            key = self._string(_LONGEST_NAME)
            if key in found.metadata:
                raise self._damaged(f"the metadata key {key!r} appears twice")
            found.metadata[key] = self._value(self._number("I"))
        infos = [self._info() for _ in range(n_tensors)]
        alignment = found.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"its alignment is {alignment!r}; expected a power of two")
        begin = -(-self._at // alignment) * alignment
        found.tensors = [info._replace(begin=begin + info.begin) for info in infos]
        names = {info.name for info in infos}
        if len(names) < len(infos):
            raise self._damaged("two tensors have the same name")
        return found

    def _info(self) -> TensorInfo:
        name = self._string(_LONGEST_NAME)
        n_dimensions = self._number("I")
        if n_dimensions > _MOST_DIMENSIONS:
            raise self._damaged(f"the tensor {name!r} has {n_dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(n_dimensions))[::-1]
        return TensorInfo(name, shape, kind=self._number("I"), begin=self._number("Q"))

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            if depth:
                raise self._damaged("it has an array of arrays")
            return self._array()
        if kind not in _VALUES:
            raise self._damaged(f"a metadata value has the unknown type {kind}")
        return self._number(_VALUES[kind])

    def _array(self) -> Any:
        kind, count = self._number("I"), self._number("Q")
        width = struct.calcsize("<" + _VALUES[kind]) if kind in _VALUES else 8
        self._fits(count, width, "values in an array")
        if count <= _KEPT:
            return [self._value(kind, depth=1) for _ in range(count)]
        if kind in _VALUES:
            self._at += count * width
        elif kind == _STRING:
            self._skip_strings(count)
        else:
            raise self._damaged(f"an array has values of the type {kind}")
        return count

    def _skip_strings(self, count: int) -> None:
        content, size, read = self._content, self._size, struct.Struct("<Q").unpack_from
        at = self._at
        for _ in range(count):
            if at + 8 > size:
                raise self._short()
            at += 8 + read(content, at)[0]
        self._at = at
        self._needs(0)

    def _number(self, code: str) -> Any:
        width = struct.calcsize("<" + code)
        self._needs(width)
        (value,) = struct.unpack_from("<" + code, self._content, self._at)
        self._at += width
        return value

    def _string(self, longest: int | None = None) -> str:
        length = self._number("Q")
        if longest is not None and length > longest:
            raise self._damaged(f"a name has {length} bytes; expected at most {longest}")
        self._needs(length)
        raw = self._content[self._at : self._at + length]
        self._at += length
        return raw.decode("utf-8", "replace")

    def _fits(self, count: int, least: int, what: str) -> None:
        if count * least > self._size - self._at:
            raise self._damaged(
                f"it announces {count} {what}, more than its {self._size} bytes can hold"
            )

    def _needs(self, count: int) -> None:
        if self._at + count > self._size:
            raise self._short()

    def _short(self) -> FileError:
        return FileError(
            f"{self._file} is truncated or damaged: its header runs past its end, byte "
            f"{self._size}. Copy or download the file again."
        )

    def _damaged(self, what: str) -> FileError:
        return FileError(f"{self._file} is damaged: {what}. Copy or download the file again.")
