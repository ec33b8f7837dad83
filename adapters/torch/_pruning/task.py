"""One pruning of a torch model: `rmtspec.adapting.Task` with a device and calibration data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._calibration.calibrate import Asked, known_weights
from rmtspec.adapters.torch._layers.replace import model_sizes, totals
from rmtspec.adapters.torch._pruning.analysis import analyze_subject
from rmtspec.adapters.torch._pruning.eigensolver import usable_device
from rmtspec.adapters.torch._weights.subject import subject_of
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Plan, PlanOptions, Task, Weights


class PruningTask(Task[WeightMatrix]):
    """The checked options of one pruning, the analysis they ask for, and the plan."""

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
        self._model, self._device = model, device

    def run(self, asked: Asked | None = None) -> tuple[Plan, Mapping[str, Weights]]:
        """Return the plan, and what calibration says about the matrices that may be cut.

        A budget goes by it. Without a budget, only matrices that are cut are calibrated.
        """
        options, matrices = self.options, self.subject.matrices
        report = analyze_subject(
            self.subject, options.analysis, device=self._device, n_jobs=options.n_jobs,
            progress=options.progress, plain=self.settled,
        )  # fmt: skip
        weights: Mapping[str, Weights] = {}
        settings: dict[str, Any] = {}
        if asked is None or options.budget is None:
            made = self.plan(report)
        if asked is not None:
            names = [row["name"] for row in made.cut] if options.budget is None else None
            names = self.candidates(report) if names is None else names
            weights, settings = known_weights(self._model, [matrices[n] for n in names], asked)
            if options.budget is not None:
                made = self.plan(report, weights)
        before = model_sizes(self._model)
        after = {
            unit: size - sum(row[f"{unit}_before"] - row[f"{unit}_after"] for row in made.rows)
            for unit, size in before.items()
        }
        settings = made.settings | settings
        return dataclasses.replace(made, totals=totals(before, after), settings=settings), weights
