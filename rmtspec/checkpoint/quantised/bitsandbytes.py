"""bitsandbytes: NF4 and FP4, blocks along the flat weight, and int8 with a scale for each row."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.quantised.fp8 import table_of
from rmtspec.checkpoint.quantised.layout import (
    Layout,
    Shape,
    member,
    of_kind,
    of_shape,
    refuse,
    small,
)
from rmtspec.checkpoint.quantised.scheme import Scheme
from rmtspec.checkpoint.quantised.unpacked import Unpacked, blocks
from rmtspec.checkpoint.stored import MappedTensor, StoredTensor

#: After the name of the weight: how it was quantised, as JSON in bytes. The type follows.
STATE = ".quant_state.bitsandbytes__"
#: After the name of the weight: the tensors beside it.
MEMBERS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
#: After the name of the layer of an int8 weight: the largest entry of each row, and the order.
SCALES, ORDER = ".SCB", ".weight_format"
_TYPES = {"nf4": "bitsandbytes NF4", "fp4": "bitsandbytes FP4"}
_DTYPES = {"float16": "<f2", "bfloat16": "bfloat16", "float32": "<f4"}


@dataclass(frozen=True, slots=True)
class FourBits(Layout):
    """NF4 or FP4; its sources are the weight, its scales, the table, and for nested scales theirs.

    Scales that are nested are themselves bytes: codes of a table, in blocks with scales of their
    own, to which `offset` is added.
    """

    block: int
    nested_block: int
    offset: float

    def unpacked(self, item: int | None) -> Unpacked:
        """Return the codes in the blocks that they have along the flat weight."""
        weight, absmax, table = (source() for source in self.sources[:3])
        pairs = np.ascontiguousarray(weight).reshape(-1).view(np.uint8)
        codes = np.zeros(len(absmax) * self.block, np.uint8)
        size = min(codes.size, 2 * pairs.size)
        codes[0:size:2], codes[1:size:2] = (pairs >> 4)[: -(-size // 2)], (pairs & 15)[: size // 2]
        return Unpacked(
            codes=codes.reshape(-1, self.block),
            table=table.astype(np.float32),
            scales=self._scales(absmax).reshape(-1, 1),
            row_groups=np.arange(len(absmax)),
            column_groups=np.zeros(self.block, np.intp),
        )

    def _scales(self, absmax: NDArray[Any]) -> NDArray[np.float32]:
        if len(self.sources) == 3:
            return absmax.astype(np.float32)
        nested, table = (source().astype(np.float32) for source in self.sources[3:])
        groups = blocks(len(absmax), self.nested_block)
        scales: NDArray[np.float32] = table[absmax] * nested[groups] + np.float32(self.offset)
        return scales


@dataclass(frozen=True, slots=True)
class Int8(Layout):
    """Whole numbers to 127, the largest of each row; its sources are the weight and the largest."""

    def unpacked(self, item: int | None) -> Unpacked:
        """Return the codes, which are the bytes."""
        weight, largest = (source() for source in self.sources)
        return Unpacked(
            codes=weight.view(np.uint8),
            table=table_of("|i1"),
            scales=(largest.astype(np.float32) / np.float32(127)).reshape(-1, 1),
            row_groups=np.arange(self.shape[0]),
            column_groups=np.zeros(self.shape[1], np.intp),
        )


def four_bits_of(
    name: str, tensors: Mapping[str, StoredTensor], scheme: Scheme, packed: str
) -> Layout:
    """Return the layout of the weight called `name` of four bits, or raise `FileError`.

    `packed` is the name of the tensor with its state.
    """
    weight, absmax, table = (member(tensors, name + end) for end in ("", *MEMBERS[:2]))
    state = _state(tensors[packed])
    method, dtype = _TYPES.get(str(state.get("quant_type"))), _DTYPES.get(str(state.get("dtype")))
    if method is None or dtype is None:
        refuse(f"its state gives the type {state.get('quant_type')!r} of {state.get('dtype')!r}")
    shape, block = _shape(state), _size(state, "blocksize")
    count = math.prod(shape)
    if weight.nbytes != -(-count // 2):
        refuse(f"{weight.name!r} has {weight.nbytes} bytes; expected half of {count} for {shape}")
    of_shape(absmax, (-(-count // block),))
    of_shape(table, (16,))
    of_kind(table, "f")
    nested = name + MEMBERS[2] in tensors
    of_kind(absmax, *(("u", 1) if nested else ("f",)))
    sources: tuple[MappedTensor, ...] = (weight, absmax, table)
    inner, offset = 1, 0.0
    if nested:
        inner, offset = _size(state, "nested_blocksize"), _offset(state)
        scales, codes = (member(tensors, name + end) for end in MEMBERS[2:])
        of_shape(scales, (-(-absmax.shape[0] // inner),))
        of_shape(codes, (256,))
        for tensor in (scales, codes):
            of_kind(tensor, "f")
        sources = (*sources, scales, codes)
    return FourBits(
        method, shape, dtype=scheme.dtype or dtype, sources=sources, block=block,
        nested_block=inner, offset=offset,
    )  # fmt: skip


def int8_of(layer: str, tensors: Mapping[str, StoredTensor], scheme: Scheme) -> Layout:
    """Return the layout of the weight of a layer in int8, or raise `FileError`."""
    weight, largest = member(tensors, f"{layer}.weight"), member(tensors, layer + SCALES)
    of_kind(weight, "i", 1)
    of_kind(largest, "f")
    if len(weight.shape) != 2 or 0 in weight.shape:
        refuse(f"{weight.name!r} is {weight.shape}; expected two dimensions")
    of_shape(largest, (weight.shape[0],))
    if layer + ORDER in tensors:
        stored = member(tensors, layer + ORDER)
        of_kind(stored, "iu")
        order = small(stored)
        if order.size != 1 or int(order.reshape(-1)[0]) != 0:
            refuse(f"{layer + ORDER!r} is {order.tolist()}; expected 0, row by row")
    return Int8(
        "bitsandbytes int8", weight.shape, dtype=scheme.dtype or "<f2", sources=(weight, largest)
    )


def _state(tensor: StoredTensor) -> Mapping[str, Any]:
    """Return what the state of a weight says."""
    packed = member({tensor.name: tensor}, tensor.name)
    of_kind(packed, "u", 1)
    of_shape(packed, (packed.nbytes,))
    try:
        state = json.loads(small(packed).tobytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        refuse(f"{tensor.name!r} is not JSON ({error})")
    if not isinstance(state, Mapping):
        refuse(f"{tensor.name!r} is {str(state)[:60]!r}; expected an object of JSON")
    return state


def _size(state: Mapping[str, Any], key: str) -> int:
    size = state.get(key)
    if type(size) is not int or not 1 <= size <= 2**20:
        refuse(f"its state gives the {key} {size!r}; expected a whole number of 1 to 2^20")
    return size


def _offset(state: Mapping[str, Any]) -> float:
    given: Any = state.get("nested_offset")
    if type(given) is not float or not math.isfinite(given):
        refuse(f"its state gives the nested_offset {given!r}; expected a number")
    return float(given)


def _shape(state: Mapping[str, Any]) -> Shape:
    sides = state.get("shape")
    given = sides if isinstance(sides, list) else []
    shape = tuple(side for side in given if type(side) is int and 0 < side < 2**40)
    if not 1 <= len(shape) == len(given) <= 5:
        words = "expected up to 5 positive whole numbers"
        refuse(f"its state gives the shape {str(sides)[:60]}; {words}")
    return shape
