"""The split layers in a pruner's state, made again on a freshly built model."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._layers.replace import replace_layers
from rmtspec.adapters.torch._layers.split_layer import SplitLayer, kind_of
from rmtspec.adapters.torch._layers.split_layers import SPLIT_TYPES
from rmtspec.adapting import Plan, Report, listed
from rmtspec.errors import InvalidTypeError, InvalidValueError

#: Version of the states that `RMTPruner.state_dict` returns.
SCHEMA = 1


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what identifies a training: the model's tensors, the optimizer's groups."""
    return {
        "type": type(model).__name__,
        "tensors": _shapes(model),
        "optimizer": type(optimizer).__name__,
        "groups": [len(group["params"]) for group in optimizer.param_groups],
    }


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {
        name: list(value.shape)
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)
    }


class Rebuilt:
    """A state from `RMTPruner.state_dict` that fits a training, to be made again on its model.

    `start` is the fingerprint of the training when the pruner was made, `recut` its option.
    """

    def __init__(
        self, state: dict[str, Any], model: nn.Module, start: dict[str, Any], recut: Any
    ) -> None:
        keys = ("start", "schedule", "splits", "history", "schema")
        if not isinstance(state, dict) or any(key not in state for key in keys):
            raise InvalidTypeError(
                "The state is not that of a pruner; expected what RMTPruner.state_dict returned."
            )
        if state["schema"] > SCHEMA:
            raise InvalidValueError(
                f"The state has schema {state['schema']}; this version of rmtspec reads up to "
                f"{SCHEMA}. Update rmtspec: pip install --upgrade rmtspec."
            )
        saved = state["start"]
        if saved["tensors"] != start["tensors"]:
            raise InvalidValueError(
                f"The state is that of another model: {_difference(saved, start)}. Build the model "
                "as it was before any split."
            )
        of_optimizer = [
            f"{each['optimizer']} over groups of {', '.join(map(str, each['groups']))} parameters"
            for each in (saved, start)
        ]
        if of_optimizer[0] != of_optimizer[1]:
            raise InvalidValueError(
                f"The state is that of a training with {of_optimizer[0]}; this one has "
                f"{of_optimizer[1]}. Build the optimizer as it was."
            )
        if _shapes(model) != start["tensors"]:
            raise InvalidValueError(
                "The model has changed since the pruner was made, perhaps by a split; expected "
                "a freshly built one. Build model, optimizer and pruner again, then load."
            )
        of_state = state.get("recut", recut)  # a state of an earlier version does not say
        if of_state != recut:
            raise InvalidValueError(
                f"The state is that of a training with recut={of_state!r}; this pruner has "
                f"recut={recut!r}. Pass recut={of_state!r} to RMTPruner, as in that training."
            )
        self._model = model
        self.splits: list[dict[str, Any]] = [dict(entry) for entry in state["splits"]]
        self.schedule: dict[str, Any] = state["schedule"]
        self.history: list[Report] = [
            Plan.from_dict(report, "The state") for report in state["history"]
        ]

    def layers(self) -> Iterator[tuple[str, nn.Parameter, SplitLayer, dict[str, Any]]]:
        """Replace the layers one by one, and yield each with the weight that it replaces."""
        for entry in last_splits(self.splits):
            layer: Any = self._model.get_submodule(entry["name"])
            weight = layer.weight
            split_type = SPLIT_TYPES[kind_of(layer)]
            made = split_type.empty_like(layer, entry["rank"], weight.device)
            replace_layers(self._model, {entry["name"]: made}, inplace=True)
            yield entry["name"], weight, made, dict(entry)


def last_splits(splits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last split of each layer, in the order of the first ones: ranks may be lowered."""
    return list({entry["name"]: entry for entry in splits}.values())


def _difference(saved: dict[str, Any], built: dict[str, Any]) -> str:
    """Return how the tensors of two fingerprints differ."""
    old, new = saved["tensors"], built["tensors"]
    differences = {
        "not in this one": [name for name in old if name not in new],
        "not in the state's": [name for name in new if name not in old],
        "of another shape": [
            f"{name} {tuple(old[name])}, here {tuple(new[name])}"
            for name in old
            if name in new and old[name] != new[name]
        ],
    }
    parts = [f"{what}: {listed(names, most=4)}" for what, names in differences.items() if names]
    return "; ".join(parts) or f"a {saved['type']}"
