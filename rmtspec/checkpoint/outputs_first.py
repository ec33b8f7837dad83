"""Weights of Keras and Flax, whose outputs are the last axis, as outputs x everything else."""

import re
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


def outputs_first(tensor: StoredTensor) -> StoredTensor:
    """Return a tensor of Keras or Flax as other formats have it, or as it is if it is no kernel."""
    shape, last = tensor.shape, tensor.name.rpartition(".")[2]
    if last not in _KERNELS or len(shape) < 2:
        return tensor
    joined: tuple[int, ...] = ()
    if len(shape) == 3 and _TO_HEADS.search(tensor.name):
        joined = (shape[0], shape[1] * shape[2])
    elif len(shape) == 3 and _FROM_HEADS.search(tensor.name):
        joined = (shape[0] * shape[1], shape[2])
    turned = joined or shape
    return OutputsFirst(
        path=tensor.path, name=tensor.name, dtype=tensor.dtype, numpy_name=tensor.numpy_name,
        shape=(turned[-1], *turned[:-1]), nbytes=tensor.nbytes, inner=tensor, joined=joined,
    )  # fmt: skip
