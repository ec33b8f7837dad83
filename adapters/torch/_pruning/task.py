"""One pruning of a torch model: `rmtspec.adapting.Task` with a device and calibration data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._calibration.calibrate import NOTHING, Asked, known_weights
from rmtspec.adapters.torch._layers.replace import model_sizes, totals
from rmtspec.adapters.torch._pruning.analysis import analyze_subject
from rmtspec.adapters.torch._pruning.carry_out import carry_out
from rmtspec.adapters.torch._pruning.eigensolver import usable_device
from rmtspec.adapters.torch._weights.subject import subject_of
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import (
    Curves,
    Plan,
    PlanOptions,
    Report,
    Task,
    least_budget,
)


class PruningTask(Task[WeightMatrix]):
    """The checked options of one pruning, the analysis they ask for, and the plan.

    Attributes
    ----------
    model : torch.nn.Module
    known : Known
        What calibration says about the matrices; after `prepare`.
    """

    def __init__(
        self,
        model: nn.Module,
        options: PlanOptions,
        device: str | torch.device | None = None,
        leave: Callable[[WeightMatrix], str] | None = None,
        matrices: Mapping[str, WeightMatrix] | None = None,
    ) -> None:
        super().__init__(subject_of(model, options.selection(), leave, matrices), options)
        if device is not None:
            usable_device(device)
        self.model, self._device = model, device
        self.known = NOTHING
        self._curves: Curves | None = None

    def run(self, asked: Asked | None = None) -> Plan:
        """Return the plan. A budget goes by calibration, if there is any."""
        return self.made(self.prepare(asked))

    def prepare(self, asked: Asked | None = None) -> Report:
        """Return the analysis, and calibrate the matrices that may be cut.

        Without a budget, these are only the ones that are.
        """
        options, matrices = self.options, self.subject.matrices
        report = analyze_subject(
            self.subject, options.analysis, device=self._device, n_jobs=options.n_jobs,
            progress=options.progress, plain=self.settled,
        )  # fmt: skip
        if asked is not None:
            names = self.candidates(report)
            if options.budget is None:
                names = [row["name"] for row in self.plan(report).cut]
            self.known = known_weights(self.model, [matrices[name] for name in names], asked)
            if options.budget is not None:
                self._curves = self.curves(report, self.known.weights, self.known.hidden)
        return report

    def made(self, report: Report, budget: float | None = None) -> Plan:
        """Return the plan from the analysis, with what is left of the model."""
        made = self.plan(report, self._curves, budget=budget)
        before = model_sizes(self.model)
        after = {
            unit: size - sum(row[f"{unit}_before"] - row[f"{unit}_after"] for row in made.rows)
            for unit, size in before.items()
        }
        settings = made.settings | self.known.settings
        return dataclasses.replace(made, totals=totals(before, after), settings=settings)

    def least_budget(self, report: Report) -> float:
        """Return the share of the parameters that the lowest ranks take."""
        return least_budget(report, self.subject.targets, self.options, self._curves)

    def carry_out(self, plan: Plan, *, inplace: bool) -> tuple[Any, Plan]:
        """Return the pruned model, and the plan with the measured errors."""
        matrices = dict(self.subject.matrices)
        if inplace:
            self.subject.matrices.clear()  # so that replaced weights can be freed
        return carry_out(self.model, plan, matrices, known=self.known, inplace=inplace)
