"""Floats of 8 bits with scales for blocks, rows or the whole: DeepSeek-V3, transformers, vLLM.

The weight is the float times its scale, also where that is called "scale_inv".
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rmtspec.checkpoint.quantised.layout import (
    Layout,
    grid,
    item_of,
    matrix_of,
    member,
    numbers,
    of_kind,
    refuse,
)
from rmtspec.checkpoint.quantised.scheme import Scheme
from rmtspec.checkpoint.quantised.unpacked import Unpacked
from rmtspec.checkpoint.stored import MappedTensor, StoredTensor, named_dtype

#: Methods whose weights are laid out like this.
METHODS = ("fp8", "fbgemm-fp8")
#: After the name of the weight: its scales.
SCALES = ("_scale_inv", "_scale")
#: After the name of the weight, or of its layer: scales of its inputs, no part of the weight.
HELPERS = ("_activation_scale", ".input_scale", ".activation_scale", ".input_scale_ub")


@dataclass(frozen=True, slots=True)
class ScaledBytes(Layout):
    """Entries of one byte each, with scales, and zero points where there is a third source."""

    block: tuple[int, int] | None

    @property
    def items(self) -> int:
        """Number of matrices in a stack; 0 if it is none."""
        return self.shape[0] if len(self.shape) == 3 else 0

    def unpacked(self, item: int | None) -> Unpacked:
        """Return the codes, which are the bytes, and the scales."""
        weight, scales = self.sources[:2]
        codes = item_of(weight, item).view(np.uint8)
        rows, columns = grid((self.shape[-2], self.shape[-1]), scales, self.block)
        found = item_of(scales, item if len(scales.shape) == 3 else None)
        zeros = None
        if len(self.sources) > 2:
            zeros = matrix_of(self.sources[2]().astype(np.float32))
        return Unpacked(
            codes=codes,
            table=table_of(weight.numpy_name),
            scales=matrix_of(numbers(found)),
            row_groups=rows,
            column_groups=columns,
            zeros=zeros,
        )


def table_of(numpy_name: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return the value of each byte that is a number of some dtype."""
    return np.arange(256, dtype=np.uint8).view(named_dtype(numpy_name)).astype(np.float32)


def float_name(tensor: MappedTensor) -> str:
    """Return what a report calls a float of 8 bits."""
    return "FP8 E5M2" if "e5m2" in tensor.numpy_name else "FP8 E4M3"


def is_float8(tensor: StoredTensor) -> bool:
    """Tell whether the entries are floats of 8 bits that hold numbers, not exponents alone."""
    return tensor.dtype in ("F8_E4M3", "F8_E5M2") and len(tensor.shape) in (2, 3)


def scales_of(name: str, tensors: Mapping[str, StoredTensor]) -> MappedTensor:
    """Return the scales of the weight called `name`, or raise."""
    found = next((name + end for end in SCALES if name + end in tensors), name + SCALES[0])
    return member(tensors, found)


def layout_of(name: str, tensors: Mapping[str, StoredTensor], scheme: Scheme) -> Layout:
    """Return the layout of the weight called `name`, or raise `FileError`."""
    weight, scales = member(tensors, name), scales_of(name, tensors)
    of_kind(scales, "f" if scales.numpy_name != "|u1" else "u")
    if len(scales.shape) == 3 and scales.shape[0] != weight.shape[0]:
        refuse(f"{scales.name!r} is {scales.shape}; expected {weight.shape[0]} matrices of scales")
    block = _block(scheme)
    grid((weight.shape[-2], weight.shape[-1]), scales, block)
    dtype = scheme.dtype or (scales.numpy_name if scales.numpy_name == "<f2" else "bfloat16")
    return ScaledBytes(
        float_name(weight), weight.shape, dtype=dtype, sources=(weight, scales), block=block
    )


def _block(scheme: Scheme) -> tuple[int, int] | None:
    """Return the sides of a block as the config has them; None if there are none."""
    sides = scheme.options.get("weight_block_size")
    if sides is None:
        return None
    good = isinstance(sides, list) and len(sides) == 2
    if not (good and all(type(side) is int and side > 0 for side in sides)):
        words = "expected two positive whole numbers"
        refuse(f"weight_block_size in the config is {str(sides)[:60]}; {words}")
    return sides[0], sides[1]
