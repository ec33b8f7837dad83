"""Screen: whether the entries of a matrix look like noise of one variance with light tails.

The Marchenko-Pastur threshold is safe for such noise only, and an accepted fit does not show it: on
Student's t with five degrees of freedom the fit is accepted in 87 % of draws and spikes that are
not there are raised in 46 %. The screen sees three numbers, which cost one pass over the entries.
"""

import math
from typing import NamedTuple

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.eigenvalues import EntryMoments
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.terms import Why

#: Excesses that leave the level below 0.15, at 0.1: of the dispersion of variances, in units of
#: n^(-2/3) (the width of the largest eigenvalue), and of the kurtosis.
_DISPERSION, _KURTOSIS = 0.2, 0.75
#: Tails are put down to unequal rows and columns if the kurtosis is at most this many times theirs.
_SCALED = 2.0
#: Standard deviations beyond its mean under noise at which a number fails.
_FAR = 4.0


def screen(spec: Spectrum, fit: BulkFit) -> str:
    """Return why the count of `fit` is not safe, or "" if nothing speaks against it.

    Components are taken to have directions spread over all rows and columns, as those of
    `rmtspec.ensembles.spiked`; what they add to the three numbers is allowed for.
    """
    moments = spec.moments
    if moments is None:
        return Why.ENTRIES_UNKNOWN.words()
    if fit.reason:
        return fit.reason
    live = spec.shape[0] - spec.dropped_rows, spec.shape[1] - spec.dropped_columns
    tall = live[0] > live[1] or (live[0] == live[1] and spec.shape[0] >= spec.shape[1])
    return doubt_about(
        moments, fit.spikes / fit.variance * spec.n, (spec.n, spec.p),
        energy=float(spec.eigenvalues.sum()) / fit.variance * spec.n, tall=tall,
    )  # fmt: skip


def doubt_about(
    moments: EntryMoments, spikes: Float64Array, shape: tuple[int, int], *, energy: float,
    tall: bool,
) -> str:  # fmt: skip
    """Return why a count is not safe, or "", from numbers alone.

    `spikes` are the s^2 of the components and `energy` that of all, in units of the variance of the
    noise; `shape` is (n, p), and `tall` tells whether n counts the rows.
    """
    n, p = shape
    components = _Sums.of(spikes)
    kurtosis, error = _noise_kurtosis(moments, components, energy, (n, p))
    heavy = kurtosis > 3.0 + _KURTOSIS + _FAR * error
    # Normal entries of unequal rows and columns have heavy tails as a whole, of this kurtosis.
    scaled = 3.0 * (1.0 + moments.row_dispersion) * (1.0 + moments.column_dispersion)
    if heavy and moments.kurtosis > _SCALED * scaled:
        return Why.HEAVY_TAILS.words(kurtosis=kurtosis)
    worst, words = _DISPERSION * max(n, p) ** (-2.0 / 3.0), ""
    sides = (("rows", moments.row_dispersion, n, p), ("columns", moments.column_dispersion, p, n))
    for name, dispersion, count, length in sides:
        tails = 3.0 if heavy else kurtosis
        expected = _expected(components, count, length, tails)
        seen = dispersion * (energy / count) ** 2  # variance of the sum of squares of one of them
        noise = length**2
        excess = (seen - expected[0] - _FAR * expected[1]) / noise
        if excess > worst:
            what = name if tall else {"rows": "columns", "columns": "rows"}[name]
            null = expected[0] / (energy / count) ** 2
            worst, words = excess, Why.UNEQUAL.words(what=what, dispersion=dispersion, null=null)
    return words or (Why.HEAVY_TAILS.words(kurtosis=kurtosis) if heavy else "")


class _Sums(NamedTuple):
    """Sums of first, second and fourth powers."""

    first: float
    second: float
    fourth: float

    @classmethod
    def of(cls, values: Float64Array) -> "_Sums":
        if not values.size:
            return cls(0.0, 0.0, 0.0)
        squares = np.square(values)
        return cls(float(values.sum()), float(squares.sum()), float(squares @ squares))


def _noise_kurtosis(
    moments: EntryMoments, components: _Sums, energy: float, shape: tuple[int, int]
) -> tuple[float, float]:
    """Return the kurtosis of the noise entries, of variance 1, and its standard error.

    A component of Gaussian directions adds 6 (s^2 / (n p))^2 to the fourth cumulant.
    """
    n, p = shape
    entries = float(n * p)
    whole = (moments.kurtosis - 3.0) * (energy / entries) ** 2
    excess = whole - 6.0 * components.second / entries**2
    spread = 9.0 * math.sqrt(10.7 / n + 10.7 / p) * math.sqrt(components.fourth) / entries**2
    return 3.0 + excess, math.hypot(math.sqrt(24.0 / entries), spread)


def _expected(components: _Sums, count: int, length: int, kurtosis: float) -> tuple[float, float]:
    """Return the variance among `count` sums of squares under noise and components, and its error.

    A component gives the row i s^2 u_i^2, of variance 2 s^4 / count^2, and the noise, of variance
    1, the variance length (kurtosis - 1).
    """
    signal = 2.0 * components.second / count**2
    mixed = 4.0 * components.first / count
    total = signal + mixed + length * max(kurtosis - 1.0, 0.0)
    fourth = 2.0 + 48.0 * components.fourth / (count**2 * total) ** 2 if total else 2.0
    return total, total * math.sqrt(fourth / count)
