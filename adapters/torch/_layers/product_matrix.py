"""A split layer as the one matrix that it stands for: the product of its factors."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch._layers.split_layers import SplitEmbedding
from rmtspec.adapters.torch._weights.layer_kinds import ROOT
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.adapters.torch._weights.tensors import to_numpy
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Kind, Why, product_spectrum
from rmtspec.errors import InvalidValueError


@dataclass(frozen=True, slots=True, eq=False)
class ProductMatrix(WeightMatrix):
    """The matrix of a split layer, or of one group of it; calling it returns its spectrum.

    `parameter` is the weight of the outer factor. It cannot be written: the layer is split anew.
    """

    split_layer: Any = field(default=None, repr=False)
    group: int = field(default=0, repr=False)

    def __call__(self) -> Any:
        """Return the `rmtspec.Spectrum` of the product, without multiplying the factors."""
        return product_spectrum(*self.factors())

    def factors(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the two factors, outer and inner, whose product is the matrix."""
        inner, outer = (to_numpy(side[self.group]) for side in stacked(self.split_layer))
        return outer, inner

    @property
    def present_rank(self) -> int:
        """The rank at which the layer is split."""
        return int(self.split_layer.rank)

    @property
    def trained(self) -> bool:
        """Whether all of the product is trained."""
        return all(
            parameter.requires_grad
            for factor in (self.split_layer.inner, self.split_layer.outer)
            for name, parameter in factor.named_parameters()
            if not name.endswith("bias")
        )

    def _block(self) -> torch.Tensor:
        weight: torch.Tensor = self.split_layer.weight
        return weight if self.part is None else weight[self.part]


def stacked(
    layer: SplitLayer, inner: Any = None, outer: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of each group: (groups, rank, columns) and (groups, rows, rank).

    `inner` and `outer`, by default the weights of the factors, are laid out as these are.
    """
    inner = layer.inner.weight if inner is None else inner
    outer = layer.outer.weight if outer is None else outer
    if isinstance(layer, SplitEmbedding):
        inner, outer = outer.mT, inner
    groups = int(getattr(layer, "groups", 1))
    return inner.reshape(groups, layer.rank, -1), outer.reshape(groups, -1, layer.rank)


def matrices_with_products(model: nn.Module) -> dict[str, WeightMatrix]:
    """Return the matrices of a model by name, each split layer as one instead of its factors."""
    layers: dict[str, SplitLayer] = {}  # the outermost ones
    for path, module in model.named_modules():
        if isinstance(module, SplitLayer) and _within(path, layers) is None:
            layers[path] = module
    listed: dict[str, WeightMatrix | str] = {}
    factors: dict[str, list[WeightMatrix]] = {path: [] for path in layers}
    for name, matrix in weight_matrices(model):
        path = _within("" if matrix.layer == ROOT else matrix.layer, layers)
        if path is None or not matrix.key.endswith("weight"):  # the bias of the outer factor
            listed[name] = matrix
            continue
        factors[path].append(matrix)
        listed[path or ROOT] = path  # a place; a second factor does not move it
    matrices: dict[str, WeightMatrix] = {}
    for name, held in listed.items():
        if isinstance(held, WeightMatrix):
            matrices[name] = held
        else:
            matrices |= {m.name: m for m in _products(held, layers[held], factors[held])}
    return matrices


def _within(path: str, layers: dict[str, SplitLayer]) -> str | None:
    """Return the path of the layer that a module is or belongs to, or None."""
    while path not in layers and path:
        path = path.rpartition(".")[0]
    return path if path in layers else None


def _products(path: str, layer: SplitLayer, factors: list[WeightMatrix]) -> Iterator[ProductMatrix]:
    """Yield the matrices of a split layer, one per group."""
    reason = next(filter(None, (factor.reason for factor in factors)), "")
    name, key = path or ROOT, f"{path}.weight".lstrip(".")
    if reason:
        yield ProductMatrix(name, layer.kind, name, key, shape=(), reason=reason)
        return
    held = next(filter(None, (factor.tied for factor in factors)), "") or _held(path, layer)
    inner, outer = stacked(layer)
    groups, rows = outer.shape[:2]
    for group in range(groups):
        yield ProductMatrix(
            name if groups == 1 else f"{name}[{group}]", layer.kind, name, key,
            shape=(rows, inner.shape[2]), unsplittable=held, parameter=factors[-1].parameter,
            part=slice(group * rows, (group + 1) * rows) if groups > 1 else None,
            transposed=layer.kind == Kind.TRANSPOSED_LINEAR, split_layer=layer, group=group,
        )  # fmt: skip


def _held(path: str, layer: SplitLayer) -> str:
    """Return why the rank of a layer cannot be lowered, or ""."""
    if not path:  # the model itself, which cannot be replaced in place
        return Why.SPLIT_BEFORE.words(present=layer.rank)
    if isinstance(layer.inner, SplitLayer) or isinstance(layer.outer, SplitLayer):
        return Why.SPLIT_TWICE.words()
    try:
        layer._check_factors(path)
    except InvalidValueError:
        return Why.FACTORS_CHANGED.words()
    return ""
