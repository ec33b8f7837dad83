"""Weights of Keras and Flax, whose outputs are the last axis, as outputs x everything else."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.stored import StoredTensor

#: Last parts of the names of weights of layers, and of the projections of attention that have the
#: heads as an axis: inputs x heads x size. Those back from the heads end in their outputs.
_KERNELS = ("kernel", "recurrent_kernel", "pointwise_kernel")
_TO_HEADS = re.compile(r"(^|[._])(query|key|value)(_dense)?\.kernel$")
_FROM_HEADS = re.compile(r"(^|[._])(attention_output|output_dense|out)\.kernel$")


@dataclass(frozen=True, slots=True)
class OutputsFirst(StoredTensor):
    """A tensor with its last axis first; `joined` is the shape it is read in before, or empty."""

    inner: StoredTensor
    joined: tuple[int, ...]

    def _load(self) -> NDArray[Any]:
        """Return the tensor."""
        values = self.inner()
        return np.moveaxis(values.reshape(self.joined) if self.joined else values, -1, 0)


def outputs_first(tensors: Mapping[str, StoredTensor]) -> list[StoredTensor]:
    """Return tensors of Keras or Flax as other formats have them; what is no kernel as it is.

    A bias of several axes says that so many of its kernel's are outputs.
    """
    turned = []
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        bias = tensors.get(f"{layer}.bias" if layer else "bias")
        kernel = last in _KERNELS and len(tensor.shape) > 1
        turned.append(_turned(tensor, bias.shape if bias else ()) if kernel else tensor)
    return turned


def _turned(tensor: StoredTensor, bias: tuple[int, ...]) -> StoredTensor:
    shape, outputs = tensor.shape, len(bias)
    joined: tuple[int, ...] = ()
    if 1 < outputs < len(shape) and shape[-outputs:] == bias:
        joined = (math.prod(shape[:-outputs]), math.prod(bias))
    elif len(shape) == 3 and _TO_HEADS.search(tensor.name):
        joined = (shape[0], shape[1] * shape[2])
    elif len(shape) == 3 and _FROM_HEADS.search(tensor.name):
        joined = (shape[0] * shape[1], shape[2])
    read = joined or shape
    return OutputsFirst(
        path=tensor.path, name=tensor.name, dtype=tensor.dtype, numpy_name=tensor.numpy_name,
        shape=(read[-1], *read[:-1]), nbytes=tensor.nbytes, inner=tensor, joined=joined,
    )  # fmt: skip
