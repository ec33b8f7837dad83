"""The Tracy-Widom laws: where the largest eigenvalue of a noise matrix lands."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec._checks import Float64Array, floats, integer
from rmtspec.errors import InvalidValueError
from rmtspec.laws import _tracy_widom_table as table
from rmtspec.laws._tracy_widom_series import CENTRE, tail_series


@dataclass(frozen=True, slots=True)
class TracyWidom:
    """Tracy-Widom law of the centred and scaled largest eigenvalue of a random matrix.

    Read from a table of Chebyshev series of log F and log(1 - F), made from determinants in
    multi-precision arithmetic. Held against Painleve II values: `cdf`, `sf`, `pdf` within 1e-15;
    relative error of `cdf` and `sf` in their own tails below 3e-13 down to 1e-300; `ppf` and
    `isf` within 1e-14 for any probability from 1e-300.

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
    scalar              float
    array               array of the same shape
    nan                 nan
    x = -inf or inf     cdf 0 or 1, sf 1 or 0, pdf 0, logcdf -inf or 0, logsf 0 or -inf
    far left, right     cdf or sf fade through the subnormal numbers to 0; logcdf and logsf go
                        on by asymptotic expansion to any x, relative error below 1e-12
    p = 0, p = 1        ppf -inf, inf; isf inf, -inf
    p outside [0, 1]    ppf and isf nan
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
    array([0.27432 , 0.831908])
    """

    beta: int = 1

    def __post_init__(self) -> None:
        hint = "Take 1 for real matrices, 2 for complex ones, 4 for quaternions."
        beta = integer(self.beta, "beta", 1, hint=hint)
        if beta not in table.MEAN:
            raise InvalidValueError(f"`beta` is {beta}; expected 1, 2 or 4. {hint}")
        object.__setattr__(self, "beta", beta)

    def pdf(self, x: ArrayLike) -> Any:
        """Return the density at `x`.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=2).pdf(-2.0):.6f}")
        0.441382
        """
        _, log_tail, slope = self._tail(x)
        return _shaped(np.exp(log_tail) * np.abs(slope))

    def cdf(self, x: ArrayLike) -> Any:
        """Return the probability of a value of at most `x`.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).cdf(0.0):.6f}")
        0.831908
        """
        left, log_tail, _ = self._tail(x)
        return _shaped(np.where(left, np.exp(log_tail), -np.expm1(log_tail)))

    def sf(self, x: ArrayLike) -> Any:
        """Return the probability of a value above `x`, accurate where it is small.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).sf(12.0):.3e}")
        1.977e-14
        """
        left, log_tail, _ = self._tail(x)
        return _shaped(np.where(left, -np.expm1(log_tail), np.exp(log_tail)))

    def logcdf(self, x: ArrayLike) -> Any:
        """Return the logarithm of the cdf, finite down to x = -1e102.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).logcdf(-30.0):.3f}")
        -1164.184
        """
        left, log_tail, _ = self._tail(x)
        other = np.log1p(-np.exp(np.where(left, -1.0, log_tail)))
        return _shaped(np.where(left, log_tail, other))

    def logsf(self, x: ArrayLike) -> Any:
        """Return the logarithm of the sf, finite up to x = 1e205.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).logsf(120.0):.3f}")
        -881.906
        """
        left, log_tail, _ = self._tail(x)
        other = np.log1p(-np.exp(np.where(left, log_tail, -1.0)))
        return _shaped(np.where(left, other, log_tail))

    def ppf(self, p: ArrayLike) -> Any:
        """Return the quantile: the `x` with ``cdf(x) == p``.

        Near 1 use `isf`, which takes 1 - p and keeps its digits.

        Examples
        --------
        >>> TracyWidom(beta=1).ppf([0.9, 0.99]).round(6)
        array([0.450143, 2.023449])
        """
        return self._quantile(floats(p, "p"), upper=False)

    def isf(self, q: ArrayLike) -> Any:
        """Return the `x` with ``sf(x) == q``, accurate where `q` is small.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).isf(1e-20):.6f}")
        15.834960
        """
        return self._quantile(floats(q, "q"), upper=True)

    def mean(self) -> float:
        """Return the mean.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).mean():.6f}")
        -1.206534
        """
        return float(table.MEAN[self.beta])

    def var(self) -> float:
        """Return the variance.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).var():.6f}")
        1.607781
        """
        return float(table.VARIANCE[self.beta])

    def std(self) -> float:
        """Return the standard deviation.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).std():.6f}")
        1.267983
        """
        return math.sqrt(self.var())

    def median(self) -> float:
        """Return the median.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).median():.6f}")
        -1.268575
        """
        return float(self.ppf(0.5))

    def support(self) -> tuple[float, float]:
        """Return the ends of the support, the whole line.

        Examples
        --------
        >>> TracyWidom(beta=1).support()
        (-inf, inf)
        """
        return (-math.inf, math.inf)

    def _tail(self, x: ArrayLike) -> tuple[Any, Any, Any]:
        """Return whether `x` is left of the centre, the log of the tail it is in, the slope."""
        series = tail_series(self.beta)
        points = floats(x, "x")
        with np.errstate(over="ignore"):
            t = points * series.scale
        log_tail, slope = series.log_tail(t.ravel())
        return t < CENTRE, log_tail.reshape(t.shape), slope.reshape(t.shape) * series.scale

    def _quantile(self, p: Float64Array, *, upper: bool) -> Any:
        series = tail_series(self.beta)
        flat = p.ravel()
        x = np.full(flat.shape, np.nan)
        x[flat == 0] = np.inf if upper else -np.inf
        x[flat == 1] = -np.inf if upper else np.inf
        inside = (flat > 0) & (flat < 1)
        near = inside & (flat <= (series.centre_sf if upper else series.centre_cdf))
        far = inside & ~near
        x[near] = series.inverse(np.log(flat[near]), left=not upper) / series.scale
        x[far] = series.inverse(np.log1p(-flat[far]), left=upper) / series.scale
        return _shaped(x.reshape(p.shape))


def _shaped(values: Any) -> Any:
    return values if np.ndim(values) else float(values)
