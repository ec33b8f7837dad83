"""A pruner in a trainer's loop: made when training begins, kept in step, and resumed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._layers.replace import replace_layers
from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch._training.pruner import RMTPruner
from rmtspec.adapters.torch._training.state import last_splits
from rmtspec.adapting import Action, Every, Report
from rmtspec.errors import InvalidValueError


class PrunerCallback:
    """What the callbacks of all trainers have in common; the options are those of `RMTPruner`."""

    #: The pruner; None before training begins.
    pruner: RMTPruner | None = None
    _optimizer: Any = None
    _first: int | None = None

    def __init__(
        self,
        *,
        every: Every = 3,
        bulk_keep: float | None = None,
        fit_cutoff: float | None = 0.1,
        match_step: bool | str = True,
        decay: str = "factors",
        **options: Any,
    ) -> None:
        super().__init__()
        self._options: dict[str, Any] = {
            "every": every, "bulk_keep": bulk_keep, "fit_cutoff": fit_cutoff,
            "match_step": match_step, "decay": decay, **options,
        }  # fmt: skip

    @property
    def history(self) -> list[Report]:
        """What was decided at the end of each cycle."""
        return [] if self.pruner is None else self.pruner.history

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs: plain numbers, text and lists."""
        if self.pruner is None:
            return {}
        order = _order(self.pruner.model, self._optimizer)
        return {"pruner": self.pruner.state_dict(), "first": self._first, "order": order}

    def _begin(
        self,
        model: nn.Module,
        optimizer: Any,
        state: dict[str, Any] | None,
        load: Callable[[], object] | None = None,
    ) -> None:
        """Make the pruner, or continue with that of the same model.

        `state` is that of the training that is resumed, if any. `load` fills the layers that were
        split; without it the model has them already, filled.
        """
        optimizer = innermost(optimizer)
        before = self.pruner if self.pruner is not None and self.pruner.model is model else None
        self._first = None if state is None else state["first"]
        if state is None and before is not None and optimizer is self._optimizer:
            return
        of_pruner: dict[str, Any] | None = None
        if state is not None:
            of_pruner = state["pruner"]
        elif before is not None:
            of_pruner = before.state_dict()
        to_load = load is not None
        if of_pruner is not None and load is None:
            if state is not None:
                _check_order(state["order"], _order(model, optimizer))
            load = _unsplit(model, optimizer, of_pruner["splits"])
        run_closure_first(optimizer)
        pruner = RMTPruner(model, optimizer, **self._options)
        if of_pruner is not None and load is not None:
            pruner.load_state_dict(of_pruner)
            load()
        if state is not None and to_load:
            _check_order(state["order"], _order(model, optimizer))
        self.pruner, self._optimizer = pruner, optimizer

    def _catch_up(self, finished: int) -> bool:
        """Count epochs whose end the trainer did not report: a checkpoint was taken just before.

        `finished` is how many epochs the trainer has finished. Return whether any were missing.
        """
        pruner = self._begun()
        if self._first is None:
            self._first = finished - pruner.epoch
        missed = finished - self._first - pruner.epoch
        for _ in range(missed):
            pruner.step()
        return missed > 0

    def _end_epoch(self, loss: Any = None) -> dict[str, int] | None:
        """Count an epoch; if something was decided, return figures of what was split."""
        pruner = self._begun()
        report = pruner.step(loss)
        if report is None:
            return None
        now = sum(parameter.numel() for parameter in pruner.model.parameters())
        split = {row["layer"] for row in report.rows if row["action"] == Action.SPLIT}
        return {
            "rmtspec/parameters_before": report.totals.get("parameters_before", now),
            "rmtspec/parameters_after": now,
            "rmtspec/layers_split": len(split),
        }

    def _begun(self) -> RMTPruner:
        if self.pruner is None:
            raise InvalidValueError(
                "No training has begun. Pass the callback to the trainer when you make it."
            )
        return self.pruner


def innermost(optimizer: Any) -> Any:
    """Return the optimizer that a library wrapped."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def run_closure_first(optimizer: torch.optim.Optimizer) -> None:
    """Run the closure of a step before the hooks that the pruner registers after this one.

    They need gradients, which Lightning computes in the closure; torch calls hooks before it. The
    first call of the closure within the step returns the result of this one.
    """

    def run(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            return None
        results = [closure()]

        def again() -> Any:
            return results.pop() if results else closure()

        return args[:1], {**kwargs, "closure": again}

    optimizer.register_step_pre_hook(run)


def _order(model: nn.Module, optimizer: Any) -> list[list[str]]:
    """Return the names of the parameters in each group of an optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        [names.get(id(parameter), "") for parameter in group["params"]]
        for group in optimizer.param_groups
    ]


def _check_order(saved: list[list[str]], built: list[list[str]]) -> None:
    """Raise if an optimizer's state would go to other parameters than those it belongs to."""
    if saved != built:
        was = [name for group in saved for name in group]
        now = [name for group in built for name in group]
        differ = (f": {b!r} where {a!r} was" for a, b in zip(was, now, strict=False) if a != b)
        raise InvalidValueError(
            "The optimizer holds its parameters in other groups or another order than in the "
            f"checkpoint{next(differ, '')}, so that its state would go to the wrong ones. Build "
            "the optimizer as in the training that is resumed."
        )


def _unsplit(
    model: nn.Module, optimizer: Any, splits: list[dict[str, Any]]
) -> Callable[[], object]:
    """Undo the splits of a pruner in model and optimizer, as a new pruner expects them.

    Return a function that restores the values and states of the factors, to be called once the new
    pruner has made them.
    """
    modules = dict(model.named_modules())
    splits = last_splits(splits)
    for entry in splits:
        present = modules.get(entry["name"])
        if not isinstance(present, SplitLayer) or present.rank != entry["rank"]:
            raise InvalidValueError(
                f"The checkpoint has {entry['name']!r} split at rank {entry['rank']}, but the "
                "model does not. Pass the model as built for the training that is resumed."
            )
    values = {name: value.detach().clone() for name, value in model.state_dict().items()}
    states = {name: optimizer.state.get(p) for name, p in model.named_parameters()}

    def give_back() -> None:
        model.load_state_dict(values)
        for name, parameter in model.named_parameters():
            if states[name] is not None:
                optimizer.state[parameter] = states[name]

    for entry in reversed(splits):  # a factor that was split again before its layer
        layer: Any = model.get_submodule(entry["name"])
        factors = [layer.inner.weight, layer.outer.weight]
        merged = layer.merged(entry["name"])
        for group in optimizer.param_groups:
            held, names = group["params"], group.get("param_names")
            for place in reversed(range(len(held))):
                if held[place] is factors[1]:
                    del held[place]
                    if names:
                        del names[place]
                elif held[place] is factors[0]:
                    held[place] = merged.weight
                    if names:
                        names[place] = f"{names[place].removesuffix('inner.weight')}weight"
        for factor in factors:
            optimizer.state.pop(factor, None)
        replace_layers(model, {entry["name"]: merged}, inplace=True)
    return give_back
