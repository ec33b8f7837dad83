"""Reading the headers of Flax's .msgpack files, so that one array at a time is in memory.

flax.serialization writes nested maps, whose arrays are extensions of the type 1: an array of the
shape, the name of the dtype and the bytes. Arrays of over a gigabyte are maps of chunks.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.outputs_first import outputs_first
from rmtspec.checkpoint.safetensors_reader import looks_like
from rmtspec.checkpoint.stored import MappedTensor, StoredTensor, named_dtype
from rmtspec.errors import FileError
from rmtspec.terms import Why

_DEEPEST = 64
_ARRAY = 1
_CHUNKED = "__msgpack_chunked_array__"
#: Keys of a training state that hold no weights.
_STATE = ("opt_state", "optimizer", "opt_states")
_FLOATS = ("float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, slots=True)
class ChunkedTensor(StoredTensor):
    """An array that is stored in pieces."""

    pieces: tuple[MappedTensor, ...]

    def _load(self) -> NDArray[Any]:
        """Return the array, put together."""
        return np.concatenate([piece().reshape(-1) for piece in self.pieces]).reshape(self.shape)


def flax_tensors(file: Path) -> tuple[list[StoredTensor], list[dict[str, str]]]:
    """Return the arrays of a .msgpack file, and what is not read with the reason."""
    with file.open("rb") as stream:
        start = stream.read(8)
        if not start or not (start[0] >> 4 == 8 or start[0] in (0xDE, 0xDF)):
            raise FileError(f"{file} is not a file of Flax{looks_like(start)}")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            reader = _Reader(file, content)
            try:
                reader.entries("", 0)
            except (struct.error, IndexError, UnicodeDecodeError):
                raise FileError(
                    f"{file} is truncated or damaged at byte {reader.at} of {len(content)}. Copy "
                    "or save the file again."
                ) from None
    return outputs_first(reader.tensors), reader.skipped


class _Reader:
    """Walks through the maps; notes where each array is."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self._file, self._content, self.at = file, content, 0
        self.tensors: dict[str, StoredTensor] = {}
        self.skipped: list[dict[str, str]] = []

    def entries(self, prefix: str, depth: int) -> None:
        """Read a map and all below it."""
        if depth > _DEEPEST:
            raise self._damaged(f"its maps are nested more than {_DEEPEST} deep")
        count = self._length({0xDE: ">H", 0xDF: ">I"}, 0x80, 0x0F)
        if count > len(self._content) - self.at:
            raise self._damaged(f"a map announces {count} entries, more than its bytes can hold")
        start = self.at
        for index in range(count):
            key = self._text()
            if index == 0 and key == _CHUNKED:
                self.at = start
                self._chunked(prefix, count)
                return
            name = f"{prefix}.{key}" if prefix else key
            if key in _STATE and not prefix:
                self.skipped.append({"name": name, "reason": Why.OPTIMIZER_STATE.words()})
                kept, left = dict(self.tensors), list(self.skipped)
                self._value(name, depth)
                self.tensors, self.skipped = kept, left
            else:
                self._value(name, depth)

    def _value(self, name: str, depth: int) -> None:
        first = self._content[self.at]
        if first >> 4 == 8 or first in (0xDE, 0xDF):
            self.entries(name, depth + 1)
        elif 0xC7 <= first <= 0xC9 or 0xD4 <= first <= 0xD8:
            kind, end = self._extension()
            if kind == _ARRAY:
                self._keep(name, self._array(name, end))
            else:
                self.skipped.append({"name": name, "reason": Why.NUMBER.words()})
            self.at = end
        else:
            self._pass(depth)
            self.skipped.append({"name": name, "reason": Why.NUMBER.words()})

    def _keep(self, name: str, tensor: StoredTensor) -> None:
        if name in self.tensors:
            raise self._damaged(f"two arrays are named {name!r}")
        self.tensors[name] = tensor

    def _chunked(self, name: str, count: int) -> None:
        """Read {_CHUNKED: True, "shape": {"0": ..}, "chunks": {"0": array, ..}}."""
        shape: list[int] = []
        pieces: list[MappedTensor] = []
        for _ in range(count):
            key = self._text()
            if key in ("shape", "chunks"):
                for _ in range(self._length({0xDE: ">H", 0xDF: ">I"}, 0x80, 0x0F)):
                    self._text()  # "0", "1", ...: in order
                    if key == "shape":
                        shape.append(self._whole())
                    else:
                        _, end = self._extension()
                        pieces.append(self._array(name, end))
                        self.at = end
            else:
                self._pass(0)
        if not pieces or sum(math.prod(p.shape) for p in pieces) != math.prod(shape):
            raise self._damaged(f"the pieces of {name!r} do not add up to its shape {shape}")
        first = pieces[0]
        self._keep(name, ChunkedTensor(
            path=first.path, name=name, dtype=first.dtype, numpy_name=first.numpy_name,
            shape=tuple(shape), nbytes=sum(piece.nbytes for piece in pieces), pieces=tuple(pieces),
        ))  # fmt: skip

    def _array(self, name: str, end: int) -> MappedTensor:
        """Return the array in an extension that ends at `end`."""
        if self._length({0xDC: ">H", 0xDD: ">I"}, 0x90, 0x0F) != 3:
            raise self._damaged(f"{name!r} is not an array as Flax writes it")
        sides = self._length({0xDC: ">H", 0xDD: ">I"}, 0x90, 0x0F)
        if sides > 32:
            raise self._damaged(f"{name!r} has {sides} dimensions")
        shape = tuple(self._whole() for _ in range(sides))
        dtype = self._text()
        nbytes = self._length({0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}, -1, 0)
        known = dtype in _FLOATS or dtype.startswith(("int", "uint", "bool"))
        try:
            size = named_dtype(dtype).itemsize if known else 0
        except (TypeError, AttributeError):
            size = 0
        if self.at + nbytes > end or end > len(self._content):
            raise self._damaged(f"{name!r} runs past its end")
        if size and math.prod(shape) * size != nbytes:
            raise self._damaged(f"{name!r} has {nbytes} bytes; {shape} of {dtype} needs others")
        return MappedTensor(
            path=str(self._file), name=name, dtype=dtype, numpy_name=dtype if size else "",
            shape=shape, nbytes=nbytes, begin=self.at,
        )  # fmt: skip

    def _extension(self) -> tuple[int, int]:
        """Return the type of an extension and the byte after it."""
        first = self._byte()
        if 0xD4 <= first <= 0xD8:
            length = 1 << (first - 0xD4)
        elif first in (0xC7, 0xC8, 0xC9):
            length = self._number({0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}[first])
        else:
            raise self._damaged(f"byte {self.at - 1} begins no array")
        kind = self._number(">b")
        if self.at + length > len(self._content):
            raise IndexError
        return kind, self.at + length

    def _pass(self, depth: int) -> None:
        """Go past a value that is no array: a number, a text, nothing, a list."""
        first = self._content[self.at]
        if depth > 2 * _DEEPEST:
            raise self._damaged("its lists are nested too deep")
        if first >> 4 == 9 or first in (0xDC, 0xDD):
            for _ in range(self._length({0xDC: ">H", 0xDD: ">I"}, 0x90, 0x0F)):
                self._pass(depth + 1)
        elif first >> 4 == 8 or first in (0xDE, 0xDF):
            for _ in range(2 * self._length({0xDE: ">H", 0xDF: ">I"}, 0x80, 0x0F)):
                self._pass(depth + 1)
        elif first >> 5 == 5 or first in (0xD9, 0xDA, 0xDB):
            self._text()
        elif first in (0xC4, 0xC5, 0xC6):
            length = self._length({0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}, -1, 0)
            self.at += length
        elif first in (0xCA, 0xCB):
            self.at += 5 if first == 0xCA else 9
        elif first in (0xC0, 0xC2, 0xC3):
            self.at += 1
        elif 0xC7 <= first <= 0xC9 or 0xD4 <= first <= 0xD8:
            self.at = self._extension()[1]
        else:
            self._whole()

    def _whole(self) -> int:
        first = self._byte()
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 256
        codes = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h",
                 0xD2: ">i", 0xD3: ">q"}  # fmt: skip
        if first not in codes:
            raise self._damaged(f"byte {self.at - 1} begins no whole number")
        return self._number(codes[first])

    def _text(self) -> str:
        first = self._content[self.at]
        if first >> 5 == 5:
            self.at += 1
            length = first & 0x1F
        else:
            length = self._length({0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}, -1, 0)
        if self.at + length > len(self._content):
            raise IndexError
        raw = self._content[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8")

    def _length(self, codes: dict[int, str], short: int, mask: int) -> int:
        first = self._byte()
        if short >= 0 and first & ~mask & 0xFF == short:
            return first & mask
        if first not in codes:
            raise self._damaged(f"byte {self.at - 1} is {first:#x}, which is not expected there")
        return self._number(codes[first])

    def _byte(self) -> int:
        self.at += 1
        return self._content[self.at - 1]

    def _number(self, code: str) -> int:
        (value,) = struct.unpack_from(code, self._content, self.at)
        self.at += struct.calcsize(code)
        return int(value)

    def _damaged(self, what: str) -> FileError:
        return FileError(f"{self._file} is damaged: {what}. Copy or save the file again.")
