"""Pruning: a plan for every weight matrix, and carrying it out."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec._given_plan import adopt
from rmtspec._plan import Target, candidates, check_ranks, make_plan, settle
from rmtspec._plan_options import analysis_options, sizes_only
from rmtspec._selection import Pattern
from rmtspec._split import SplitFactors, output_energies, split
from rmtspec._truncate import truncate
from rmtspec.adapters.torch._analysis import Chosen, analyze_chosen
from rmtspec.adapters.torch._calibration import Calibration, input_moments
from rmtspec.adapters.torch._layer_kinds import ON_REQUEST, ROOT
from rmtspec.adapters.torch._layers import SPLIT_TYPES
from rmtspec.adapters.torch._matrices import weight_matrices
from rmtspec.adapters.torch._replace import check_inplace, model_sizes, replace_layers
from rmtspec.adapters.torch._weight_matrix import WeightMatrix
from rmtspec.errors import InvalidValueError
from rmtspec.report import Progress, Report

Moments = Mapping[str, list[NDArray[np.float64]]]
#: Kinds of layer whose inputs a hook sees as they are multiplied.
_CALIBRATED = ("linear", "transposed linear", "conv1d", "conv2d", "conv3d")


def plan(
    model: nn.Module,
    *,
    rule: str | None = None,
    bulk_keep: float | None = None,
    fit_cutoff: float | None = None,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    min_saving: float = 0.0,
    mode: str = "split",
    calibration: Calibration | None = None,
    budget: float | None = None,
    ranks: Mapping[str, int] | None = None,
    device: str | torch.device | None = None,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Plan what `prune` would do, without touching the model.

    The plan is a `Report` whose rows have "action" ("split", "truncate", "keep"), "rank", sizes
    before and after, and the reason where a layer stays as it is. Rows may be edited (action and
    rank), the plan saved with `to_json`, read with `Report.from_json`, and carried out by
    `apply_plan`.

    Parameters are those of `prune`. Without a budget, `calibration` plays no part in a plan: give
    it to `apply_plan`.

    Returns
    -------
    Report

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model = rt.MLP([64, 100, 50, 10])
    >>> planned = rt.plan(model, bulk_keep=0.2)
    >>> planned.row("layers.0")["action"], planned.row("layers.0")["rank"]
    ('split', 12)
    >>> planned.row("layers.0")["rank"] = 8
    >>> smaller, report = rt.apply_plan(model, planned)
    >>> smaller.layers[0].rank
    8
    """
    task = _Task(
        model, rule, bulk_keep, fit_cutoff, include, exclude, min_saving, mode, budget, ranks,
        device, n_jobs, progress, options,
    )  # fmt: skip
    return task.plan(task.moments(calibration) if budget is not None else {})


def prune(
    model: nn.Module,
    *,
    rule: str | None = None,
    bulk_keep: float | None = None,
    fit_cutoff: float | None = None,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    min_saving: float = 0.0,
    inplace: bool = False,
    mode: str = "split",
    calibration: Calibration | None = None,
    budget: float | None = None,
    ranks: Mapping[str, int] | None = None,
    device: str | torch.device | None = None,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Any, Report]:
    """Prune a model: split the layers where that saves parameters, and report on all of them.

    Each weight matrix is analysed, a rank chosen, and the layer replaced by two thinner ones
    (the paper, section 4.4). A layer stays as it is, with the reason in the report, where the split
    saves nothing, the fit is rejected by `fit_cutoff`, no signal is found, the smaller side
    is below 16, its weight is tied to another layer's, or code of another layer reads it.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, trained; not wrapped for parallel work nor compiled.
    rule : {"bema"}
        How the rank follows from the spectrum; by default "bema".
    bulk_keep : float
        Share of the bulk that is kept beside the spikes, by default 0.45 as in the paper.
    fit_cutoff : float, optional
        The paper's gamma: split only where the fit statistic is at most this. By default
        any fit will do; the report shows it.
    include, exclude : str, pattern, predicate on (name, module), or several
        Which matrices. What `include` names is cut even where it is small or an embedding.
    min_saving : float
        Least share of a layer's parameters that a split must save.
    inplace : bool
        Change `model` itself. Otherwise it is left untouched, and weights that are replaced are not
        copied.
    mode : {"split", "truncate"}
        "truncate" puts the low-rank approximation in place of the weight: same shapes, nothing
        saved.
    calibration : iterable of model inputs, or callable, optional
        A tensor, a tuple of positional arguments or a mapping of keywords each; a callable is
        given the model and runs it. The split then keeps the layer's outputs on these inputs
        as well as that rank allows, instead of its weight.
    budget : float, optional
        Share of the parameters of the layers in question to keep; takes the place of `rule` and
        `bulk_keep`. Rank goes where the relative error falls most per parameter.
    ranks : mapping of str to int, optional
        Ranks by name, whatever they save and however the fit is.
    device, n_jobs, progress
        As for `analyze`.
    **options
        Of `rmtspec.analyze`: `alpha`, `beta`, ...

    Returns
    -------
    model : torch.nn.Module
        The smaller model; `model` itself with `inplace`.
    report : Report
        The plan as carried out; errors are measured.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        The model is then untouched.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model = rt.MLP([64, 100, 50, 10])
    >>> smaller, report = rt.prune(model, bulk_keep=0.2)
    >>> report.totals["parameters_before"], report.totals["parameters_after"]
    (12060, 4128)
    >>> smaller(torch.ones(1, 64)).shape
    torch.Size([1, 10])
    """
    task = _Task(
        model, rule, bulk_keep, fit_cutoff, include, exclude, min_saving, mode, budget, ranks,
        device, n_jobs, progress, options,
    )  # fmt: skip
    moments = task.moments(calibration)
    return _carry_out(model, task.plan(moments), task.chosen.matrices, moments, inplace)


def apply_plan(
    model: nn.Module,
    plan: Report,
    *,
    inplace: bool = False,
    calibration: Calibration | None = None,
) -> tuple[Any, Report]:
    """Carry out a plan, edited or read from a file, on the model it was made for.

    Parameters
    ----------
    model : torch.nn.Module
    plan : Report
        From `plan`, or `Report.from_json`.
    inplace, calibration
        As for `prune`.

    Returns
    -------
    model : torch.nn.Module
    report : Report

    Raises
    ------
    InvalidTypeError, InvalidValueError
        The plan is none, has an impossible rank or action, or does not fit the model.
    """
    matrices = dict(weight_matrices(model))
    checked = adopt(
        plan,
        _targets(matrices, frozenset(), {}),
        {name: matrix.shape for name, matrix in matrices.items()},
        {name: matrix.kind for name, matrix in matrices.items()},
        owner=f"this {type(model).__name__}",
    )
    _check_groups(checked, matrices)
    for row in checked.rows:
        if row["action"] != "keep" and not matrices[row["name"]].is_finite():
            raise InvalidValueError(
                f"{row['name']!r} has nan or infinite entries; expected finite numbers. Set its "
                'action to "keep".'
            )
    moments: Moments = {}
    if calibration is not None:
        cut = [row["name"] for row in checked.rows if row["action"] != "keep"]
        moments = _moments(model, matrices, cut, calibration)
    return _carry_out(model, checked, matrices, moments, inplace)


class _Task:
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
    ) -> None:
        analysis = analysis_options(
            mode, rule=rule, bulk_keep=bulk_keep, fit_cutoff=fit_cutoff, min_saving=min_saving,
            budget=budget, n_jobs=n_jobs, options=options,
        )  # fmt: skip
        self.chosen = Chosen(model, include, exclude)
        self.targets = _targets(self.chosen.matrices, self.chosen.named, self.chosen.apart)
        matrices = self.chosen.matrices
        sides = {name: m.shape for name, m in matrices.items() if not m.reason}
        unread = {name: m.reason for name, m in matrices.items() if m.reason}
        check_ranks(ranks or {}, sizes_only(sides, unread), self.targets)
        self._how: dict[str, Any] = {"mode": mode, "fit_cutoff": fit_cutoff, "ranks": ranks}
        self._more: dict[str, Any] = {"min_saving": min_saving, "budget": budget}
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
        return _moments(self.chosen.model, self.chosen.matrices, cut, calibration)

    def plan(self, moments: Moments) -> Report:
        """Return the plan; with a budget, by the errors of the outputs where moments are given."""
        energies = {}
        if self._more["budget"] is not None:
            for name, matrix in self.chosen.matrices.items():
                moment = None if matrix.reason else _moment(matrix, moments)
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


def _moment(matrix: WeightMatrix, moments: Moments) -> NDArray[np.float64] | None:
    """Return the input moment of a matrix: that of its group, in a convolution with groups."""
    found = moments.get(matrix.layer)
    if found is None:
        return None
    if len(found) == 1 or not isinstance(matrix.part, slice):
        return found[0]
    return found[int(matrix.part.start) // matrix.shape[0]]


def _moments(
    model: nn.Module,
    matrices: Mapping[str, WeightMatrix],
    names: list[str],
    calibration: Calibration,
) -> Moments:
    layers = {}
    for name in names:
        matrix = matrices[name]
        if matrix.kind in _CALIBRATED and not matrix.whole:
            layers[matrix.layer] = model.get_submodule(_path(matrix))
    return input_moments(model, layers, calibration)


def _targets(
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


def _check_groups(plan: Report, matrices: Mapping[str, WeightMatrix]) -> None:
    """Raise where a plan splits some matrices of a weight and not the others."""
    cut = {row["name"] for row in plan.rows if row["action"] == "split"}
    keys = {matrices[name].key: name for name in sorted(cut)}
    for name, matrix in matrices.items():
        if matrix.key in keys and name not in cut:
            raise InvalidValueError(
                f"The plan splits {keys[matrix.key]!r} and not {name!r}; the groups of a "
                'convolution are split together. Set the action of all of them to "split".'
            )


def _fixed(matrix: WeightMatrix) -> str:
    """Return why a weight cannot be replaced by factors of its own dtype, or ""."""
    if matrix.parameter.element_size() == 1:
        return f"{matrix.parameter.dtype} has no arithmetic: prune the model before quantising it"
    return ""


def _path(matrix: WeightMatrix) -> str:
    return "" if matrix.layer == ROOT else matrix.layer


def _carry_out(
    model: nn.Module,
    plan: Report,
    matrices: dict[str, WeightMatrix],
    moments: Moments,
    inplace: bool,
) -> tuple[Any, Report]:
    """Return the pruned model and the plan with the errors as measured.

    Matrices that are cut are taken out of `matrices`, so that a weight that was replaced in
    place is free before the next one is split.
    """
    before = model_sizes(model)
    new: dict[str, nn.Module] = {}
    written: dict[str, NDArray[Any]] = {}
    parts: dict[str, dict[int, SplitFactors]] = {}  # by the first row of each group
    cut = [matrices[row["name"]] for row in plan.rows if row["action"] == "split"]
    groups = Counter(matrix.layer for matrix in cut)
    if inplace:
        check_inplace(map(_path, cut))
    del cut
    for row in plan.rows:
        if row["action"] == "keep":
            settle(row)
            continue
        matrix = matrices.pop(row["name"])
        moment = _moment(matrix, moments)
        method = truncate if row["action"] == "truncate" else split
        found: Any = method(matrix(), row["rank"], input_moment=moment)
        row["weight_error"] = found.error
        row["output_error"] = None if moment is None else found.output_error
        if moments and moment is None:
            notes = (row.get("note"), "inputs not known: weight only")
            row["note"] = "; ".join(filter(None, notes))
        if row["action"] == "truncate":
            if inplace:
                matrix.write(found.matrix)
            else:
                written[row["name"]] = found.matrix
            continue
        made = parts.setdefault(matrix.layer, {})
        made[matrix.part.start if isinstance(matrix.part, slice) else 0] = found
        if len(made) == groups[matrix.layer]:
            path, kind = _path(matrix), matrix.kind
            ordered = [factors for _, factors in sorted(made.items())]
            new[path] = SPLIT_TYPES[kind].from_factors(model.get_submodule(path), ordered)
            del matrix, found, made, ordered, parts[row["layer"]]
            if inplace:
                replace_layers(model, {path: new.pop(path)}, inplace=True)
    result = model if inplace else replace_layers(model, new, inplace=False)
    if written:
        places = dict(weight_matrices(result))
        for name, product in written.items():
            places[name].write(product)
    after = model_sizes(result)
    totals = {f"{unit}_before": size for unit, size in before.items()}
    totals |= {f"{unit}_after": size for unit, size in after.items()}
    return result, dataclasses.replace(plan, totals=totals)
