"""Reading GGUF files: each tensor dequantised when it is asked for."""

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.gguf_header import TensorInfo, gguf_header
from rmtspec.checkpoint.gguf_steps import EQUIDISTANT, steps_in
from rmtspec.checkpoint.stored import StoredTensor, named_dtype, read_bytes
from rmtspec.errors import FileError, MissingDependencyError
from rmtspec.terms import Why

#: Types that are not quantised, with the name of the dtype.
_PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "F64": "<f8", "I8": "|i1", "I16": "<i2",
          "I32": "<i4", "I64": "<i8"}  # fmt: skip
#: Entries that are dequantised at a time: the gguf package makes several arrays of that size.
_ENTRIES = 2**16


@dataclass(frozen=True, slots=True)
class GgufTensor(StoredTensor):
    """A tensor in a GGUF file.

    Attributes
    ----------
    begin, stored_bytes : int
        The bytes of the file that hold it.
    heads : int
        Number of attention heads whose rows are read in the order of the original model rather than
        in that of llama.cpp, which pairs the two halves of each head; 0 reads rows as they are.
    """

    begin: int
    stored_bytes: int
    heads: int = 0

    @property
    def quantised(self) -> bool:
        """Whether its entries are not numbers of their own."""
        return self.dtype not in _PLAIN

    def raw(self) -> NDArray[np.uint8]:
        """Return its bytes as stored."""
        return self.piece(0, self.stored_bytes)

    def piece(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Return some of its bytes as stored, from the byte `start` of the tensor on."""
        return read_bytes(self.path, self.name, self.begin + start, nbytes)

    def _load(self) -> NDArray[Any]:
        """Return the values: float32 if quantised, and otherwise as stored."""
        if not self.quantised:
            values = np.require(self.raw().view(named_dtype(self.numpy_name)), requirements="A")
        else:
            values = self._dequantised()
        return self._ordered(values.reshape(self.shape))

    def steps(self) -> NDArray[Any] | None:
        """Return the distance of neighbouring values at each entry; None if it is not known."""
        if self.dtype not in EQUIDISTANT or not self.shape:
            return None
        steps = steps_in(self.dtype, np.asarray(self.raw()).reshape(-1, _block(self.dtype)[1]))
        each = math.prod(self.shape) // max(steps.size, 1)
        return self._ordered(steps.reshape(-1).repeat(each).reshape(self.shape))

    def _dequantised(self) -> NDArray[np.float32]:
        from gguf import GGMLQuantizationType, dequantize

        kind, (per_block, size) = GGMLQuantizationType[self.dtype], _block(self.dtype)
        blocks = np.asarray(self.raw()).reshape(-1, size)
        values = np.empty((len(blocks), per_block), np.float32)
        count = _ENTRIES // per_block
        with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale shows as not finite
            for start in range(0, len(blocks), count):
                part = slice(start, start + count)
                values[part] = dequantize(blocks[part].reshape(1, -1), kind).reshape(-1, per_block)
        return values

    def _ordered(self, values: NDArray[Any]) -> NDArray[Any]:
        if not self.heads:
            return values
        rest = self.shape[1:]
        pairs = values.reshape(self.heads, -1, 2, *rest)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(self.shape)


def gguf_tensors(file: Path) -> tuple[list[GgufTensor], list[dict[str, str]], dict[str, str]]:
    """Return the tensors of a GGUF file, which cannot be read and why, and its metadata.

    Raises MissingDependencyError where the gguf package is not installed.
    """
    try:
        from gguf import GGMLQuantizationType
    except ImportError:
        raise MissingDependencyError(
            f"{file} needs the package gguf, which is not installed: pip install 'rmtspec[gguf]'."
        ) from None
    header = gguf_header(file)
    tensors, skipped = [], []
    for info in header.tensors:
        try:
            kind = GGMLQuantizationType(info.kind).name
        except ValueError:
            kind = ""
        if kind not in _PLAIN and not (kind and _can_be_dequantised(kind)):
            named = kind or f"type {info.kind}"
            reason = Why.UNSUPPORTED.words(dtype=named, hint=" by the gguf package; update it")
            skipped.append({"name": info.name, "reason": reason})
            continue
        tensors.append(_tensor(file, info, kind, header.size))
    _check_overlaps(file, tensors)
    counts = Counter(tensor.dtype for tensor in tensors)
    about = {
        "GGUF.version": str(header.version),
        "GGUF.types": ", ".join(f"{count} {kind}" for kind, count in counts.most_common()),
        **{key: str(value)[:200] for key, value in header.metadata.items()},
    }
    return tensors, skipped, about


def _tensor(file: Path, info: TensorInfo, kind: str, size: int) -> GgufTensor:
    per_block, block_bytes = _block(kind)
    entries = math.prod(info.shape)
    row = info.shape[-1] if info.shape else 1
    stored = entries // per_block * block_bytes
    numpy_name = _PLAIN.get(kind, "<f4")
    if row % per_block:
        raise FileError(
            f"{file} is damaged: the rows of {info.name!r} have {row} entries, no multiple of the "
            f"{per_block} of a block of {kind}. Copy or download the file again."
        )
    if info.begin + stored > size:
        raise FileError(
            f"{file} is truncated: the tensor {info.name!r} ends at byte {info.begin + stored}, "
            f"but the file has {size}. Copy or download the file again."
        )
    return GgufTensor(
        path=str(file), name=info.name, dtype=kind, numpy_name=numpy_name, shape=info.shape,
        nbytes=entries * named_dtype(numpy_name).itemsize, begin=info.begin, stored_bytes=stored,
    )  # fmt: skip


def _block(kind: str) -> tuple[int, int]:
    """Return the number of entries and of bytes in a block of a type."""
    from gguf import GGMLQuantizationType
    from gguf.constants import GGML_QUANT_SIZES

    entries, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(entries), int(size)


def _can_be_dequantised(kind: str) -> bool:
    from gguf import GGMLQuantizationType, dequantize

    try:
        dequantize(np.zeros((1, _block(kind)[1]), np.uint8), GGMLQuantizationType[kind])
    except (RuntimeError, KeyError):  # not implemented is a runtime error
        return False
    return True


def _check_overlaps(file: Path, tensors: list[GgufTensor]) -> None:
    filled = sorted((t.begin, t.begin + t.stored_bytes, t.name) for t in tensors if t.stored_bytes)
    for (_, end, name), (begin, _, other) in itertools.pairwise(filled):
        if begin < end:
            raise FileError(
                f"{file} is damaged: the tensors {name!r} and {other!r} overlap. Copy or download "
                "the file again."
            )
