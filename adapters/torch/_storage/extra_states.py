"""What modules keep in the state dict beside tensors: the values of `get_extra_state`."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rmtspec.errors import InvalidValueError

_LAST = "_extra_state"


def is_extra(key: str) -> bool:
    """Tell whether a key of a state dict is that of an extra state."""
    return key.rpartition(".")[2] == _LAST


def extra_states(model: nn.Module) -> dict[str, Any]:
    """Return the extra states of a model that are no tensors, by key.

    Raises `InvalidValueError` for one that would not come back equal from JSON.
    """
    found: dict[str, Any] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        if not is_extra(key) or isinstance(value, torch.Tensor):
            continue
        if not _comes_back(value):
            raise InvalidValueError(
                f"The state dict has {key!r}, a {type(value).__name__} that cannot be saved "
                "without running code when it is loaded. Expected a tensor, or numbers, text, "
                "lists and dicts by text from get_extra_state."
            )
        found[key] = value
    return found


def restore_extra_states(model: nn.Module, states: Mapping[str, Any]) -> None:
    """Give each module its extra state."""
    for key, value in states.items():
        model.get_submodule(key.removesuffix(_LAST).removesuffix(".")).set_extra_state(value)


def _comes_back(value: Any) -> bool:
    """Tell whether a value is the same, types included, when it is read from JSON."""
    if isinstance(value, dict):
        return type(value) is dict and all(
            type(key) is str and _comes_back(held) for key, held in value.items()
        )
    if isinstance(value, list):
        return type(value) is list and all(map(_comes_back, value))
    if type(value) is float:
        return bool(json.loads(json.dumps(value)) == value)  # nan is not
    return value is None or type(value) in (str, int, bool)
