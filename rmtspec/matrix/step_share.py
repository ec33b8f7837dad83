"""How far a step on the factors moves the weight, and the share of the step that matches.

A gradient step of length lr on the factors of W = B A moves W by -lr (B B^T G + G A^T A), where
the step on W itself moves it by -lr G. With strengths e_i = |column i of B|^2 + |row i of A|^2 (at
a balanced split twice the singular value), the first is up to max e times the second.

Adam's step has the same length however large the gradient is, and so the argument does not carry
over; measured, the same rule serves it best all the same.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rule = Callable[[Array, Array], Array]
#: Directions are taken to have at least this share of the strength of the strongest.
_WEAKEST = 1e-6


def strengths(outer: NDArray[np.generic], inner: NDArray[np.generic]) -> Array:
    """Return e_i of the factors."""
    of_outer = np.square(np.asarray(outer, dtype=np.float64)).sum(0)
    of_inner = np.square(np.asarray(inner, dtype=np.float64)).sum(1)
    total: Array = of_outer + of_inner
    # A direction that is rounding noise, or nothing at all, must not be given a boundless step.
    return np.maximum(total, _WEAKEST * (total.max() or 1.0 / _WEAKEST))


def _largest(outer: Array, inner: Array) -> Array:
    return np.asarray(1.0 / strengths(outer, inner).max())


def _geometric(outer: Array, inner: Array) -> Array:
    return np.asarray(np.exp(-np.log(strengths(outer, inner)).mean()))


def _directions(outer: Array, inner: Array) -> Array:
    return 1.0 / strengths(outer, inner)


def _root_largest(outer: Array, inner: Array) -> Array:
    return np.asarray((2.0 * strengths(outer, inner).max()) ** -0.5)


#: Share of its step that a factor takes, by rule: one number, or one for each direction.
RULES: dict[str, Rule] = {
    "largest": _largest,
    "geometric mean": _geometric,
    "each direction": _directions,
    "root of largest": _root_largest,
}


def step_share(rule: str, outer: NDArray[np.generic], inner: NDArray[np.generic]) -> Array:
    """Return the share of its step that a factor takes by a rule of `RULES`."""
    return RULES[rule](np.asarray(outer, np.float64), np.asarray(inner, np.float64))
