"""Comparison of two models: the core applied to each weight before and after."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._layers.product_matrix import ProductMatrix, matrices_with_products
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Comparison, product_steps
from rmtspec.adapting import compare as compare_matrices


@dataclass(frozen=True, slots=True, eq=False)
class DenseMatrix:
    """A weight of a model, multiplied out if its layer is split; calling it returns the array."""

    matrix: WeightMatrix

    @property
    def kind(self) -> str:
        """Kind of the matrix."""
        return self.matrix.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.matrix.shape

    @property
    def reason(self) -> str:
        """Why it cannot be read; empty if it can."""
        return self.matrix.reason

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `include` and `exclude` may use."""
        return self.matrix.names

    def rounding(self) -> tuple[str, NDArray[Any]] | None:
        """Return the dtype of the factors, and the steps of their rounding; None for a weight."""
        if not isinstance(self.matrix, ProductMatrix):
            return None
        dtype = self.matrix.factors()[0].dtype
        return str(dtype), product_steps(self(), dtype)

    def __call__(self) -> NDArray[Any]:
        """Return the array; a product in float64, as no rounding of it is in the model."""
        if not isinstance(self.matrix, ProductMatrix):
            return self.matrix()
        outer, inner = (factor.astype(np.float64) for factor in self.matrix.factors())
        return outer @ inner


def compare(a: Any, b: Any, **options: Any) -> Comparison:
    """Say what changed between two models, or between a model and a file.

    Parameters
    ----------
    a, b : torch.nn.Module, or what `rmtspec.compare` takes
        Before and after; neither is changed. A split layer stands for the product of its factors.
        Where one side is no model, the weights of the other go by their keys in its state dict.
    **options
        Of `rmtspec.compare`.

    Returns
    -------
    Comparison

    Raises
    ------
    InvalidTypeError, InvalidValueError, FileError
        As `rmtspec.compare`, and `weight_matrices`.

    Examples
    --------
    >>> import copy
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model = rt.MLP([64, 100, 50])
    >>> tuned = copy.deepcopy(model)
    >>> with torch.no_grad():
    ...     _ = tuned.layers[0].weight.add_(torch.ones(100, 1) @ torch.ones(1, 64), alpha=0.1)
    >>> [(row["name"], row["change"], row["rank"]) for row in rt.compare(model, tuned)]
    [('layers.0', 'low rank', 1), ('layers.1', 'unchanged', 0)]
    """
    models = [isinstance(side, nn.Module) for side in (a, b)]
    sides = [
        _matrices(side, by_key=not all(models)) if is_model else side
        for side, is_model in zip((a, b), models, strict=True)
    ]
    return compare_matrices(*sides, **options)


def _matrices(model: nn.Module, *, by_key: bool) -> Mapping[str, DenseMatrix]:
    """Return the matrices of a model by name, or as a file of its state dict names them."""
    return {
        _key_of(matrix) if by_key else name: DenseMatrix(matrix)
        for name, matrix in matrices_with_products(model).items()
        if matrix.kind or matrix.reason
    }


def _key_of(matrix: WeightMatrix) -> str:
    return f"{matrix.key}{matrix.name.removeprefix(matrix.layer)}"
