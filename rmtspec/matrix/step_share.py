"""How far a step on the factors moves the weight, and the share of the step that matches.

A gradient step of length lr on the factors of W = B A moves W by -lr (B B^T G + G A^T A), while the
step on W itself moves it by -lr G. With the strengths e_i = |column i of B|^2 + |row i of A|^2 (at
a balanced split, twice the singular value), the first move is up to max e times the second.

The length of Adam's step does not depend on the size of the gradient, so the argument does not
apply to it; in measurements the same rule is nevertheless the best for Adam too.

>>> import rmtspec
>>> W = rmtspec.ensembles.spiked(400, 300, [3, 20], rng=0)
>>> parts = rmtspec.split(W, 2)
>>> step_share("each direction", parts.outer, parts.inner) * parts.singular_values
array([0.5, 0.5])
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec._checks import Float64Array

#: Directions are taken to have at least this share of the strength of the strongest.
_WEAKEST = 1e-6

#: Share of its step that a factor takes, from the strengths: one number, or one per direction.
RULES: dict[str, Callable[[Float64Array], Any]] = {
    "largest": lambda e: 1.0 / e.max(),
    "geometric mean": lambda e: np.exp(-np.log(e).mean()),
    "each direction": lambda e: 1.0 / e,
    "root of largest": lambda e: (2.0 * e.max()) ** -0.5,
}


def step_share(rule: str, outer: ArrayLike, inner: ArrayLike) -> Float64Array:
    """Return the share of its step that a factor takes by a rule of `RULES`."""
    of_outer = np.square(np.asarray(outer, dtype=np.float64)).sum(0)
    of_inner = np.square(np.asarray(inner, dtype=np.float64)).sum(1)
    strengths = of_outer + of_inner
    # A direction that is rounding noise, or zero, must not get an unbounded step.
    floor = _WEAKEST * (strengths.max() or 1.0 / _WEAKEST)
    return np.asarray(RULES[rule](np.maximum(strengths, floor)))
