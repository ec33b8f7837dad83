"""compressed-tensors: packed or plain integers, floats of 8 bits, and blocks of floats of 4 bits.

The config has groups of layers, each with the arguments of its weights. Which group a layer is in
is told by the tensors alone: those arguments that fit them, if only one set does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.quantised.fp8 import ScaledBytes, float_name
from rmtspec.checkpoint.quantised.gptq import groups_in
from rmtspec.checkpoint.quantised.layout import (
    E2M1,
    Layout,
    grid,
    matrix_of,
    member,
    numbers,
    of_kind,
    of_shape,
    refuse,
    small,
)
from rmtspec.checkpoint.quantised.packing import (
    stream_words,
    unpacked_pairs,
    unpacked_stream,
    unpacked_words,
    whole_words,
)
from rmtspec.checkpoint.quantised.scheme import Scheme
from rmtspec.checkpoint.quantised.unpacked import Unpacked, blocks
from rmtspec.checkpoint.stored import MappedTensor, StoredTensor
from rmtspec.errors import FileError

_Tensors = Mapping[str, StoredTensor]
#: After the name of the layer: the tensors of a weight, and what is no part of it.
PACKED = ".weight_packed"
MEMBERS = (PACKED, ".weight", ".weight_scale", ".weight_zero_point", ".weight_shape",
           ".weight_g_idx", ".weight_global_scale")  # fmt: skip
HELPERS = (".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale",
           ".output_zero_point")  # fmt: skip
#: Formats whose weights have a byte for each entry.
_PLAIN = ("int-quantized", "float-quantized", "naive-quantized", "mxfp8-quantized")
#: Formats of pairs of floats of 4 bits: what a report calls them, and the entries of a block.
_PAIRS = {"nvfp4-pack-quantized": ("NVFP4", 16), "mxfp4-pack-quantized": ("MXFP4", 32)}


class _Arguments(NamedTuple):
    """How the weights of a group of layers were quantised."""

    format: str
    bits: int
    kind: str
    symmetric: bool
    strategy: str
    block: tuple[int, int] | None  # that shares a scale; None for a row, or the whole


@dataclass(frozen=True, slots=True)
class PackedIntegers(Layout):
    """Integers in words; its sources are the words, the scales and whatever else there is.

    `streamed` says whether a code may begin in one word and end in the next.
    """

    bits: int
    streamed: bool
    block: tuple[int, int] | None
    zeros: MappedTensor | None
    order: MappedTensor | None

    def unpacked(self, item: int | None) -> Unpacked:
        """Return the codes, whose table ends as far below 0 as above."""
        words, scales = self.sources[0](), self.sources[1]
        found = matrix_of(numbers(scales()))
        sides = (self.shape[0], self.shape[1])
        row_groups, column_groups = grid(sides, scales, self.block)
        if self.order is not None:
            named = self.order()
            if named.size and named.min() >= 0:  # -1: not used
                column_groups = groups_in(self.order, found.shape[1])
        low = 2 ** (self.bits - 1)
        return Unpacked(
            codes=self._codes(words, self.shape[1]),
            table=np.arange(2**self.bits, dtype=np.float32) - np.float32(low),
            scales=found,
            row_groups=row_groups,
            column_groups=column_groups,
            zeros=self._zeros(found.shape, low),
        )

    def _zeros(self, shape: tuple[int, ...], low: int) -> NDArray[np.float32] | None:
        if self.zeros is None:
            return None
        stored = self.zeros()
        if self.zeros.numpy_name != "<i4":
            return matrix_of(stored.astype(np.float32))
        codes = self._codes(np.ascontiguousarray(stored.T), shape[0])  # packed along the rows
        return codes.T.astype(np.float32) - np.float32(low)

    def _codes(self, words: NDArray[Any], count: int) -> NDArray[np.uint8]:
        unpack = unpacked_stream if self.streamed else unpacked_words
        return unpack(words, self.bits, count)


@dataclass(frozen=True, slots=True)
class PackedPairs(Layout):
    """Floats of 4 bits; its sources are the pairs, the scales and, of NVFP4, what divides them."""

    entries: int

    def unpacked(self, item: int | None) -> Unpacked:
        """Return the codes."""
        pairs, scales = (source() for source in self.sources[:2])
        found = numbers(scales)
        if len(self.sources) > 2:
            found = found / self.sources[2]().astype(np.float32).reshape(1, 1)
        return Unpacked(
            codes=unpacked_pairs(pairs),
            table=E2M1,
            scales=found,
            row_groups=np.arange(self.shape[0]),
            column_groups=blocks(self.shape[1], self.entries),
        )


def layout_of(layer: str, tensors: _Tensors, scheme: Scheme) -> Layout:
    """Return the layout of the weight of a layer, or raise `FileError`."""
    found: list[Layout] = []
    problem = FileError("no group of its config has weights")
    for arguments in dict.fromkeys(_groups(scheme)):
        try:
            layout = _fitting(layer, tensors, arguments)
        except FileError as error:
            problem = error
            continue
        if layout not in found:
            found.append(layout)
    if not found:
        raise problem
    if len(found) > 1:
        refuse("more than one group of its config fits its tensors")
    return replace(found[0], dtype=scheme.dtype or found[0].dtype)


def _groups(scheme: Scheme) -> Iterator[_Arguments]:
    """Yield the arguments of each group of the config that has weights."""
    groups = scheme.options.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        own = group.get("format") or scheme.word("format")
        bits, symmetric = weights.get("num_bits", 8), weights.get("symmetric", True)
        size, sides = weights.get("group_size"), weights.get("block_structure")
        block: Any = None
        strategy = weights.get("strategy")
        if strategy is None:
            strategy = "tensor" if size is None else "group" if size != -1 else "channel"
        if strategy in ("group", "tensor_group"):
            block = (1, size)
        elif strategy == "block":
            block = tuple(sides) if isinstance(sides, list) and len(sides) == 2 else (0, 0)
        good = block is None or all(type(side) is int and side > 0 for side in block)
        good = good and type(bits) is int and 1 <= bits <= 8 and type(symmetric) is bool
        if not good or strategy not in ("tensor", "channel", "group", "tensor_group", "block"):
            refuse(f"a group of its config gives {bits} bits by {strategy!r}, {block or size}")
        kind = str(weights.get("type", "int")).lower()
        yield _Arguments(
            str(own).lower(), bits, kind, symmetric=symmetric, strategy=str(strategy), block=block
        )


def _fitting(layer: str, tensors: _Tensors, arguments: _Arguments) -> Layout:
    """Return the layout of a layer of a group, or raise `FileError`."""
    if layer + PACKED not in tensors:
        if arguments.format not in _PLAIN:
            refuse(f"there is no tensor {layer + PACKED!r} for the format {arguments.format!r}")
        return _plain(layer, tensors, arguments)
    if arguments.format in _PAIRS:
        return _pairs(layer, tensors, arguments)
    if arguments.format != "pack-quantized" or arguments.kind != "int":
        refuse(f"the format {arguments.format!r} of {arguments.kind} is not known here")
    return _integers(layer, tensors, arguments)


def _plain(layer: str, tensors: _Tensors, arguments: _Arguments) -> Layout:
    weight, scales = member(tensors, f"{layer}.weight"), member(tensors, f"{layer}.weight_scale")
    of_kind(weight, "i" if arguments.kind == "int" else "f", 1)
    if len(weight.shape) != 2 or 0 in weight.shape:
        refuse(f"{weight.name!r} is {weight.shape}; expected two dimensions")
    of_kind(scales, "u" if arguments.format == "mxfp8-quantized" else "f")
    block = arguments.block
    if block is not None and arguments.strategy == "group" and weight.shape[1] % block[1]:
        refuse(f"{weight.shape[1]} columns are no multiple of the group of {block[1]}")
    grid((weight.shape[0], weight.shape[1]), scales, block)
    sources: tuple[MappedTensor, ...] = (weight, scales)
    zeros = _zero_points(layer, tensors, arguments)
    if zeros is not None:
        of_shape(zeros, scales.shape)
        sources = (*sources, zeros)
    method = f"int{arguments.bits}" if arguments.kind == "int" else float_name(weight)
    return ScaledBytes(
        f"compressed-tensors {method}", weight.shape, dtype=_dtype(scales), sources=sources,
        block=block,
    )  # fmt: skip


def _integers(layer: str, tensors: _Tensors, arguments: _Arguments) -> Layout:
    packed, scales = member(tensors, layer + PACKED), member(tensors, f"{layer}.weight_scale")
    of_kind(packed, "i", 4)
    of_kind(scales, "f")
    rows, columns = _sides(member(tensors, f"{layer}.weight_shape"))
    bits, block = arguments.bits, arguments.block
    widths = (stream_words(columns, bits), whole_words(columns, bits))
    of_shape(packed, *((rows, width) for width in dict.fromkeys(widths)))
    streamed = packed.shape[1] == widths[0]
    if 32 % bits and widths[0] == widths[1] > 1:
        refuse(f"{columns} columns of {bits} bits take {widths[0]} words in either packing")
    if block is not None and arguments.strategy == "group" and columns % block[1]:
        refuse(f"{columns} columns are no multiple of the group of {block[1]}")
    grid((rows, columns), scales, block)
    zeros = _zero_points(layer, tensors, arguments)
    if zeros is not None:
        if zeros.numpy_name == "<i4" and len(scales.shape) == 2 and not arguments.symmetric:
            words = (stream_words if streamed else whole_words)(scales.shape[0], bits)
            of_shape(zeros, (words, scales.shape[1]))
        else:
            of_kind(zeros, "i", 1)
            of_shape(zeros, scales.shape)
    order = tensors.get(f"{layer}.weight_g_idx")
    if order is not None:
        order = member(tensors, order.name)
        of_kind(order, "i")
        of_shape(order, (columns,))
    more = tuple(tensor for tensor in (zeros, order) if tensor is not None)
    return PackedIntegers(
        f"compressed-tensors int{bits}", (rows, columns), dtype=_dtype(scales),
        sources=(packed, scales, *more), bits=bits, streamed=streamed, block=block, zeros=zeros,
        order=order,
    )  # fmt: skip


def _pairs(layer: str, tensors: _Tensors, arguments: _Arguments) -> Layout:
    packed, scales = member(tensors, layer + PACKED), member(tensors, f"{layer}.weight_scale")
    method, entries = _PAIRS[arguments.format]
    of_kind(packed, "u", 1)
    if len(packed.shape) != 2 or 0 in packed.shape or not arguments.symmetric:
        refuse(f"{packed.name!r} is {packed.shape}; expected two dimensions, without zero points")
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    of_kind(scales, "f" if method == "NVFP4" else "u", 1)
    of_shape(scales, (rows, -(-columns // entries)))
    sources: tuple[MappedTensor, ...] = (packed, scales)
    if method == "NVFP4":
        whole = member(tensors, f"{layer}.weight_global_scale")
        of_kind(whole, "f")
        of_shape(whole, (1,), ())
        sources = (*sources, whole)
    return PackedPairs(method, (rows, columns), dtype="bfloat16", sources=sources, entries=entries)


def _zero_points(layer: str, tensors: _Tensors, arguments: _Arguments) -> MappedTensor | None:
    """Return the zero points of a weight; None if it has none."""
    name = f"{layer}.weight_zero_point"
    if arguments.symmetric and name not in tensors:
        return None
    found = member(tensors, name)
    of_kind(found, "i" if arguments.kind == "int" else "f")
    return found


def _sides(tensor: MappedTensor) -> tuple[int, int]:
    """Return the sides of a weight that a tensor names."""
    of_kind(tensor, "i")
    of_shape(tensor, (2,))
    rows, columns = (int(side) for side in small(tensor))
    if min(rows, columns) < 1:
        refuse(f"{tensor.name!r} says {(rows, columns)}; expected positive sides")
    return rows, columns


def _dtype(scales: MappedTensor) -> str:
    return scales.numpy_name if scales.numpy_name in ("<f2", "<f4", "bfloat16") else "bfloat16"
