"""GPTQ: codes of 2, 3, 4 or 8 bits, packed along the inputs, with a scale and zero point a group.

The first version of the format ("gptq") stores zero points less one, the second ("gptq_v2") as they
are. Both as gptqmodel 7.7 reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.quantised.layout import Layout, member, of_kind, of_shape, refuse
from rmtspec.checkpoint.quantised.packing import stream_words, unpacked_stream
from rmtspec.checkpoint.quantised.scheme import Scheme
from rmtspec.checkpoint.quantised.unpacked import Unpacked, blocks
from rmtspec.checkpoint.stored import MappedTensor, StoredTensor
from rmtspec.errors import FileError

#: After the name of the layer: the tensors of a weight.
MEMBERS = (".qweight", ".qzeros", ".scales", ".g_idx")
_BITS = (2, 3, 4, 8)
#: Formats, with what is added to the zero points that are stored.
_OFFSETS = {"": 1, "gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True, slots=True)
class Gptq(Layout):
    """The layout; its sources are qweight, qzeros, scales and, if there is one, g_idx."""

    bits: int
    group_size: int
    offset: int

    def unpacked(self, item: int | None) -> Unpacked:
        """Return the codes with outputs as rows."""
        outputs, inputs = self.shape
        qweight, qzeros, scales = (source() for source in self.sources[:3])
        words = np.ascontiguousarray(qweight.T)
        stored = unpacked_stream(np.ascontiguousarray(qzeros), self.bits, outputs)
        zeros = (stored + np.uint8(self.offset)) & np.uint8(2**self.bits - 1)
        groups = blocks(inputs, self.group_size)
        if len(self.sources) > 3:
            groups = groups_in(self.sources[3], len(scales))
        return Unpacked(
            codes=unpacked_stream(words, self.bits, inputs),
            table=np.arange(2**self.bits, dtype=np.float32),
            scales=scales.T.astype(np.float32),
            row_groups=np.arange(outputs),
            column_groups=groups,
            zeros=zeros.T.astype(np.float32),
        )


def groups_in(tensor: MappedTensor, count: int) -> NDArray[np.intp]:
    """Return the group of each column as a tensor has it, or raise `FileError`."""
    groups: NDArray[np.intp] = tensor().astype(np.intp)
    if groups.size and not 0 <= groups.min() <= groups.max() < count:
        raise FileError(
            f"{tensor.path} is damaged: {tensor.name!r} names the group {groups.min()} or "
            f"{groups.max()}; expected 0 to {count - 1}. Copy or download the file again."
        )
    return groups


def layout_of(layer: str, tensors: Mapping[str, StoredTensor], scheme: Scheme) -> Layout:
    """Return the layout of the weight of a layer, or raise `FileError`."""
    kind = scheme.word("checkpoint_format", "format")
    if kind not in _OFFSETS:
        refuse(f"its format is {kind!r}; expected gptq or gptq_v2")
    qweight, qzeros, scales = (member(tensors, layer + end) for end in MEMBERS[:3])
    groups = tensors.get(layer + MEMBERS[3])
    for tensor in (qweight, qzeros):
        of_kind(tensor, "i", 4)
    of_kind(scales, "f")
    if len(qweight.shape) != 2 or len(scales.shape) != 2 or 0 in qweight.shape:
        refuse(f"{qweight.name!r} is {qweight.shape} and {scales.name!r} {scales.shape}; expected "
               "two dimensions")  # fmt: skip
    words, outputs = qweight.shape
    bits = scheme.whole("bits", "w_bit")
    if groups is not None and groups.shape and groups.shape[0] and scheme.options.get("dynamic"):
        bits = 32 * words // groups.shape[0]  # layers differ
    if bits not in _BITS:
        refuse(f"its bits are {bits}; expected one of {', '.join(map(str, _BITS))}")
    inputs = 32 * words // bits
    sources: tuple[MappedTensor, ...] = (qweight, qzeros, scales)
    if groups is not None:
        own = member(tensors, groups.name)
        of_kind(own, "i")
        of_shape(own, (inputs,))
        sources = (*sources, own)
    elif scheme.options.get("desc_act") is True:
        refuse(f"there is no tensor {layer + MEMBERS[3]!r}, though desc_act reorders the inputs")
    of_shape(qweight, (stream_words(inputs, bits), outputs))
    size = scheme.whole("group_size", default=-1)
    size = inputs if size is None or size < 1 else size
    count = scales.shape[0]
    if groups is None or not scheme.options.get("dynamic"):
        count = -(-inputs // size)
    of_shape(scales, (count, outputs))
    of_shape(qzeros, (count, stream_words(outputs, bits)))
    dtype = scheme.dtype or (scales.numpy_name if scales.numpy_name != "<f8" else "<f4")
    return Gptq(
        f"GPTQ {bits} bits", (outputs, inputs), dtype=dtype, sources=sources, bits=bits,
        group_size=size, offset=_OFFSETS[kind],
    )  # fmt: skip
