"""The Marchenko-Pastur law: where the eigenvalues of a noise matrix fall."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._kernels import marchenko_pastur as kernels

_RATIOS = (1e-6, 1e6)
_VARIANCES = (1e-200, 1e200)


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
        Of the entries of W, from 1e-200 to 1e200.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        A ratio or variance outside its range, or no number.

    Notes
    -----
    Methods take a number or an array and return a float or an array of that shape. Laws of equal
    ratio and variance are equal. At and beyond the ends, as in scipy.stats:

    =======================  =========================================================
    argument                 value
    =======================  =========================================================
    x below the support      pdf 0, logpdf -inf, cdf 0, sf 1
    x at or above bulk_edge  pdf 0, logpdf -inf, cdf 1, sf 0
    0 <= x <= lower_edge     cdf = atom (right-continuous), pdf 0: the atom has no density
    x = 0, ratio = 1         pdf and logpdf inf
    p = 0                    ppf: lower end of the support (0 when there is an atom)
    p <= atom                ppf 0
    p = 1                    ppf: bulk_edge
    p outside [0, 1]         ppf and isf nan
    nan                      nan
    =======================  =========================================================

    The pdf integrates to 1 - atom. Both tails are computed directly, each from its own edge held to
    twice the working precision: cdf and sf are right to 1e-14, and to 1e-12 of themselves however
    small; quantiles to 1e-13 of themselves. For probabilities near 1 take `sf`, `isf`, `logsf`.

    Examples
    --------
    >>> import rmtspec
    >>> law = rmtspec.MarchenkoPastur(0.25)
    >>> law.lower_edge, law.bulk_edge
    (0.25, 2.25)
    >>> round(law.cdf(1.0), 6)
    0.55339
    >>> round(law.ppf(0.5), 6)
    0.916004
    """

    __slots__ = ("_constants", "_packed", "_ratio", "_variance")

    def __init__(self, ratio: float, variance: float = 1.0) -> None:
        hint = "Pass columns / rows (p / n) of the matrix."
        self._ratio = _checks.inside(ratio, "ratio", *_RATIOS, closed=True, hint=hint)
        hint = "Pass the variance of the entries; scale the matrix if it is so far off."
        self._variance = _checks.inside(variance, "variance", *_VARIANCES, closed=True, hint=hint)
        self._constants: kernels.Constants = kernels.constants(self._ratio, self._variance)
        self._packed = tuple(self._constants)

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
        return max(self._ratio - 1.0, 0.0) / self._ratio

    @property
    def lower_edge(self) -> float:
        """Lower edge of the bulk, ``variance (1 - sqrt(ratio))^2``."""
        return self._constants.lower

    @property
    def bulk_edge(self) -> float:
        """Upper edge of the bulk, ``variance (1 + sqrt(ratio))^2``."""
        return self._constants.top

    def support(self) -> tuple[float, float]:
        """Return the ends of the whole law; the lower one is 0 where there is an atom.

        Examples
        --------
        >>> MarchenkoPastur(4.0).support()
        (0.0, 9.0)
        """
        return (0.0 if self._ratio > 1.0 else self.lower_edge, self.bulk_edge)

    def pdf(self, x: ArrayLike) -> Any:
        """Return the density of the bulk at `x`; it integrates to 1 - `atom`.

        Parameters
        ----------
        x : array_like
            Eigenvalues.

        Returns
        -------
        float or ndarray
            Densities, in the shape of `x`.

        Examples
        --------
        >>> round(MarchenkoPastur(0.25).pdf(1.0), 6)
        0.616404
        """
        points, shape = _flat(x, "x")
        out = np.empty_like(points)
        kernels.density(points, self._packed, out)
        return _shaped(out, shape)

    def logpdf(self, x: ArrayLike) -> Any:
        """Return the logarithm of `pdf`.

        Parameters
        ----------
        x : array_like
            Eigenvalues.

        Returns
        -------
        float or ndarray
            Logarithms, -inf outside the bulk, in the shape of `x`.

        Examples
        --------
        >>> MarchenkoPastur(0.25).logpdf(5.0)
        -inf
        """
        return _log(self.pdf(x))

    def cdf(self, x: ArrayLike) -> Any:
        """Return the probability of a value at or below `x`, the atom included.

        Parameters
        ----------
        x : array_like
            Eigenvalues.

        Returns
        -------
        float or ndarray
            Probabilities, accurate where small, in the shape of `x`.

        Examples
        --------
        >>> MarchenkoPastur(4.0).cdf([-1.0, 0.0, 9.0])
        array([0.  , 0.75, 1.  ])
        """
        return self._distribution(x, False)

    def logcdf(self, x: ArrayLike) -> Any:
        """Return the logarithm of `cdf`, through the smaller of the two tails.

        Parameters
        ----------
        x : array_like
            Eigenvalues.

        Returns
        -------
        float or ndarray
            Logarithms, in the shape of `x`.

        Examples
        --------
        >>> MarchenkoPastur(0.25).logcdf(2.25)
        0.0
        """
        return self._log_distribution(x, False)

    def sf(self, x: ArrayLike) -> Any:
        """Return the probability of a value above `x`.

        Parameters
        ----------
        x : array_like
            Eigenvalues.

        Returns
        -------
        float or ndarray
            Probabilities, accurate where small, in the shape of `x`.

        Examples
        --------
        >>> MarchenkoPastur(4.0).sf([-1.0, 0.0, 9.0])
        array([1.  , 0.25, 0.  ])
        """
        return self._distribution(x, True)

    def logsf(self, x: ArrayLike) -> Any:
        """Return the logarithm of `sf`, through the smaller of the two tails.

        Parameters
        ----------
        x : array_like
            Eigenvalues.

        Returns
        -------
        float or ndarray
            Logarithms, in the shape of `x`.

        Examples
        --------
        >>> MarchenkoPastur(0.25).logsf(2.25)
        -inf
        """
        return self._log_distribution(x, True)

    def ppf(self, p: ArrayLike) -> Any:
        """Return the quantile: the least x with ``cdf(x) >= p``.

        One value is solved for, at about 0.2 microseconds; 500 and more share a table of
        polynomials that agrees to rounding, a few nanoseconds each. A sorted array, such as
        the midpoints (k - 1/2) / size, costs a third of that. The choice is made here.

        Parameters
        ----------
        p : array_like
            Probabilities.

        Returns
        -------
        float or ndarray
            Quantiles, in the shape of `p`.

        Examples
        --------
        >>> MarchenkoPastur(0.25).ppf([0.0, 1.0, 1.5])
        array([0.25, 2.25,  nan])
        """
        return self._quantile(p, "p", False)

    def isf(self, q: ArrayLike) -> Any:
        """Return the least x with ``sf(x) <= q``, accurate where `q` is small.

        Parameters
        ----------
        q : array_like
            Probabilities of a larger value.

        Returns
        -------
        float or ndarray
            Quantiles, in the shape of `q`.

        Examples
        --------
        >>> MarchenkoPastur(4.0).isf([0.0, 0.25, 0.9])
        array([9., 0., 0.])
        """
        return self._quantile(q, "q", True)

    def rvs(self, size: int | tuple[int, ...] | None = None, *, rng: Any = None) -> Any:
        """Return independent values of the law (not eigenvalues of one matrix: those repel).

        Parameters
        ----------
        size : int or tuple of int, optional
            Shape; a single float when absent.
        rng : None, int, or numpy.random.Generator
            Passed to `numpy.random.default_rng`.

        Returns
        -------
        float or ndarray
            Quantiles of uniform numbers, in the shape `size`.

        Examples
        --------
        >>> MarchenkoPastur(0.25).rvs(3, rng=0).shape
        (3,)
        """
        return self.ppf(np.random.default_rng(rng).random(size))

    def mean(self) -> float:
        """Return the mean, which is the variance of the entries.

        Examples
        --------
        >>> MarchenkoPastur(0.25, 2.0).mean()
        2.0
        """
        return self._variance

    def var(self) -> float:
        """Return the variance of the law, ``ratio variance^2``.

        Examples
        --------
        >>> MarchenkoPastur(0.25, 2.0).var()
        1.0
        """
        return self._ratio * self._variance**2

    def std(self) -> float:
        """Return the standard deviation of the law, ``sqrt(ratio) variance``.

        Examples
        --------
        >>> MarchenkoPastur(0.25, 2.0).std()
        1.0
        """
        return math.sqrt(self._ratio) * self._variance

    def median(self) -> float:
        """Return the median; 0 where the atom holds half or more.

        Examples
        --------
        >>> MarchenkoPastur(4.0).median()
        0.0
        """
        return float(self.ppf(0.5))

    def moment(self, k: int) -> float:
        """Return E[x^k], the atom included, rounded once; inf beyond the largest float.

        The Narayana sum ``variance^k sum_{j=0}^{k-1} C(k, j) C(k-1, j) ratio^j / (j + 1)``,
        taken in whole numbers.

        Parameters
        ----------
        k : int
            Order, at least 0.

        Examples
        --------
        >>> MarchenkoPastur(1.0).moment(3)
        5.0
        """
        k = _checks.integer(k, "k", 0)
        if k == 0:
            return 1.0
        # ratio = c / d and variance = v / w exactly
        c, d = self._ratio.as_integer_ratio()
        v, w = self._variance.as_integer_ratio()
        total = sum(
            math.comb(k, j) * math.comb(k - 1, j) // (j + 1) * c**j * d ** (k - 1 - j)
            for j in range(k)
        )
        try:
            return float((total * v**k) / (d ** (k - 1) * w**k))
        except OverflowError:
            return math.inf

    def interval(self, level: float) -> tuple[float, float]:
        """Return the ends of the interval that holds the share `level`, tails equal.

        Parameters
        ----------
        level : float
            Share, from 0 to 1.

        Returns
        -------
        tuple of float
            The quantiles that cut off (1 - level) / 2 on either side.

        Examples
        --------
        >>> MarchenkoPastur(0.25).interval(1.0)
        (0.25, 2.25)
        """
        tail = (1.0 - _checks.inside(level, "level", 0.0, 1.0, closed=True)) / 2.0
        return float(self.ppf(tail)), float(self.isf(tail))

    def _distribution(self, x: ArrayLike, upper: bool) -> Any:
        points, shape = _flat(x, "x")
        out = np.empty_like(points)
        kernels.distribution(points, self._packed, upper, out)
        return _shaped(out, shape)

    def _log_distribution(self, x: ArrayLike, upper: bool) -> Any:
        """Take the log of the smaller of the two tails, through log1p where it is the other one."""
        this = np.asarray(self._distribution(x, upper))
        other = np.asarray(self._distribution(x, not upper))
        with np.errstate(divide="ignore"):
            result = np.where(this < 0.5, np.log(this), np.log1p(-other)) + 0.0  # no -0.0
        return _shaped(result, result.shape)

    def _quantile(self, p: ArrayLike, name: str, upper: bool) -> Any:
        levels, shape = _flat(p, name)
        out = np.empty_like(levels)
        kernels.quantiles(levels, self._packed, upper, out)
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
