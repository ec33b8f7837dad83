"""What a manifest says of a layer that was cut, and the layer made empty from it."""

from typing import Any

from torch import nn

from rmtspec.adapters.torch._layers.narrowed_linear import NarrowedLinear
from rmtspec.adapters.torch._layers.quantize import store, stored_as
from rmtspec.adapters.torch._layers.split_layer import SplitLayer, kind_of
from rmtspec.adapters.torch._layers.split_layers import SPLIT_TYPES
from rmtspec.adapters.torch._weights.layer_kinds import ROOT
from rmtspec.adapting import Form, Kind, SplitEntry
from rmtspec.errors import InvalidValueError


def entries_of(model: nn.Module) -> tuple[SplitEntry, ...]:
    """Return an entry for each layer of a model that was split or narrowed."""
    cut = SplitLayer | NarrowedLinear
    return tuple(_entry(path, m) for path, m in model.named_modules() if isinstance(m, cut))


def _entry(path: str, layer: SplitLayer | NarrowedLinear) -> SplitEntry:
    kind = layer.original_type
    stored = stored_as(layer) if isinstance(layer, SplitLayer) else ""
    return SplitEntry(
        name=path, kind=layer.kind, rank=layer.rank, shape=layer.dense_shape,
        original=f"{kind.__module__}.{kind.__qualname__}", groups=int(getattr(layer, "groups", 1)),
        form=layer.form, stored=stored,
    )  # fmt: skip


def made_empty(layer: Any, entry: SplitEntry) -> SplitLayer | NarrowedLinear:
    """Return the split or narrowed layer of an entry, made for the skeleton's, or raise."""
    if isinstance(layer, SplitLayer | NarrowedLinear):
        raise InvalidValueError(
            f"`skeleton` has {entry.name or ROOT!r} split already; expected the architecture as it "
            "was before pruning. Build it again."
        )
    kind = kind_of(layer)
    weight = layer._parameters.get("weight")
    shape = () if weight is None else tuple(weight.shape)
    same_kind = kind == entry.kind or (entry.kind == Kind.TENSOR and kind in SPLIT_TYPES)
    groups = int(getattr(layer, "groups", 1))
    if not same_kind or shape != entry.shape or groups != entry.groups:
        raise InvalidValueError(
            f"`skeleton` has {entry.name or ROOT!r} as {type(layer).__name__} with weight {shape}"
            f"{f', {groups} groups' if groups > 1 else ''}; in the saved model it was a "
            f"{entry.original.rpartition('.')[2] or entry.kind} with weight {entry.shape}"
            f"{f', {entry.groups} groups' if entry.groups > 1 else ''}. Build the architecture "
            "that was pruned."
        )
    if Form(entry.form).narrow:
        return NarrowedLinear.empty_like(layer, entry.rank, "meta", entry.form)
    made = SPLIT_TYPES[kind].empty_like(layer, entry.rank, "meta", entry.form)
    if entry.stored:
        store(made, entry.stored)
    return made
