"""The level of the noise that quantising a matrix added, from the steps of the format alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec._records import plain
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate

#: Points of each curve from which the edge is interpolated; their error is below 1e-3.
_POINTS = 200


@dataclass(frozen=True, slots=True)
class RoundingLevel:
    """What a quantised format says about the matrix it holds.

    Attributes
    ----------
    method : str
        The format, such as "Q4_K".
    variance : float
        Mean variance of the rounding errors of the entries: step^2 / 12.
    edge : float
        Where the spectrum of errors of these variances ends, in the units of the eigenvalues.
    n_below : int
        Number of singular values of the matrix at or below it: these may be rounding alone.
        Estimated, where the spectrum is.
    """

    method: str
    variance: float
    edge: float
    n_below: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}


def rounding_level(
    spectrum: Spectrum | SpectrumEstimate, method: str, steps: NDArray[Any]
) -> RoundingLevel:
    """Return the level of the rounding in a matrix of known steps, without simulating it.

    `steps` has the shape of the matrix and says how far apart neighbouring values are at each
    entry. The errors are taken as independent and uniform, their variances as the product of one
    per row and one per column. `rmtspec.rounding_noise`, with its `step`, simulates the errors.
    """
    height, width = steps.shape
    rows = np.einsum("ij,ij->i", steps, steps, dtype=np.float64) / (12.0 * width)
    columns = np.einsum("ij,ij->j", steps, steps, dtype=np.float64) / (12.0 * height)
    return level_of_variances(spectrum, method, rows, columns)


def level_of_variances(
    spectrum: Spectrum | SpectrumEstimate,
    method: str,
    rows: Float64Array,
    columns: Float64Array,
) -> RoundingLevel:
    """Return the same from the mean variance of the errors in each row and in each column."""
    mean = float(rows.mean())
    edge = 0.0
    if mean > 0.0:
        edge = separable_edge(rows, columns / mean) / spectrum.n
    if isinstance(spectrum, SpectrumEstimate):
        below = round(spectrum.p * float(spectrum.cdf(edge)))
    else:
        below = int(np.searchsorted(spectrum.eigenvalues, edge, side="right"))
    return RoundingLevel(method, variance=mean, edge=edge, n_below=below)


def separable_edge(rows: Float64Array, columns: Float64Array) -> float:
    """Return the right edge of the spectrum of E.T @ E, where E[i, j] has variance rows[i] cols[j].

    With A(s) = sum_i rows[i] / (1 - rows[i] s) and B(d) = sum_j cols[j] / (1 - cols[j] d), the
    spectrum ends at the least c / (d s) over all c = d B(d) = s A(s), d and s being below the first
    poles (the inverse of the Stieltjes transform outside the support: Couillet and Hachem 2014,
    "Analysis of the limiting spectral measure of large random matrices of the separable covariance
    type"). For equal variances this is the edge of Marchenko and Pastur.
    """
    (s, at_s), (d, at_d) = _curve(rows), _curve(columns)
    low, high = max(at_s[0], at_d[0]), min(at_s[-1], at_d[-1])
    c = np.linspace(low, high, 4 * _POINTS)
    return float(np.exp((c - np.interp(c, at_s, s) - np.interp(c, at_d, d)).min()))


def _curve(variances: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return the logarithms of the arguments below the first pole and of the values there."""
    used = variances[variances > 0.0]
    gaps = np.geomspace(1.0 - 1e-6, 1e-5, _POINTS)
    d = (1.0 - gaps) / used.max()
    values = (used / (1.0 - np.outer(d, used))).sum(axis=1)
    return np.log(d), np.log(d * values)
