"""A checkpoint whose layers were split or narrowed, listed as if they had not been."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.listing import Checkpoint
from rmtspec.checkpoint.manifest import MANIFEST, Manifest
from rmtspec.checkpoint.stored import MappedTensor, StoredTensor, named_dtype
from rmtspec.matrix.rounding import product_steps
from rmtspec.runs.merge import Multiplied, dense_tensors, whole


@dataclass(frozen=True, slots=True)
class ProductTensor(StoredTensor):
    """A weight that a folder holds in parts, put together when it is called.

    A product is in float64: it is no number of the dtype of its factors.
    """

    held: Multiplied
    factor_name: str

    def _load(self) -> NDArray[Any]:
        """Return the weight."""
        return whole(self.held, np.dtype(np.float64)).reshape(self.shape)

    def steps(self) -> NDArray[Any] | None:
        """Return how uniform errors would spread that are as large as those of the factors."""
        return product_steps(self._load(), named_dtype(self.factor_name))


def with_products(listed: Checkpoint) -> Checkpoint:
    """Return a checkpoint with each split layer as the weight that its factors stand for.

    One that neither `rmtspec.prune_checkpoint` nor an adapter split is returned as it is.

    Raises
    ------
    FileError
        The manifest beside the weights, or a factor, is damaged.
    """
    folder = listed.files[0].parent
    if not (folder / MANIFEST).exists():
        return listed
    manifest = Manifest.read(folder)
    if not {file.name for file in listed.files} <= {*manifest.weight_files}:
        return listed  # weights of something else, beside it
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in dense_tensors(folder, manifest, manifest.tensors(folder))[0].items():
        if isinstance(tensor, MappedTensor):
            tensors[name] = tensor
            continue
        size = math.prod(tensor.shape)
        tensors[name] = ProductTensor(
            path=tensor.path, name=name, dtype="F64", numpy_name="<f8", shape=tensor.shape,
            nbytes=8 * size, held=tensor, factor_name=tensor.numpy_name,
        )  # fmt: skip
    return dataclasses.replace(listed, tensors=tensors).grouped()
