"""Null law of the fit statistic: how far a bulk of pure noise strays from its own fitted law.

For a spectrum of pure noise, its statistic and how often noise of that size has a larger one:

>>> import rmtspec
>>> from rmtspec.laws.fit_statistic import FitStatisticNull
>>> spectrum = rmtspec.spectrum(rmtspec.ensembles.wishart(300, 200, rng=1))
>>> test = rmtspec.fit_test(spectrum, rmtspec.bema(spectrum, alpha=0.25))
>>> null = FitStatisticNull(300, 200, alpha=0.25)
>>> print(f"{test.statistic:.4f} {null.sf(test.statistic):.3f} {test.pvalue:.3f}")
0.0096 0.307 0.307
"""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.laws._law import shaped

#: Made by benchmarks/tables/make_fit_statistic.py.
TABLE = Path(__file__).with_name("_fit_statistic_table.npz")
#: Upper tail probabilities whose quantiles are tabulated.
LEVELS = np.array([0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001])
#: Shares of the spectrum left out at each end.
ALPHAS = np.array(
    [0.005, 0.012, 0.02, 0.03, *(np.arange(2, 13) / 40), 0.33, 0.36, 0.4, 0.43, 0.46, 0.475, 0.487]
)
#: Smallest and largest simulated p.
SMALLEST, LARGEST = 16, 2048
_CENTRE = 5.0  # subtracted from ln p, to condition the cubic
_LEAST = 1e-3  # quantile of p s; the cubics of windows of two ranks may fall below


class FitStatisticNull:
    """Law of the statistic s of `rmtspec.fit_test` on a matrix of independent noise.

    ``s = max |F_emp - F_law|`` over the ranks alpha p <= k <= (1 - alpha) p, with the variance of
    the law fitted to the same eigenvalues, is far smaller than the Kolmogorov-Smirnov statistic of
    independent values: eigenvalues repel, and p s grows like log p. The null law comes from
    simulated Gaussian matrices. It is tabulated as quantiles of p s, each a cubic in log p, and
    interpolated in ratio and alpha and, between levels, in the log odds. Uniform and Rademacher
    entries have the same law; with heavy tails (Student's t with 5 degrees of freedom, 250 x 500)
    a test at level 0.05 rejects a share of 0.09.

    Parameters
    ----------
    n, p : int
        Larger and smaller side of the noise matrix, ``1 <= p <= n``.
    alpha : float
        Share of the spectrum left out at each end, in (0, 1/2).
    quantiles : {"midpoint", "paper"}
        Pairing used by the fit: see `rmtspec.bema`.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        An argument is outside its range or of the wrong type.

    Notes
    -----
    Methods take a number or an array and return a float or an array of that shape; nan stays nan.

    The simulations cover p from 16 to 2048 and alpha from 0.005 to 0.487. Below 16, the law of p s
    at 16 is used (such results are marked unreliable anyway). Above 2048, all quantiles of p s rise
    together, linearly in log p, like the maximum of a log-correlated field. An alpha outside its
    range is taken as the nearest end, and tails below 0.001 continue exponentially. In separate
    simulations between the tabulated points (p from 17 to 300, alpha up to 0.42), the test rejected
    0.046 to 0.056 of noise matrices at level 0.05, and 0.008 to 0.013 at level 0.01. With alpha
    near 1/2 and fewer than ten ranks to compare, its size at level 0.05 is between 0.01 and 0.07.

    Examples
    --------
    >>> from rmtspec.laws.fit_statistic import FitStatisticNull
    >>> null = FitStatisticNull(1000, 784, alpha=0.25)
    >>> round(null.isf(0.05), 4)
    0.0038
    >>> bool(null.sf(0.0086) < 1e-6)
    True
    """

    __slots__ = ("_n", "_p", "_points")

    def __init__(self, n: int, p: int, alpha: float, quantiles: str = "midpoint") -> None:
        self._p = _checks.integer(p, "p", 1)
        self._n = _checks.integer(n, "n", self._p, hint="n is the larger side, p the smaller.")
        alpha = _checks.inside(alpha, "alpha", 0.0, 0.5)
        pairings = ("midpoint", "paper")
        pairing = pairings.index(_checks.choice(quantiles, "quantiles", pairings))
        share = max(1, math.ceil(alpha * self._p - 1e-9)) / self._p  # the window's first rank
        self._points = _points(pairing, self._p / self._n, share, self._p)

    def sf(self, s: ArrayLike) -> Any:
        """Return the p-value: the probability of a statistic of `s` or more.

        Examples
        --------
        >>> round(FitStatisticNull(500, 250, alpha=0.25).sf(0.0099), 2)
        0.05
        """
        if type(s) is float and self._points[0] <= s * self._p <= self._points[-1]:
            odds = np.interp(s * self._p, self._points, _LOG_ODDS)
            return float(1.0 / (1.0 + np.exp(-odds)))
        values = _checks.floats(s, "s") * self._p
        points, log_odds = self._points, _LOG_ODDS
        inside = 1.0 / (1.0 + np.exp(-np.interp(values, points, log_odds)))
        low = 1.0 - (1.0 - LEVELS[0]) * np.clip(values, 0.0, None) / points[0]
        high = LEVELS[-1] * np.exp(-(np.maximum(values, points[-1]) - points[-1]) / self._scale)
        result = np.where(values < points[0], low, np.where(values > points[-1], high, inside))
        result = np.where(np.isnan(values), np.nan, result)
        return shaped(result)

    def cdf(self, s: ArrayLike) -> Any:
        """Return the probability of a statistic below `s`.

        Examples
        --------
        >>> FitStatisticNull(500, 250, alpha=0.25).cdf(0.0)
        0.0
        """
        return 1.0 - self.sf(s)

    def isf(self, q: ArrayLike) -> Any:
        """Return the statistic exceeded with probability `q`; nan outside [0, 1].

        Examples
        --------
        >>> FitStatisticNull(500, 250, alpha=0.25).isf([0.05, 0.01, 2.0]).round(4)
        array([0.0098, 0.0112,    nan])
        """
        levels = _checks.floats(q, "q")
        points = self._points
        valid = np.where((levels >= 0.0) & (levels <= 1.0), levels, np.nan)
        clipped = np.clip(valid, LEVELS[-1], LEVELS[0])
        inside = np.interp(np.log(1.0 / clipped - 1.0), -_LOG_ODDS, points)
        low = points[0] * (1.0 - valid) / (1.0 - LEVELS[0])
        with np.errstate(divide="ignore"):
            high = points[-1] - self._scale * np.log(valid / LEVELS[-1])
        result = np.where(valid > LEVELS[0], low, np.where(valid < LEVELS[-1], high, inside))
        return shaped(result / self._p)

    def ppf(self, q: ArrayLike) -> Any:
        """Return the quantile of the statistic; nan outside [0, 1].

        Examples
        --------
        >>> round(FitStatisticNull(500, 250, alpha=0.25).ppf(0.95), 4)
        0.0098
        """
        return self.isf(1.0 - _checks.floats(q, "q"))

    @property
    def _scale(self) -> float:
        """Decay length of p s in the far tail, from the quantiles at 0.01 and 0.001."""
        return float((self._points[-1] - self._points[-3]) / math.log(LEVELS[-3] / LEVELS[-1]))

    def __repr__(self) -> str:
        return f"FitStatisticNull(n={self._n}, p={self._p})"


@functools.lru_cache(maxsize=256)
def null_law(n: int, p: int, alpha: float, quantiles: str = "midpoint") -> FitStatisticNull:
    """Return the null law of matrices of these sides; the same object for the same arguments."""
    return FitStatisticNull(n, p, alpha, quantiles)


_LOG_ODDS = np.log(LEVELS / (1.0 - LEVELS))


def powers(log_p: ArrayLike) -> Float64Array:
    """Return the basis of the cubics at ln p."""
    x = np.asarray(log_p, dtype=np.float64) - _CENTRE
    result: Float64Array = x[..., None] ** np.arange(4)
    return result


@functools.cache
def _table() -> tuple[Float64Array, Float64Array]:
    with np.load(TABLE, allow_pickle=False) as stored:
        return stored["coefficients"].astype(np.float64), stored["ratios"].astype(np.float64)


@functools.lru_cache(maxsize=1024)
def _points(pairing: int, ratio: float, share: float, p: int) -> Float64Array:
    """Return the increasing quantiles of p s at `LEVELS`."""
    coefficients, ratios = _table()
    i, u = _place(ratios, ratio)
    j, v = _place(ALPHAS, share)
    around = coefficients[pairing, i : i + 2, j : j + 2]  # (2, 2, levels, powers)
    weights = np.outer([1.0 - u, u], [1.0 - v, v])
    mixed = np.tensordot(weights, around, 2)
    points = mixed @ powers(math.log(min(max(p, SMALLEST), LARGEST)))
    if p > LARGEST:
        points = points + _slope(mixed) * math.log(p / LARGEST)
    points = np.maximum(np.maximum.accumulate(points), _LEAST)
    result: Float64Array = points + 1e-12 * np.arange(points.size)
    result.flags.writeable = False
    return result


def _slope(mixed: Float64Array) -> float:
    """Return the growth of p s per unit of ln p over the last factor 4, averaged over levels."""
    rise = powers(math.log(LARGEST)) - powers(math.log(LARGEST / 4))
    return float(np.mean(mixed[3:9] @ rise)) / math.log(4.0)


def _place(grid: Float64Array, value: float) -> tuple[int, float]:
    """Return the cell of `grid` that holds `value`, and the position in it, from 0 to 1."""
    cell = int(np.clip(np.searchsorted(grid, value) - 1, 0, grid.size - 2))
    share = (value - grid[cell]) / (grid[cell + 1] - grid[cell])
    return cell, float(np.clip(share, 0.0, 1.0))
