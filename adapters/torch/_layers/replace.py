"""Replacing layers, in a model or in a copy of it, and undoing that."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._layers.marked_config import mark
from rmtspec.adapters.torch._layers.narrowed_linear import NarrowedLinear
from rmtspec.adapters.torch._layers.split_layer import SplitLayer, factors_are_used
from rmtspec.adapters.torch._weights.matrices import check_model
from rmtspec.errors import InvalidValueError


def merge(model: nn.Module, *, inplace: bool = False) -> Any:
    """Undo splits: multiply the factors back into layers of the original type.

    The model computes the same function, to the precision of the dtype, and its state dict has the
    keys it had before the split. A layer that was split twice becomes one again. Hidden units that
    left come back as zeros.

    Parameters
    ----------
    model : torch.nn.Module
    inplace : bool
        Change `model` itself.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    InvalidValueError
        A factor is no longer a plain layer: it was given a bias or LoRA, or was quantised.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> smaller, _ = rt.prune(rt.MLP([64, 100, 50, 10]), bulk_keep=0.2)
    >>> rt.merge(smaller).layers[0]
    Linear(in_features=64, out_features=100, bias=True)
    """
    check_model(model)
    merged: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") or outer == "" for outer in merged)
        if isinstance(module, SplitLayer | NarrowedLinear) and not inside:
            merged[path] = module.merged(path)
    result = replace_layers(model, merged, inplace)
    mark(result)
    return result


def replace_layers(model: nn.Module, layers: Mapping[str, nn.Module], inplace: bool) -> Any:
    """Replace the layers at the given paths, in the model or in a copy without the old layers."""
    parents = {path: model.get_submodule(path.rpartition(".")[0]) for path in layers}
    if inplace:
        check_inplace(layers)
        places = {id(model.get_submodule(path)): path for path in layers}
        # A module that is used in two places is replaced in both.
        for full, module in list(model.named_modules(remove_duplicate=False)):
            if id(module) in places:
                parent, _, child = full.rpartition(".")
                model.get_submodule(parent)._modules[child] = layers[places[id(module)]]
        _keep_split(layers, parents)
        return model
    memo: dict[int, Any] = {id(model.get_submodule(path)): new for path, new in layers.items()}
    try:
        for new in layers.values():  # copy what they share with the layers they replace
            for module in new.modules():
                if module._parameters.get("bias") is not None:
                    module.bias = copy.deepcopy(module.bias, memo)
            for name, value in list(new.__dict__.items()):
                if name not in ("_parameters", "_buffers", "_modules"):
                    new.__dict__[name] = copy.deepcopy(value, memo)
        _keep_split(layers, parents)
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise InvalidValueError(
            f"`model` cannot be copied: {error}. Pass inplace=True, which changes the model itself."
        ) from error


def check_inplace(paths: Iterable[str]) -> None:
    """Raise if the model itself would have to be another object."""
    if "" in list(paths):
        raise InvalidValueError(
            "`model` is itself the layer to replace, which cannot be done in place. Pass "
            "inplace=False and use the returned model."
        )


def _keep_split(layers: Mapping[str, nn.Module], parents: Mapping[str, nn.Module]) -> None:
    """Stop TransformerEncoderLayer from multiplying the factors: see `factors_are_used`."""
    for path, layer in layers.items():
        owner = isinstance(parents[path], nn.TransformerEncoderLayer)
        if owner and isinstance(layer, SplitLayer):
            layer.register_forward_hook(factors_are_used)


def model_sizes(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters and the bytes of the state dict, shared tensors once."""
    parameters = sum(p.numel() for p in model.parameters())
    tensors = {
        id(value): value.numel() * value.element_size()
        for value in model.state_dict(keep_vars=True).values()
        if isinstance(value, torch.Tensor)
    }
    return {"parameters": parameters, "bytes": sum(tensors.values())}


def totals(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return the sizes of a model before and after, as a plan has them."""
    named = {f"{unit}_before": size for unit, size in before.items()}
    return named | {f"{unit}_after": size for unit, size in after.items()}
