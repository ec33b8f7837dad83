"""One pruning of a torch model: `rmtspec.adapting.Task` with a device and calibration data."""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import nn

from rmtspec.adapters.torch._layers.replace import model_sizes, totals
from rmtspec.adapters.torch._pruning.analysis import analyze_subject, subject_of
from rmtspec.adapters.torch._pruning.calibration import Calibration
from rmtspec.adapters.torch._pruning.carry_out import Moments, moment_of, moments_of
from rmtspec.adapters.torch._pruning.eigensolver import usable_device
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Plan, PlanOptions, Task, output_energies


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

    def run(self, calibration: Calibration | None = None) -> tuple[Plan, Moments]:
        """Return the plan, and the input moments of the matrices that may be cut.

        A budget goes by the errors of the outputs where these moments are known.
        """
        options, matrices = self.options, self.subject.matrices
        report = analyze_subject(
            self.subject, options.analysis, device=self._device, n_jobs=options.n_jobs,
            progress=options.progress, plain=self.settled,
        )  # fmt: skip
        moments: Moments = {}
        energies = {}
        if calibration is not None and options.budget is None:
            cut = [matrices[row["name"]] for row in self.plan(report).cut]
            moments = moments_of(self._model, cut, calibration)
        elif calibration is not None:
            cut = [matrices[name] for name in self.candidates(report)]
            moments = moments_of(self._model, cut, calibration)
            for name, matrix in matrices.items():
                moment = None if matrix.reason else moment_of(matrix, moments)
                if moment is not None:
                    energies[name] = output_energies(matrix(), moment)
        made = self.plan(report, energies)
        before = model_sizes(self._model)
        after = {
            unit: size - sum(row[f"{unit}_before"] - row[f"{unit}_after"] for row in made.rows)
            for unit, size in before.items()
        }
        return dataclasses.replace(made, totals=totals(before, after)), moments
