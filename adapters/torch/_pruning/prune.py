"""Pruning a trained model, and planning it: the functions that users call."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._calibration.batches import Batches
from rmtspec.adapters.torch._calibration.calibrate import NOTHING, Asked, known_weights
from rmtspec.adapters.torch._pruning.carry_out import carry_out
from rmtspec.adapters.torch._pruning.task import PruningTask
from rmtspec.adapters.torch._pruning.trade_off import to_target
from rmtspec.adapters.torch._weights.subject import subject_of
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import (
    UNSET,
    Action,
    Calibration,
    Costs,
    Gate,
    Pattern,
    Plan,
    PlanOptions,
    Progress,
    Report,
    Selection,
    Unset,
    adopt,
    check_target,
)
from rmtspec.errors import InvalidValueError


def plan(
    model: nn.Module,
    *,
    rule: str | None = None,
    bulk_keep: float | None = None,
    gate: Gate | Unset = UNSET,
    fit_cutoff: float | Unset | None = UNSET,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    min_saving: float = 0.0,
    mode: str = "split",
    calibration: Calibration | Batches | None = None,
    objective: str | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    budget: float | None = None,
    ranks: Mapping[str, int] | None = None,
    rank_multiple: int | str = 1,
    form: str | None = None,
    size: str = "parameters",
    costs: Costs | None = None,
    device: str | torch.device | None = None,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Plan:
    """Plan what `prune` would do, without changing the model.

    The parameters are those of `prune`. Action and rank of each row of the plan may be edited, the
    plan saved with `to_json`, read back with `Report.from_json`, and carried out by `apply_plan`.
    Without a budget, a plan does not depend on `calibration`: pass it to `apply_plan`.

    Returns
    -------
    Plan

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
    asked = PlanOptions(
        rule=rule, bulk_keep=bulk_keep, gate=gate, fit_cutoff=fit_cutoff, include=include,
        exclude=exclude, min_saving=min_saving, mode=mode, budget=budget, ranks=ranks,
        n_jobs=n_jobs, progress=progress, calibrated=calibration is not None,
        rank_multiple=rank_multiple, form=form, size=size, costs=costs, more=options,
    )  # fmt: skip
    data = Asked.of(calibration, objective, loss)
    return PruningTask(model, asked, device).run(None if budget is None else data)


def prune(
    model: nn.Module,
    *,
    rule: str | None = None,
    bulk_keep: float | None = None,
    gate: Gate | Unset = UNSET,
    fit_cutoff: float | Unset | None = UNSET,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    min_saving: float = 0.0,
    inplace: bool = False,
    mode: str = "split",
    calibration: Calibration | Batches | None = None,
    objective: str | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    budget: float | None = None,
    ranks: Mapping[str, int] | None = None,
    rank_multiple: int | str = 1,
    form: str | None = None,
    size: str = "parameters",
    costs: Costs | None = None,
    target: float | None = None,
    evaluate: Callable[[Any], float] | None = None,
    device: str | torch.device | None = None,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Any, Plan]:
    """Prune a model: split layers where that saves parameters, and report on all of them.

    Each weight matrix is analysed, a rank chosen, and the layer replaced by two thinner ones
    (the paper, section 4.4). A layer stays as it is, with the reason in the report, if the split
    saves nothing, the gate rejects it, no signal is found, the smaller side is below 16,
    its weight is tied to another layer's, or another layer reads its weight.

    Parameters
    ----------
    model : torch.nn.Module
        Any trained model; neither compiled nor wrapped for parallel work.
    rule : str, optional
        How the rank follows from the spectrum, as in `rmtspec.choose_rank`; by default "noise"
        where the gate asks for the noise model, else "bema". "energy" and "fraction" need the
        option `keep`: ``prune(model, rule="energy", keep=0.9)``.
    bulk_keep : float
        Share of the bulk that "bema" and "noise" keep besides what they count; by default 0.45, as
        in the paper.
    gate : {"noise"}, float or None
        What may be cut: "noise", only layers whose verdict is "noise-like bulk", which is the
        default unless `calibration` and `budget` are both given, when it is None: data decide. A
        number, the paper's gamma: only layers whose fit statistic is at most that. None: any.
        A matrix of exactly low rank passes, and is split at its numerical rank. Layers that stay
        in any case, or that `ranks` names, are analysed with the noise model "mp".
    fit_cutoff : float or None
        Another spelling of `gate`.
    include, exclude : str, pattern, predicate on (name, module), or several
        Which matrices. Those that `include` names are cut even if small or an embedding, if they
        pass the gate.
    min_saving : float
        Smallest share of a layer's parameters that a split must save.
    inplace : bool
        Change `model` itself. Otherwise it is not changed, and weights that are replaced are not
        copied.
    mode : {"split", "truncate"}
        "truncate" overwrites the weight with its low-rank approximation: same shapes, nothing
        saved.
    calibration : Calibration, iterable of model inputs, or callable, optional
        What `calibrate` returned, or the batches to call it with. The split then preserves what
        `objective` says, not the weight, as well as the rank allows.
    objective : {"loss", "outputs"}, optional
        "loss" (the default with data, wherever the model's output has a gradient): the growth of
        the loss. "outputs": the outputs of each layer. See `calibrate`.
    loss : callable, optional
        The loss, as for `calibrate`.
    budget : float, optional
        Share to keep of the parameters of all layers that may be cut; replaces `rule` and
        `bulk_keep`. Rank goes where it reduces the predicted loss most per parameter; without
        gradients, the relative error.
    ranks : mapping of str to int, optional
        Ranks by name, regardless of what they save and of the gate; the others are still gated.
    rank_multiple : int or "auto"
        Ranks that a budget or a rule chooses are multiples of it, which may be faster to multiply
        by; "auto" is 16, and 8 where the smaller side is below 256. Given ranks stay as they are.
    form : {"plain", "pivoted"}, optional
        How the product of a split linear layer is stored: as two factors, rank * (rows + columns)
        numbers; or as `rank` of its own rows and the combinations of them that give the others,
        rank * (rows + columns - rank) numbers for the same product. By default "pivoted" where a
        budget goes by predicted losses, because more rank fits into it; else "plain", which trains
        better and which other tools read. Where it is not given, such a budget may also take
        hidden units of MLPs, whose layers become smaller instead of split (action "narrow"), and
        make two kernels of a convolution's, along one axis each (form "spatial").
    size : {"parameters", "bytes", "latency"}
        What the budget is a share of. "bytes": differs from parameters only where dtypes differ.
        "latency": the seconds of the layers, as `costs` tell; ranks
        that are not faster than the dense layer are not used.
    costs : Costs, optional
        From `measure_costs`.
    target : float, optional
        Find the smallest budget at which the figure that `evaluate` returns changes by no more:
        0.1, it may rise by 0.1 (a loss); -0.02, it may fall by 0.02 (an accuracy). By bisection, to
        0.01: about seven models are made and measured. In place of `budget`.
    evaluate : callable, optional
        ``evaluate(model)`` returns the figure.
    device, n_jobs, progress
        As for `analyze`.
    **options
        Of `rmtspec.analyze`: `keep`, `alpha`, `beta`, ...

    Returns
    -------
    model : torch.nn.Module
        The smaller model; with `inplace`, `model` itself.
    report : Plan
        The plan as carried out, with measured errors.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        An option, the model or the data cannot be used; the model is not changed.

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
    check_target(target, evaluate, budget)
    tried = budget if target is None else 1.0  # the first; others follow
    asked = PlanOptions(
        rule=rule, bulk_keep=bulk_keep, gate=gate, fit_cutoff=fit_cutoff, include=include,
        exclude=exclude, min_saving=min_saving, mode=mode, budget=tried, ranks=ranks,
        n_jobs=n_jobs, progress=progress, calibrated=calibration is not None,
        rank_multiple=rank_multiple, form=form, size=size, costs=costs, more=options,
    )  # fmt: skip
    data = Asked.of(calibration, objective, loss)
    task = PruningTask(model, asked, device)
    if target is None:
        return task.carry_out(task.run(data), inplace=inplace)
    return to_target(task, data, target, evaluate, inplace=inplace)


def apply_plan(
    model: nn.Module,
    plan: Report,
    *,
    inplace: bool = False,
    calibration: Calibration | Batches | None = None,
    objective: str | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
) -> tuple[Any, Plan]:
    """Carry out a plan, edited or read from a file, on the model it was made for.

    Parameters
    ----------
    model : torch.nn.Module
    plan : Report
        From `plan` or `Report.from_json`, made for the model or for a file of its weights.
    inplace, calibration, objective, loss
        As for `prune`.

    Returns
    -------
    model : torch.nn.Module
    report : Report

    Raises
    ------
    InvalidTypeError, InvalidValueError
        `plan` is not a plan, has an impossible rank or action, or does not fit the model.
    """
    subject = subject_of(model, Selection())
    matrices = subject.matrices
    checked = adopt(plan, subject.targets, owner=f"this {type(model).__name__}")
    _check_groups(checked, matrices)
    for row in checked.cut:
        if not matrices[row["name"]].is_finite():
            raise InvalidValueError(
                f"{row['name']!r} has nan or infinite entries; expected finite numbers. Set its "
                'action to "keep".'
            )
    known = NOTHING
    data = Asked.of(calibration, objective, loss)
    if data is not None:
        cut = [matrices[row["name"]] for row in checked.cut]
        known = known_weights(model, cut, data)
        checked = dataclasses.replace(checked, settings=checked.settings | known.settings)
    return carry_out(model, checked, matrices, known=known, inplace=inplace)


def _check_groups(plan: Plan, matrices: Mapping[str, WeightMatrix]) -> None:
    """Raise if a plan splits some matrices of a weight and not the others."""
    cut = {row["name"] for row in plan.rows if row["action"] == Action.SPLIT}
    keys = {matrices[name].key: name for name in sorted(cut)}
    for name, matrix in matrices.items():
        if matrix.key in keys and name not in cut:
            raise InvalidValueError(
                f"The plan splits {keys[matrix.key]!r} but not {name!r}; the groups of a "
                'convolution can only be split together. Set the action of all to "split".'
            )
