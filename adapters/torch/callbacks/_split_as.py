"""Giving a model the split layers that a state dict needs."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from rmtspec.adapters.torch._layers.replace import replace_layers
from rmtspec.adapters.torch._layers.split_layer import SplitLayer, kind_of
from rmtspec.adapters.torch._layers.split_layers import SPLIT_TYPES
from rmtspec.adapters.torch._weights.matrices import check_model

State = Mapping[str, Any]
#: A weight that was removed, and the factors that replaced it.
Replaced = list[tuple[nn.Parameter, list[nn.Parameter]]]


def split_as(model: nn.Module, state_dict: State) -> nn.Module:
    """Give a model the split layers that a state dict has, and no others.

    Their factors are zeros until the state dict is loaded. Layers that the state dict does not name
    are not changed.

    Parameters
    ----------
    model : torch.nn.Module
        Of the architecture that was trained; changed in place.
    state_dict : mapping of str to Tensor
        Of a model with split layers, for example from a checkpoint.

    Returns
    -------
    torch.nn.Module
        `model`.

    Examples
    --------
    >>> from rmtspec.adapters import torch as rt
    >>> from rmtspec.adapters.torch.callbacks import split_as
    >>> pruned, _ = rt.prune(rt.MLP([64, 100, 50, 10]), bulk_keep=0.2)
    >>> state = pruned.state_dict()
    >>> model = split_as(rt.MLP([64, 100, 50, 10]), state)
    >>> model.load_state_dict(state)
    <All keys matched successfully>
    """
    check_model(model)
    make_layers(model, state_dict)
    return model


def fits(model: nn.Module, state: State) -> bool:
    """Tell whether the layers of a model are split as a state dict has them."""
    return not any(_foreign(model, state)) and not any(_unsplit(model, state))


def make_layers(model: nn.Module, state: State) -> Replaced:
    """Split and merge the layers of a model, and return the weights that were split."""
    for path, layer in list(_foreign(model, state)):
        replace_layers(model, {path: layer.merged(path)}, inplace=True)
    replaced: Replaced = []
    while unsplit := list(_unsplit(model, state)):  # a factor may itself be split
        for path, layer, rank in unsplit:
            made = SPLIT_TYPES[kind_of(layer)].empty_like(layer, rank, layer.weight.device)
            replaced.append((layer.weight, [made.inner.weight, made.outer.weight]))
            replace_layers(model, {path: made}, inplace=True)
    return replaced


def _foreign(model: nn.Module, state: State) -> Iterator[tuple[str, SplitLayer]]:
    """Yield the split layers that differ from those of a state dict, only the outermost."""
    outermost = ""
    for path, module in model.named_modules():
        inside = outermost and path.startswith(f"{outermost}.")
        if not path or inside or not isinstance(module, SplitLayer):
            continue
        outermost = path
        own = {
            f"{path}.{inner}".removesuffix("."): part.rank
            for inner, part in module.named_modules()
            if isinstance(part, SplitLayer)
        }
        if _has(state, path) and own != _ranks(path, state):
            yield path, module


def _unsplit(model: nn.Module, state: State) -> Iterator[tuple[str, Any, int]]:
    """Yield the layers that are split in a state dict but not in the model, with the rank."""
    for path, module in model.named_modules():
        if path and not isinstance(module, SplitLayer) and kind_of(module) in SPLIT_TYPES:
            rank = _ranks(path, state).get(path)
            if rank is not None:
                yield path, module, rank


def _ranks(path: str, state: State) -> dict[str, int]:
    """Return the rank of the split layer at a path of a state dict, and of those inside it."""
    inner, outer = f"{path}.inner", f"{path}.outer"
    if f"{path}.weight" in state or not (_has(state, inner) and _has(state, outer)):
        return {}
    factor = outer  # the layer that takes its inputs is as wide as the rank
    while f"{factor}.weight" not in state:
        factor = f"{factor}.inner"
        if not _has(state, factor):
            return {}
    rank = int(state[f"{factor}.weight"].shape[1])
    return {path: rank, **_ranks(inner, state), **_ranks(outer, state)}


def _has(state: State, path: str) -> bool:
    return any(key.startswith(f"{path}.") for key in state)
