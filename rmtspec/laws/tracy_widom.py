"""The Tracy-Widom laws: where the largest eigenvalue of a noise matrix lands."""

import bisect
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike

from rmtspec._checks import Float64Array, floats, integer
from rmtspec.errors import InvalidValueError
from rmtspec.laws import _tracy_widom_expansions as expansions
from rmtspec.laws import _tracy_widom_table as table

_CENTRE = table.RIGHT_EDGES[0]
_EDGES = (*table.LEFT_EDGES, *table.RIGHT_EDGES[1:])
_PIECES = len(_EDGES) - 1
_LEFT_OF_CENTRE = float(np.nextafter(_CENTRE, -np.inf))
# Spacing of the start values of `ppf`: a straight line between them is right to 5e-4, which
# three Newton steps bring below rounding (1e-7, 1e-14, 1e-28).
_SPACING = 1 / 16
_NEWTON_STEPS = 3


@dataclass(frozen=True, slots=True)
class TracyWidom:
    """Tracy-Widom law of the centred and scaled largest eigenvalue of a random matrix.

    Read from a table of Chebyshev series of log F and log(1 - F), made from determinants in
    multi-precision arithmetic. Absolute error of `cdf`, `sf` and `ppf` about 1e-15; relative
    error of `cdf` on the left and of `sf` on the right below 1e-12 down to 1e-300, where most of
    it is what rounding `x` itself does.

    Parameters
    ----------
    beta : {1, 2, 4}
        Real, complex or quaternion matrices (the orthogonal, unitary, symplectic ensembles).
        BEMA and everything else in this package about real matrices uses 1.

    Notes
    -----
    With V the operator on (t, inf) of kernel Ai((x + y) / 2) / 2, F+ = det(I - V) and
    F- = det(I + V) ([1]_, section 3 of [2]_)::

        F1(s) = F+(s)    F2(s) = F+(s) F-(s)    F4(s) = (F+(t) + F-(t)) / 2 with t = sqrt(2) s

    Two scales are in use for beta = 4. Here the mean is -2.30688 and the variance 0.51772, the
    largest eigenvalue of the symplectic ensemble on the scale of the other two; some authors
    leave out the sqrt(2) and have the mean -3.26243 and the variance 1.03545: their values are
    sqrt(2) times those here.

    ==================  =====================================================================
    given               returned
    ==================  =====================================================================
    scalar              float64
    array               array of the same shape
    nan                 nan
    x = -inf or inf     cdf 0 or 1, sf 1 or 0, pdf 0, logcdf -inf or 0, logsf 0 or -inf
    far left, right     cdf or sf fade through the subnormal numbers to 0; logcdf and logsf go
                        on by asymptotic expansion to any x, relative error below 1e-12
    p = 0, p = 1        ppf -inf, inf; isf inf, -inf
    p outside [0, 1]    nan
    ==================  =====================================================================

    References
    ----------
    .. [1] P. L. Ferrari, H. Spohn, "A determinantal formula for the GOE Tracy-Widom
       distribution", J. Phys. A 38 (2005).
    .. [2] F. Bornemann, "On the numerical evaluation of distributions in random matrix
       theory: a review", Markov Processes and Related Fields 16 (2010).

    Examples
    --------
    >>> law = TracyWidom(beta=1)
    >>> print(f"{law.ppf(0.95):.6f}")
    0.979316
    >>> law.cdf([-2.0, 0.0]).round(6)
    array([0.227825, 0.831908])
    """

    beta: int = 1

    def __post_init__(self) -> None:
        hint = "Take 1 for real matrices, 2 for complex ones, 4 for quaternions."
        beta = integer(self.beta, "beta", 1, hint=hint)
        if beta not in table.MEAN:
            raise InvalidValueError(f"`beta` is {beta}; expected 1, 2 or 4. {hint}")
        object.__setattr__(self, "beta", beta)

    def pdf(self, x: ArrayLike) -> Any:
        """Density.

        Parameters
        ----------
        x : array_like
            Points.

        Returns
        -------
        float64 or ndarray of the shape of `x`

        Examples
        --------
        >>> print(f"{TracyWidom(beta=2).pdf(-2.0):.6f}")
        0.441380
        """
        x, _, log_tail, slope = self._tail(x)
        return np.exp(log_tail) * np.abs(slope)

    def cdf(self, x: ArrayLike) -> Any:
        """Probability of a value of at most `x`.

        Parameters
        ----------
        x : array_like
            Points.

        Returns
        -------
        float64 or ndarray of the shape of `x`

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).cdf(0.0):.6f}")
        0.831908
        """
        _, left, log_tail, _ = self._tail(x)
        return np.where(left, np.exp(log_tail), -np.expm1(log_tail))[()]

    def sf(self, x: ArrayLike) -> Any:
        """Probability of a value above `x`: 1 - cdf, without its rounding.

        Parameters
        ----------
        x : array_like
            Points.

        Returns
        -------
        float64 or ndarray of the shape of `x`

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).sf(12.0):.3e}")
        2.177e-14
        """
        _, left, log_tail, _ = self._tail(x)
        return np.where(left, -np.expm1(log_tail), np.exp(log_tail))[()]

    def logcdf(self, x: ArrayLike) -> Any:
        """Logarithm of the cdf, finite for every finite `x` whose cube is.

        Parameters
        ----------
        x : array_like
            Points.

        Returns
        -------
        float64 or ndarray of the shape of `x`

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).logcdf(-30.0):.3f}")
        -1163.995
        """
        _, left, log_tail, _ = self._tail(x)
        return np.where(left, log_tail, np.log1p(-np.exp(np.where(left, -1.0, log_tail))))[()]

    def logsf(self, x: ArrayLike) -> Any:
        """Logarithm of the sf, finite for every finite `x` up to 1e205.

        Parameters
        ----------
        x : array_like
            Points.

        Returns
        -------
        float64 or ndarray of the shape of `x`

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).logsf(120.0):.3f}")
        -881.908
        """
        _, left, log_tail, _ = self._tail(x)
        return np.where(left, np.log1p(-np.exp(np.where(left, log_tail, -1.0))), log_tail)[()]

    def ppf(self, p: ArrayLike) -> Any:
        """Quantile: the `x` with ``cdf(x) == p``.

        Parameters
        ----------
        p : array_like
            Probabilities. Near 1 use `isf`, which takes 1 - p and keeps its digits.

        Returns
        -------
        float64 or ndarray of the shape of `p`

        Examples
        --------
        >>> TracyWidom(beta=1).ppf([0.9, 0.99]).round(6)
        array([0.450143, 2.023449])
        """
        return self._quantile(floats(p, "p"), upper=False)

    def isf(self, p: ArrayLike) -> Any:
        """Inverse of the sf: the `x` with ``sf(x) == p``.

        Parameters
        ----------
        p : array_like
            Probabilities of a value above `x`.

        Returns
        -------
        float64 or ndarray of the shape of `p`

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).isf(1e-20):.6f}")
        15.784846
        """
        return self._quantile(floats(p, "p"), upper=True)

    def mean(self) -> float:
        """Mean.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).mean():.6f}")
        -1.206534
        """
        return table.MEAN[self.beta]

    def var(self) -> float:
        """Variance.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).var():.6f}")
        1.607781
        """
        return table.VARIANCE[self.beta]

    def std(self) -> float:
        """Standard deviation.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).std():.6f}")
        1.267983
        """
        return float(np.sqrt(self.var()))

    def median(self) -> float:
        """Median.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).median():.6f}")
        -1.268571
        """
        return float(self.ppf(0.5))

    def support(self) -> tuple[float, float]:
        """Ends of the support, the whole line.

        Examples
        --------
        >>> TracyWidom(beta=1).support()
        (-inf, inf)
        """
        return (-np.inf, np.inf)

    def _tail(self, x: ArrayLike) -> tuple[Any, Any, Any, Any]:
        """Return `x`, where it is left of the centre, the log of the tail it is in, its slope."""
        x = floats(x, "x")
        series = _series(self.beta)
        t = x * series.scale
        log_tail, slope = series.log_tail(t.ravel())
        left = t < _CENTRE
        return x, left, log_tail.reshape(x.shape)[()], (slope.reshape(x.shape) * series.scale)[()]

    def _quantile(self, p: Float64Array, *, upper: bool) -> Any:
        series = _series(self.beta)
        flat = p.ravel()
        x = np.full(flat.shape, np.nan)
        x[flat == 0] = np.inf if upper else -np.inf
        x[flat == 1] = -np.inf if upper else np.inf
        near = (flat > 0) & (flat <= (series.centre_sf if upper else series.centre_cdf))
        x[near] = series.inverse(np.log(flat[near]), left=not upper) / series.scale
        far = (flat < 1) & ~near & (flat > 0)
        x[far] = series.inverse(np.log1p(-flat[far]), left=upper) / series.scale
        return x.reshape(p.shape)[()]


class _Series:
    """The pieces of one law in t, from the far left to the far right, and their slopes."""

    def __init__(self, beta: int) -> None:
        self.beta = beta
        self.scale = float(np.sqrt(2.0)) if beta == 4 else 1.0
        self.values = (*table.LEFT[beta], *table.RIGHT[beta])
        self.slopes = tuple(
            tuple((chebyshev.chebder(value) * (2 / (high - low))).tolist())
            for value, (low, high) in zip(self.values, pairwise(_EDGES), strict=True)
        )
        self.centre_cdf = float(np.exp(_sum(table.LEFT[beta][-1], 1.0)))
        self.centre_sf = float(np.exp(_sum(table.RIGHT[beta][0], -1.0)))

    def log_tail(self, t: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return log F left of the centre, log(1 - F) right of it, and the slopes, for a 1-D `t`."""
        if t.size == 1:
            value, slope = self._piece(bisect.bisect_right(_EDGES, t.item()), t.item())
            return np.array([value]), np.array([slope])
        piece = np.searchsorted(_EDGES, t, side="right")
        value, slope = np.empty_like(t), np.empty_like(t)
        for k in np.flatnonzero(np.bincount(piece, minlength=_PIECES + 2)):
            inside = piece == k
            value[inside], slope[inside] = self._piece(int(k), t[inside])
        return value, slope

    def inverse(self, log_tail: Float64Array, *, left: bool) -> Float64Array:
        """Return the `t` on one side of the centre with this log of the tail there."""
        if not log_tail.size:
            return log_tail
        knots, values = self._starts_left if left else self._starts_right
        t = np.interp(log_tail, values, knots)
        for _ in range(_NEWTON_STEPS):
            value, slope = self.log_tail(t)
            t = t - (value - log_tail) / slope
            t = np.minimum(t, _LEFT_OF_CENTRE) if left else np.maximum(t, _CENTRE)
        return t

    def _piece(self, k: int, t: Any) -> tuple[Any, Any]:
        """Return log tail and slope in piece `k`, 0 and the last being those past the table."""
        if k == 0:
            return expansions.log_cdf(t, self.beta), 0.0
        if k > _PIECES:  # nan comes here too, and stays nan
            return expansions.log_sf(t, self.beta), np.where(np.isnan(t), np.nan, 0.0)
        low, high = _EDGES[k - 1], _EDGES[k]
        u = (2 * t - (low + high)) / (high - low)
        return _sum(self.values[k - 1], u), _sum(self.slopes[k - 1], u)

    @cached_property
    def _starts_left(self) -> tuple[Float64Array, Float64Array]:
        knots = np.append(np.arange(_EDGES[0], _CENTRE, _SPACING), _LEFT_OF_CENTRE)
        return knots, self.log_tail(knots)[0]

    @cached_property
    def _starts_right(self) -> tuple[Float64Array, Float64Array]:
        knots = np.arange(_EDGES[-1] - _SPACING, _CENTRE - _SPACING / 2, -_SPACING)
        return knots, self.log_tail(knots)[0]


@lru_cache
def _series(beta: int) -> _Series:
    return _Series(beta)


def _sum(coefficients: tuple[float, ...], u: Any) -> Any:
    """Return the Chebyshev series at `u`, by Clenshaw; plain floats stay so, which is faster."""
    one: Any = 0.0
    two: Any = 0.0
    twice = 2 * u
    for coefficient in coefficients[:0:-1]:
        one, two = coefficient + twice * one - two, one
    return coefficients[0] + u * one - two
