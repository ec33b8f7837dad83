"""What is done to a net while it trains: nothing, or one of the ways that are compared."""

from typing import Any

import torch
from torch import nn

from rmtspec.adapters import torch as rt

#: The cycle whose spectra are written down, for Tables 1 and 2.
SPECTRA_OF_CYCLE = 2


class Method:
    """A run that is left alone; what the others change of it."""

    #: Epochs in which a run cannot differ from the unsplit one.
    unchanged_epochs = 0

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def penalty(self) -> torch.Tensor | None:
        """Return what is added to the loss of a batch."""
        return None

    def after_epoch(self, loss: float) -> dict[str, Any] | None:
        """Act after an epoch, and return what was done to each matrix."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""


class Counted(Method):
    """A method that acts by the number of epochs."""

    epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """Return how many epochs there were."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.epoch = state["epoch"]


class FreshOptimizer(Counted):
    """The optimizer's state is forgotten every so many epochs, and nothing else is done."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, every: int) -> None:
        super().__init__(model, optimizer)
        self.every = self.unchanged_epochs = every

    def after_epoch(self, loss: float) -> dict[str, Any] | None:
        """Forget the state at the end of a cycle."""
        self.epoch += 1
        if self.epoch % self.every == 0:
            self.optimizer.state.clear()
        return None


class RaisedRate(Counted):
    """The learning rate is multiplied once, after an epoch, and nothing else is done."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, after: int, factor: float
    ) -> None:
        super().__init__(model, optimizer)
        self.after = self.unchanged_epochs = after
        self.factor = factor

    def after_epoch(self, loss: float) -> dict[str, Any] | None:
        """Raise the rate when it is time; a resumed run has it in the optimizer's state."""
        self.epoch += 1
        if self.epoch == self.after:
            for group in self.optimizer.param_groups:
                group["lr"] *= self.factor
        return None


class Split(Method):
    """Layers split by `RMTPruner`, with its options.

    `fresh_optimizer` forgets the optimizer's state at a split, as the paper's notebook does.
    `from_start` splits before the first epoch. Factors are cut again, as published, unless
    `recut` says otherwise: the default is set here, because the names of records follow from the
    options that are given.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        fresh_optimizer: bool = False,
        from_start: bool = False,
        recut: bool | str = "factors",
        **options: Any,
    ) -> None:
        super().__init__(model, optimizer)
        self.fresh = fresh_optimizer
        # On the CPU, wherever the net is: a GPU is left to the steps, also to those of other runs.
        self.pruner = rt.RMTPruner(model, optimizer, device="cpu", recut=recut, **options)
        self.unchanged_epochs = 0 if from_start else self.pruner.next_epoch or 0
        if from_start:
            self.pruner.step()

    def after_epoch(self, loss: float) -> dict[str, Any] | None:
        """Act as the pruner does."""
        report = self.pruner.step(loss)
        if report is None:
            return None
        changed = [row for row in report.rows if row["action"] != "keep"]
        if changed and self.fresh:
            self.optimizer.state.clear()
        spectra = {
            name: {"n": found.spectrum.n, "eigenvalues": rounded(found.spectrum.eigenvalues)}
            for name, found in report.matrices.items()
            if len(self.pruner.history) == SPECTRA_OF_CYCLE
        }
        shown = ("name", "action", "rank", "n_spikes", "fit_statistic", "threshold", "reason")
        rows = [{key: row[key] for key in shown} for row in report.rows]
        return {"matrices": rows, "spectra": spectra}

    def state_dict(self) -> dict[str, Any]:
        """Return the pruner's state."""
        return self.pruner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give it back to the pruner."""
        self.pruner.load_state_dict(state)


class BulkPenalised(Split):
    """A penalty on the bulk in every batch until the first split, which it prepares."""

    def __init__(self, *net: Any, norm: str, strength: float, **options: Any) -> None:
        super().__init__(*net, **options)
        self.unchanged_epochs = 0
        self._penalty: rt.BulkPenalty | None = rt.BulkPenalty(self.model, strength, norm=norm)

    def penalty(self) -> torch.Tensor | None:
        """Return the penalty on the bulk."""
        return None if self._penalty is None else self._penalty()

    def after_epoch(self, loss: float) -> dict[str, Any] | None:
        """Act as the pruner does; look for the spikes anew."""
        change = super().after_epoch(loss)
        if change:
            self._penalty = None
        elif self._penalty is not None:
            self._penalty.refresh()
        return change

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give it back to the pruner; after a split there is no penalty."""
        super().load_state_dict(state)
        if self.pruner.history:
            self._penalty = None
        elif self._penalty is not None:
            self._penalty.refresh()


class NuclearNorm(Split):
    """A nuclear-norm penalty as a proximal step after each epoch, until the first split."""

    def __init__(self, *net: Any, strength: float, steps: int, **options: Any) -> None:
        super().__init__(*net, **options)
        self.unchanged_epochs = 0
        group = self.optimizer.param_groups[0]
        self._amount = strength * steps * group["lr"] / (1 - group.get("momentum", 0.0))

    def after_epoch(self, loss: float) -> dict[str, Any] | None:
        """Shrink the singular values, then act as the pruner does."""
        if not self.pruner.history:
            rt.shrink_singular_values(self.model, self._amount)
        return super().after_epoch(loss)


def rounded(values: Any) -> list[float]:
    """Return numbers with the six digits that a figure needs."""
    return [float(f"{value:.6g}") for value in values]


METHODS: dict[str, type[Method]] = {
    "unsplit": Method,
    "fresh-optimizer": FreshOptimizer,
    "raised-rate": RaisedRate,
    "paper": Split,  # the algorithm with the options of the paper
    "edge": Split,  # all of the bulk removed, once
    "split": Split,  # any other options
    "bulk-penalty": BulkPenalised,
    "nuclear-norm": NuclearNorm,
}
