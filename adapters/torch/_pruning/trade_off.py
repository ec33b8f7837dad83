"""What a model loses at each size, and the size at which it loses what the user allows."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._calibration.batches import Batches, call, device_of, on_device
from rmtspec.adapters.torch._calibration.calibrate import Asked
from rmtspec.adapters.torch._layers.replace import model_sizes
from rmtspec.adapters.torch._pruning.task import PruningTask
from rmtspec.adapting import (
    Calibration,
    Pattern,
    Plan,
    PlanOptions,
    Progress,
    TradeOff,
    check_budgets,
    smallest_budget,
    versions,
)
from rmtspec.errors import InvalidOptionTypeError, InvalidTypeError

#: Forward passes whose median is the latency, after one that does not count.
_REPEATS = 5


def trade_off(
    model: nn.Module,
    calibration: Calibration | Batches | None,
    evaluate: Callable[[Any], float],
    budgets: Sequence[float] = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5),
    *,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    objective: str | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    rank_multiple: int | str = 1,
    form: str | None = None,
    example: Any = None,
    device: str | torch.device | None = None,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
    **options: Any,
) -> TradeOff:
    """Prune a model to several budgets, and measure each: the curve to choose a size from.

    The analysis and the calibration are made once; each model is made, measured and let go. The
    model itself is not changed.

    Parameters
    ----------
    model : torch.nn.Module
    calibration : Calibration, iterable of model inputs, or callable
        As for `prune`; None for none.
    evaluate : callable
        ``evaluate(model)`` returns the figure to judge by: a loss, a perplexity, an accuracy.
    budgets : sequence of float
        Shares of the parameters to keep.
    include, exclude, objective, loss, rank_multiple, form, device, n_jobs
        As for `prune`.
    example : optional
        A batch; the median time of five forward passes on it is the latency of each model.
    progress : callable, optional
        Called with the number of models measured, of all, and the budget.
    **options
        As for `prune`.

    Returns
    -------
    TradeOff
        Rows, plot, HTML page, and the plan of each budget, for `apply_plan`.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        An option or the data cannot be used, or `evaluate` returns no number.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model = rt.MLP([64, 100, 50, 10])
    >>> x = torch.randn(500, 64)
    >>> before = model(x).softmax(-1).detach()
    >>> def kl(m):
    ...     return torch.nn.functional.kl_div(
    ...         m(x).detach().log_softmax(-1), before, reduction="batchmean"
    ...     )
    >>> curve = rt.trade_off(model, [x], kl, budgets=(0.9, 0.5))
    >>> [row["budget"] for row in curve.rows], curve.rows[1]["measured"] > curve.rows[0]["measured"]
    ([0.9, 0.5], True)
    >>> smaller, report = rt.apply_plan(model, curve.plans[0.5], calibration=[x])
    """
    if not callable(evaluate):
        raise InvalidOptionTypeError(
            f"`evaluate` is a {type(evaluate).__name__}", "a function that takes the model"
        )
    shares = check_budgets(budgets)
    given = {
        "include": include, "exclude": exclude, "budget": shares[0], "n_jobs": n_jobs,
        "calibrated": calibration is not None, "rank_multiple": rank_multiple,
        "form": form,
    }  # fmt: skip
    asked = PlanOptions.of({**options, **given})
    for share in shares:  # each is checked before any work
        _ = dataclasses.replace(asked, budget=share)
    data = Asked.of(calibration, objective, loss)
    task = PruningTask(model, asked, device)
    report = task.prepare(data)
    plans = {share: task.made(report, share) for share in shares}
    asked_for = set(task.candidates(report))
    rows = [_measured(model, evaluate, example)]
    for done, (share, plan) in enumerate(plans.items(), 1):
        smaller, carried = task.carry_out(plan, inplace=False)
        plans[share] = carried
        rows.append(
            {
                **_measured(smaller, evaluate, example, rows[0]["measured"]),
                **_planned(carried, asked_for), "budget": share,
            }
        )  # fmt: skip
        del smaller
        if progress is not None:
            progress(done, len(plans), f"{share:g}")
    settings = {k: v for k, v in carried.settings.items() if k != "budget"}
    return TradeOff(
        rows[0], rows[1:], plans,
        settings=settings | {"budgets": shares}, versions=versions("torch"),
    )  # fmt: skip


def to_target(
    task: PruningTask,
    data: Asked | None,
    target: float,
    evaluate: Any,
    *,
    inplace: bool,
) -> tuple[Any, Plan]:
    """Return the model pruned to the smallest budget whose figure changes by no more than that."""
    report = task.prepare(data)
    found: dict[float, Plan] = {}

    def measure(budget: float) -> float:
        found[budget] = task.made(report, budget)
        return figure_of(evaluate, task.carry_out(found[budget], inplace=False)[0])

    least = task.least_budget(report)
    baseline = figure_of(evaluate, task.model)
    budget, tried = smallest_budget(measure, baseline, target, least=least)
    plan = found.get(budget) or task.made(report, budget)
    pruned, carried = task.carry_out(plan, inplace=inplace)
    search = {"target": target, "baseline": baseline, "tried": [list(pair) for pair in tried]}
    return pruned, dataclasses.replace(carried, settings=carried.settings | search)


def figure_of(evaluate: Callable[[Any], float], model: nn.Module) -> float:
    """Return the user's figure for a model as a float."""
    value: Any = evaluate(model)
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidTypeError(
            f"`evaluate` returned a {type(value).__name__}; expected a number, the figure to "
            "judge the model by."
        ) from None


def _measured(
    model: nn.Module, evaluate: Callable[[Any], float], example: Any, before: float | None = None
) -> dict[str, Any]:
    """Return the row of a model that is not pruned, or what can be measured of one that is."""
    start = time.perf_counter()
    figure = figure_of(evaluate, model)
    seconds = time.perf_counter() - start
    measured = figure if math.isfinite(figure) else None
    return {
        "budget": None, "kept": 1.0, **model_sizes(model), "n_split": 0, "predicted_loss": None,
        "measured": measured,
        "change": None if before is None or measured is None else measured - before,
        "seconds": seconds, "latency": None if example is None else _latency(model, example),
    }  # fmt: skip


def _planned(plan: Plan, names: Collection[str]) -> dict[str, Any]:
    """Return what a plan says of the matrices that it may cut."""
    rows = [row for row in plan.rows if row["name"] in names]
    losses = [row["predicted_loss"] for row in plan.cut if row["predicted_loss"] is not None]
    before, after = (sum(row[f"parameters_{when}"] for row in rows) for when in ("before", "after"))
    return {
        "kept": after / before if before else 1.0,
        "n_split": len(plan.cut),
        "predicted_loss": sum(losses) if losses else None,
    }


@torch.no_grad()
def _latency(model: nn.Module, example: Any) -> float:
    """Return the median time of a forward pass in seconds."""
    device = device_of(model)
    batch = on_device(example, device)
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        call(model, batch, 0, example)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
