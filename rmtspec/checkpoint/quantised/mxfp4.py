"""MXFP4 as gpt-oss has it: stacks of experts in blocks of 32 floats of 4 bits with one exponent."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rmtspec.checkpoint.quantised.layout import (
    E2M1,
    Layout,
    item_of,
    member,
    numbers,
    of_kind,
    of_shape,
    refuse,
)
from rmtspec.checkpoint.quantised.packing import unpacked_pairs
from rmtspec.checkpoint.quantised.scheme import Scheme
from rmtspec.checkpoint.quantised.unpacked import Unpacked, blocks
from rmtspec.checkpoint.stored import StoredTensor

#: After the name of the weight: its blocks and their exponents.
MEMBERS = ("_blocks", "_scales")
#: Bytes, and entries, of a block.
_BYTES, _ENTRIES = 16, 32


@dataclass(frozen=True, slots=True)
class Mxfp4(Layout):
    """The layout; its sources are the blocks and the scales."""

    @property
    def items(self) -> int:
        """Number of experts."""
        return self.shape[0]

    def unpacked(self, item: int | None) -> Unpacked:
        """Return the codes of an expert, outputs x inputs."""
        pairs, scales = (item_of(source, item) for source in self.sources)
        rows, columns = self.shape[1:]
        return Unpacked(
            codes=unpacked_pairs(pairs.reshape(rows, -1)),
            table=E2M1,
            scales=numbers(scales),
            row_groups=np.arange(rows),
            column_groups=blocks(columns, _ENTRIES),
        )


def layout_of(name: str, tensors: Mapping[str, StoredTensor], scheme: Scheme) -> Layout:
    """Return the layout of the weight called `name`, or raise `FileError`."""
    pairs, scales = (member(tensors, name + end) for end in MEMBERS)
    for tensor in (pairs, scales):
        of_kind(tensor, "u", 1)
    if len(pairs.shape) != 4 or pairs.shape[-1] != _BYTES or 0 in pairs.shape:
        refuse(f"{pairs.name!r} is {pairs.shape}; expected experts, rows, blocks and {_BYTES}")
    of_shape(scales, pairs.shape[:-1])
    shape = (*pairs.shape[:2], _ENTRIES * pairs.shape[2])
    return Mxfp4("MXFP4", shape, dtype=scheme.dtype or "bfloat16", sources=(pairs, scales))
