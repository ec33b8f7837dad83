"""The Marchenko-Pastur law: where the eigenvalues of a noise matrix fall."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._kernels import marchenko_pastur as kernels
from rmtspec.errors import InvalidValueError

_LEAST, _MOST = 1e-6, 1e6


class MarchenkoPastur:
    """Limit law of the eigenvalues of W^T W / N, W an N x M matrix of independent noise.

    The paper's eq. (5) and (6), with the ratio c = M / N: density
    ``sqrt((x - a) (b - x)) / (2 pi variance c x)`` between the edges
    ``a, b = variance (1 -+ sqrt c)^2``, and for c > 1 an atom of mass 1 - 1 / c at 0.

    Parameters
    ----------
    ratio : float
        Columns over rows, from 1e-6 to 1e6.
    variance : float
        Of the entries of W, positive.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        A ratio or variance outside its range, or no number.

    Notes
    -----
    Methods take a number or an array and return a float or an array of the same shape. Both tails
    are computed directly (the cdf below the middle, the sf above), so they keep relative accuracy
    next to the edges. At and beyond the ends, as in scipy.stats:

    ======================  =========================================================
    argument                value
    ======================  =========================================================
    x below the support     pdf 0, logpdf -inf, cdf 0, sf 1
    x above the support     pdf 0, logpdf -inf, cdf 1, sf 0
    x = 0, ratio > 1        cdf = atom (right-continuous), pdf 0: the atom has no density
    x = 0, ratio = 1        pdf inf
    p = 0                   ppf: lower end of the support (0 when there is an atom)
    p <= atom               ppf 0
    p = 1                   ppf: upper edge
    p outside [0, 1]        ppf and isf nan
    nan                     nan
    ======================  =========================================================

    The pdf integrates to 1 - atom.

    Examples
    --------
    >>> import rmtspec
    >>> law = rmtspec.MarchenkoPastur(0.25)
    >>> law.lower_edge, law.bulk_edge
    (0.25, 2.25)
    >>> round(law.cdf(1.0), 6)
    0.580456
    >>> round(law.ppf(0.5), 6)
    0.835804
    """

    __slots__ = ("_constants", "_ratio", "_variance")

    def __init__(self, ratio: float, variance: float = 1.0) -> None:
        hint = "Pass columns / rows (p / n) of the matrix."
        self._ratio = _checks.positive(ratio, "ratio", hint)
        if not _LEAST <= self._ratio <= _MOST:
            raise InvalidValueError(
                f"`ratio` is {ratio!r}; expected from {_LEAST:g} to {_MOST:g}, where the formulas "
                f"are checked. {hint}"
            )
        self._variance = _checks.positive(variance, "variance")
        self._constants = kernels.constants(self._ratio, self._variance)

    @property
    def ratio(self) -> float:
        """Columns over rows of the matrix."""
        return self._ratio

    @property
    def variance(self) -> float:
        """Variance of the matrix's entries."""
        return self._variance

    @property
    def atom(self) -> float:
        """Mass at 0: ``1 - 1 / ratio`` above ratio 1, else 0."""
        return 1.0 - 1.0 / self._ratio if self._ratio > 1.0 else 0.0

    @property
    def lower_edge(self) -> float:
        """Lower edge of the bulk, ``variance (1 - sqrt(ratio))^2``."""
        return float(self._constants[5])

    @property
    def bulk_edge(self) -> float:
        """Upper edge of the bulk, ``variance (1 + sqrt(ratio))^2``."""
        return float(self._constants[7])

    def support(self) -> tuple[float, float]:
        """Return the ends of the support: 0 where there is an atom, else the lower edge."""
        return (0.0 if self._ratio > 1.0 else self.lower_edge, self.bulk_edge)

    def pdf(self, x: ArrayLike) -> Any:
        """Return the density of the bulk at `x`."""
        points, shape = _flat(x, "x")
        out = np.empty_like(points)
        kernels.density(points, self._constants, out)
        return _shaped(out, shape)

    def logpdf(self, x: ArrayLike) -> Any:
        """Return the logarithm of the density at `x`."""
        return _log(self.pdf(x))

    def cdf(self, x: ArrayLike) -> Any:
        """Return the probability of a value at or below `x`."""
        return self._distribution(x, False)

    def logcdf(self, x: ArrayLike) -> Any:
        """Return the logarithm of `cdf`."""
        return self._log_distribution(x, False)

    def sf(self, x: ArrayLike) -> Any:
        """Return the probability of a value above `x`, accurate where it is small."""
        return self._distribution(x, True)

    def logsf(self, x: ArrayLike) -> Any:
        """Return the logarithm of `sf`."""
        return self._log_distribution(x, True)

    def ppf(self, p: ArrayLike) -> Any:
        """Return the quantile: the least x with ``cdf(x) >= p``.

        A sorted array costs about a third of an unsorted one per value.
        """
        return self._quantile(p, "p", False)

    def isf(self, q: ArrayLike) -> Any:
        """Return the x with ``sf(x) = q``, accurate where `q` is small."""
        return self._quantile(q, "q", True)

    def rvs(self, size: int | tuple[int, ...] | None = None, *, rng: Any = None) -> Any:
        """Return independent values of the law (not eigenvalues of one matrix: those repel).

        Parameters
        ----------
        size : int or tuple of int, optional
            Shape; a single float when absent.
        rng : None, int, or numpy.random.Generator
            Passed to `numpy.random.default_rng`.
        """
        return self.ppf(np.random.default_rng(rng).random(size))

    def mean(self) -> float:
        """Return the mean, which is the variance of the entries."""
        return self._variance

    def var(self) -> float:
        """Return the variance of the law, ``ratio variance^2``."""
        return self._ratio * self._variance**2

    def std(self) -> float:
        """Return the standard deviation."""
        return math.sqrt(self._ratio) * self._variance

    def median(self) -> float:
        """Return the median; 0 where the atom holds half or more."""
        return float(self.ppf(0.5))

    def moment(self, k: int) -> float:
        """Return E[x^k] for a whole k >= 0, by the Narayana numbers.

        ``variance^k sum_{j=0}^{k-1} C(k, j) C(k-1, j) ratio^j / (j + 1)``.
        """
        k = _checks.integer(k, "k", 0)
        if k == 0:
            return 1.0
        terms = (
            math.comb(k, j) * math.comb(k - 1, j) // (j + 1) * self._ratio**j for j in range(k)
        )
        return math.fsum(terms) * self._variance**k

    def interval(self, level: ArrayLike) -> tuple[Any, Any]:
        """Return the ends of the central interval that holds the share `level`, in [0, 1]."""
        share = _checks.floats(level, "level")
        return self.ppf((1.0 - share) / 2.0), self.isf((1.0 - share) / 2.0)

    def _distribution(self, x: ArrayLike, upper: bool) -> Any:
        points, shape = _flat(x, "x")
        out = np.empty_like(points)
        kernels.distribution(points, self._constants, upper, out)
        return _shaped(out, shape)

    def _log_distribution(self, x: ArrayLike, upper: bool) -> Any:
        """Take the log of the smaller of the two tails, through log1p where it is the other one."""
        this = np.asarray(self._distribution(x, upper))
        other = np.asarray(self._distribution(x, not upper))
        with np.errstate(divide="ignore"):
            result = np.where(this < 0.5, np.log(this), np.log1p(-other))
        return _shaped(result, result.shape)

    def _quantile(self, p: ArrayLike, name: str, upper: bool) -> Any:
        levels, shape = _flat(p, name)
        out = np.empty_like(levels)
        kernels.quantiles(levels, self._constants, upper, out)
        return _shaped(out, shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MarchenkoPastur):
            return NotImplemented
        return (self._ratio, self._variance) == (other._ratio, other._variance)

    def __hash__(self) -> int:
        return hash((MarchenkoPastur, self._ratio, self._variance))

    def __reduce__(self) -> tuple[Any, ...]:
        return MarchenkoPastur, (self._ratio, self._variance)

    def __repr__(self) -> str:
        return f"MarchenkoPastur(ratio={self._ratio!r}, variance={self._variance!r})"


def _flat(values: ArrayLike, name: str) -> tuple[Float64Array, tuple[int, ...]]:
    """Return the 1-D contiguous writable float64 array a kernel takes, and the shape."""
    array = _checks.floats(values, name)
    flat = np.ascontiguousarray(array).reshape(-1)
    return (flat if flat.flags.writeable else flat.copy()), array.shape


def _shaped(out: Float64Array, shape: tuple[int, ...]) -> Any:
    return float(out.reshape(())) if shape == () else out.reshape(shape)


def _log(values: Any) -> Any:
    with np.errstate(divide="ignore"):
        result = np.log(values)
    return float(result) if np.ndim(result) == 0 else result
