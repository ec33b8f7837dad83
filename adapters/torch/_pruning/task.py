"""One pruning of a torch model: the framework-free task, with devices and calibration data."""

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from rmtspec.adapters.torch._layers.replace import model_sizes
from rmtspec.adapters.torch._pruning.analysis import analyze_subject, subject_of
from rmtspec.adapters.torch._pruning.calibration import Calibration
from rmtspec.adapters.torch._pruning.carry_out import Moments, moment_of, moments_of
from rmtspec.adapters.torch._pruning.eigensolver import usable_device
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Plan, PlanOptions, Report, Task, output_energies


class PruningTask(Task[WeightMatrix]):
    """The options of one pruning, checked, the analysis they lead to, and the plan."""

    def __init__(
        self,
        model: nn.Module,
        options: PlanOptions,
        device: str | torch.device | None = None,
        leave: Callable[[WeightMatrix], str] | None = None,
    ) -> None:
        super().__init__(subject_of(model, options.selection(), leave), options)
        if device is not None:
            usable_device(device)
        self._model, self._device = model, device

    def analyze(self) -> Report:
        """Return the report that `plan` needs."""
        options = self.options
        return analyze_subject(
            self.subject,
            options.analysis,
            device=self._device,
            n_jobs=options.n_jobs,
            progress=options.progress,
        )

    def moments(self, report: Report, calibration: Calibration | None) -> Moments:
        """Return the input moments of the layers that may be cut."""
        if calibration is None:
            return {}
        if self.options.budget is not None:
            cut = self.candidates(report)
        else:
            cut = [row["name"] for row in self.plan(report).cut]
        return moments_of(self._model, self.subject.matrices, cut, calibration)

    def plan_for(self, report: Report, moments: Moments) -> Plan:
        """Return the plan; with a budget, by the errors of the outputs where moments are given."""
        energies = {}
        if self.options.budget is not None:
            for name, matrix in self.subject.matrices.items():
                moment = None if matrix.reason else moment_of(matrix, moments)
                if moment is not None:
                    energies[name] = output_energies(matrix(), moment)
        made = self.plan(report, energies)
        before = model_sizes(self._model)
        saved = {
            unit: sum(row[f"{unit}_before"] - row[f"{unit}_after"] for row in made.rows)
            for unit in before
        }
        totals = {f"{unit}_before": size for unit, size in before.items()}
        totals |= {f"{unit}_after": size - saved[unit] for unit, size in before.items()}
        return dataclasses.replace(made, totals=totals)
