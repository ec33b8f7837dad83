"""Where the noise ends in an equalized matrix: by the law, or by random sign flips."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec.laws.tracy_widom import upper_quantile
from rmtspec.matrix.bema import edge_width
from rmtspec.matrix.sign_flips import flips, largest_square, n_draws, threshold_of

#: After this many draws the rest may be spared, if no s^2 is within these multiples of their
#: deviation below and above their mean.
_FEW, _NEAR = 3, (4.0, 12.0)
#: Values of s^2 above the noise with this probability, by `beta`.
Threshold = Callable[[float], float]
#: Entries without the components, of shape (n, p); empty for a model that does not use them.
Residual = NDArray[np.float32]


class Model(Protocol):
    """A model of the noise; `uses_residual` if its thresholds depend on the entries."""

    uses_residual: bool

    def threshold(self, squares: Float64Array, n: int, k: int, residual: Residual) -> Threshold:
        """Return the thresholds for s^2, with k components removed.

        `squares` are all s^2 of the equalized matrix, ascending, and n is its longer side.
        """
        ...


class LawThreshold:
    """The edge of the Marchenko-Pastur law at variance 1 with its Tracy-Widom margin.

    With a = sqrt(n - k) and b = sqrt(p - k): (a + b)^2 + t (a + b) (1/a + 1/b)^(1/3), where t is
    the 1 - beta quantile of the Tracy-Widom law (Johnstone, 2001; El Karoui, 2006). Conservative,
    because equalizing takes away the fluctuation of the norms of rows and columns.
    """

    uses_residual = False

    def threshold(self, squares: Float64Array, n: int, k: int, residual: Residual) -> Threshold:
        """Return the thresholds for s^2: `squares` are all, n the longer side, k removed."""
        n, p = n - k, squares.size - k
        edge, width = (math.sqrt(n) + math.sqrt(p)) ** 2, n * edge_width(n, p)
        return lambda beta: edge + upper_quantile(beta) * width


class FlipThreshold:
    """What the largest s^2 of random sign flips of the rest reaches, by the draws of it.

    Parameters
    ----------
    beta : float
        The level that decides, hence the number of draws: 9 at 0.1, 19 at 0.05, 20 below.
    seed : int
        Of the draws; each number of components has a sequence of its own.
    """

    uses_residual = True

    def __init__(self, beta: float, seed: int) -> None:
        self._draws, self._seed = n_draws(beta), seed

    def threshold(self, squares: Float64Array, n: int, k: int, residual: Residual) -> Threshold:
        """Return the thresholds for s^2: `squares` are all, n the longer side, k removed."""
        generator = np.random.default_rng([self._seed, k])
        least = (n - k) * edge_width(n - k, squares.size - k)
        tops: list[float] = []
        for flip in flips(residual, k, self._draws, generator):
            tops.append(largest_square(flip))
            if len(tops) == _FEW and _undisputed(squares, k, tops, least):
                break
        if len(tops) < self._draws:  # no value is near, so that any threshold gives the same count
            return lambda beta: max(tops) + least
        return lambda beta: threshold_of(tops, beta)


def _undisputed(squares: Float64Array, k: int, tops: list[float], least: float) -> bool:
    """Tell whether more than k squares are components, and none is near any threshold.

    Then this is not the last round, and more draws would not change its count.
    """
    mean, deviation = float(np.mean(tops)), max(least, float(np.std(tops, ddof=1)))
    below = int(np.searchsorted(squares, mean - _NEAR[0] * deviation))
    above = int(np.searchsorted(squares, mean + _NEAR[1] * deviation))
    return below == above and squares.size - above > k
