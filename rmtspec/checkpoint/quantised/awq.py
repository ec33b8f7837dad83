"""AWQ in its "gemm" version: codes of 4 bits, packed along the outputs in an order of their own."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rmtspec.checkpoint.quantised.layout import Layout, member, of_kind, of_shape, refuse
from rmtspec.checkpoint.quantised.packing import unpacked_awq
from rmtspec.checkpoint.quantised.scheme import Scheme
from rmtspec.checkpoint.quantised.unpacked import Unpacked, blocks
from rmtspec.checkpoint.stored import StoredTensor

#: After the name of the layer: the tensors of a weight.
MEMBERS = (".qweight", ".qzeros", ".scales")
_BITS = 4


@dataclass(frozen=True, slots=True)
class Awq(Layout):
    """The layout; its sources are qweight, qzeros and scales."""

    group_size: int

    def unpacked(self, item: int | None) -> Unpacked:
        """Return the codes with outputs as rows."""
        outputs, inputs = self.shape
        qweight, qzeros, scales = (source() for source in self.sources)
        return Unpacked(
            codes=np.ascontiguousarray(unpacked_awq(qweight).T),
            table=np.arange(2**_BITS, dtype=np.float32),
            scales=scales.T.astype(np.float32),
            row_groups=np.arange(outputs),
            column_groups=blocks(inputs, self.group_size),
            zeros=unpacked_awq(qzeros).T.astype(np.float32),
        )


def layout_of(layer: str, tensors: Mapping[str, StoredTensor], scheme: Scheme) -> Layout:
    """Return the layout of the weight of a layer, or raise `FileError`."""
    version = scheme.word("version", "checkpoint_format", "format") or "gemm"
    bits = scheme.whole("bits", "w_bit")
    backend = scheme.word("backend") or "autoawq"
    if (version, bits, backend) != ("gemm", _BITS, "autoawq"):
        refuse(f"its version is {version!r} of {backend} with {bits} bits; expected gemm with 4")
    qweight, qzeros, scales = (member(tensors, layer + end) for end in MEMBERS)
    for tensor in (qweight, qzeros):
        of_kind(tensor, "i", 4)
    of_kind(scales, "f")
    if len(qweight.shape) != 2 or 0 in qweight.shape:
        refuse(f"{qweight.name!r} is {qweight.shape}; expected two dimensions")
    inputs, words = qweight.shape
    size = scheme.whole("group_size", "q_group_size", default=-1)
    size = inputs if size is None or size < 1 else size
    count, outputs = -(-inputs // size), 8 * words
    of_shape(scales, (count, outputs))
    of_shape(qzeros, (count, words))
    return Awq(
        "AWQ 4 bits", (outputs, inputs), dtype=scheme.dtype or scales.numpy_name,
        sources=(qweight, qzeros, scales), group_size=size,
    )  # fmt: skip
