"""The smallest budget whose damage, measured by the user, is within a limit."""

import math
from collections.abc import Callable

from rmtspec import _checks
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError, InvalidValueError

#: The budget is found to within this share of the parameters.
RESOLUTION = 0.01


def check_target(target: object, evaluate: object, budget: object) -> None:
    """Raise unless `target` is a change to allow, with a function that measures it, alone."""
    if target is None:
        if evaluate is not None:
            raise InvalidOptionError(
                "`evaluate` is given without `target`", "both or neither",
                "Pass the change that it may show as `target`.",
            )  # fmt: skip
        return
    if budget is not None:
        raise InvalidOptionError(
            "`budget` and `target` are both given", "one of them, because a target finds the budget"
        )
    if evaluate is None:
        raise InvalidOptionError(
            "`target` is given without `evaluate`", "both or neither",
            "Pass the function that measures a model: evaluate(model) -> number.",
        )  # fmt: skip
    if not callable(evaluate):
        raise InvalidOptionTypeError(
            f"`evaluate` is a {type(evaluate).__name__}", "a function that takes the model"
        )
    hint = "0.1: the figure may rise by 0.1. -0.02: it may fall by 0.02."
    if not isinstance(target, int | float) or isinstance(target, bool):
        raise InvalidOptionTypeError(f"`target` is {target!r}", "a number", hint)
    if target == 0 or not math.isfinite(target):
        raise InvalidOptionError(f"`target` is {target!r}", "a finite number other than 0", hint)


def smallest_budget(
    measure: Callable[[float], float],
    baseline: float,
    target: float,
    *,
    least: float = 0.0,
    resolution: float = RESOLUTION,
) -> tuple[float, list[tuple[float, float]]]:
    """Return the smallest budget found whose figure changes by no more than `target`.

    The figure is taken to get worse as the budget gets smaller, and the budget halved in between
    until it is known to `resolution`.

    Parameters
    ----------
    measure : callable
        Returns the figure of the model pruned to a budget.
    baseline : float
        The figure of the model as it is.
    target : float
        If positive, how much the figure may rise; if negative, how much it may fall.
    least : float
        Budgets at or below it are not possible.
    resolution : float
        When to stop.

    Returns
    -------
    budget : float
        1.0 if no smaller one is good enough.
    tried : list of (float, float)
        Budgets with their figures, in the order in which they were tried.
    """
    _checks.inside(resolution, "resolution", 0.0, 1.0)
    if not math.isfinite(baseline):
        raise InvalidValueError(
            f"`evaluate` returns {baseline} for the model as it is; expected a finite number."
        )
    good, bad = 1.0, least
    tried: list[tuple[float, float]] = []
    while good - bad > resolution:
        budget = (good + bad) / 2.0
        figure = measure(budget)
        tried.append((budget, figure))
        change = figure - baseline
        within = change <= target if target > 0.0 else change >= target  # never for nan
        good, bad = (budget, bad) if within else (good, budget)
    return good, tried
