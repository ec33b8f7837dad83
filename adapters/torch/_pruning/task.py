"""One pruning: its options, checked, the analysis they lead to, and the plan that follows."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._layers.replace import model_sizes
from rmtspec.adapters.torch._pruning.analysis import Chosen, analyze_chosen
from rmtspec.adapters.torch._pruning.calibration import Calibration
from rmtspec.adapters.torch._pruning.carry_out import Moments, moment_of, moments_of
from rmtspec.adapters.torch._pruning.eigensolver import usable_device
from rmtspec.adapters.torch._weights.layer_kinds import ON_REQUEST
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.matrix.split import output_energies
from rmtspec.planning.options import analysis_options, sizes_only
from rmtspec.planning.plan import Target, candidates, check_ranks, make_plan
from rmtspec.planning.selection import Pattern
from rmtspec.report.options import Progress, check_progress
from rmtspec.report.report import Report
from rmtspec.terms import Why


class PruningTask:
    """The options of one pruning, checked, and the analysis they lead to."""

    def __init__(
        self,
        model: nn.Module,
        rule: str | None,
        bulk_keep: float | None,
        fit_cutoff: float | None,
        include: Pattern | None,
        exclude: Pattern | None,
        min_saving: float,
        mode: str,
        budget: float | None,
        ranks: Mapping[str, int] | None,
        device: str | torch.device | None,
        n_jobs: int | None,
        progress: Progress | None,
        options: dict[str, Any],
        leave: Callable[[WeightMatrix], str] | None = None,
        only_check: bool = False,
    ) -> None:
        analysis = analysis_options(
            mode, rule=rule, bulk_keep=bulk_keep, fit_cutoff=fit_cutoff, min_saving=min_saving,
            budget=budget, n_jobs=n_jobs, options=options,
        )  # fmt: skip
        self.chosen = Chosen(model, include, exclude, leave)
        self.targets = targets_of(self.chosen.matrices, self.chosen.named, self.chosen.apart)
        matrices = self.chosen.matrices
        sides = {name: m.shape for name, m in matrices.items() if not m.reason}
        unread = {name: m.reason for name, m in matrices.items() if m.reason}
        check_ranks(ranks or {}, sizes_only(sides, unread), self.targets, mode)
        self._how: dict[str, Any] = {"mode": mode, "fit_cutoff": fit_cutoff, "ranks": ranks}
        self._more: dict[str, Any] = {"min_saving": min_saving, "budget": budget}
        check_progress(progress)
        if device is not None:
            usable_device(device)
        if only_check:
            return
        self.report = analyze_chosen(self.chosen, device, n_jobs, progress, analysis)

    def moments(self, calibration: Calibration | None) -> Moments:
        """Return the input moments of the layers that may be cut."""
        if calibration is None:
            return {}
        if self._more["budget"] is not None:
            cut = candidates(self.report, self.targets, **self._how)
        else:
            rows = self.plan({}).rows
            cut = [row["name"] for row in rows if row["action"] != "keep"]
        return moments_of(self.chosen.model, self.chosen.matrices, cut, calibration)

    def plan(self, moments: Moments) -> Report:
        """Return the plan; with a budget, by the errors of the outputs where moments are given."""
        energies = {}
        if self._more["budget"] is not None:
            for name, matrix in self.chosen.matrices.items():
                moment = None if matrix.reason else moment_of(matrix, moments)
                if moment is not None:
                    energies[name] = output_energies(matrix(), moment)
        made = make_plan(self.report, self.targets, **self._how, **self._more, energies=energies)
        before = model_sizes(self.chosen.model)
        saved = {
            unit: sum(row[f"{unit}_before"] - row[f"{unit}_after"] for row in made.rows)
            for unit in before
        }
        totals = {f"{unit}_before": size for unit, size in before.items()}
        totals |= {f"{unit}_after": size - saved[unit] for unit, size in before.items()}
        return dataclasses.replace(made, totals=totals)


def targets_of(
    matrices: Mapping[str, WeightMatrix], named: Collection[str], apart: Mapping[str, str]
) -> dict[str, Target]:
    """Return what may be done to each matrix, whatever its spectrum says."""
    return {
        name: Target(
            layer=matrix.layer,
            itemsize=matrix.itemsize,
            tied=matrix.tied or matrix.reason or _fixed(matrix),
            whole=matrix.whole or apart.get(matrix.key, ""),
            on_request=ON_REQUEST.get(matrix.kind, ""),
            named=name in named,
            aliases=(matrix.key,),
        )
        for name, matrix in matrices.items()
        if matrix.kind
    }


def _fixed(matrix: WeightMatrix) -> str:
    """Return why a weight cannot be replaced by factors of its own dtype, or ""."""
    if matrix.parameter.element_size() == 1:
        return Why.NO_ARITHMETIC.words(dtype=matrix.parameter.dtype)
    return ""
