"""The Tracy-Widom laws: where the largest eigenvalue of a noise matrix lies.

Let W be an n x p matrix of noise of variance 1. The largest eigenvalue of W^T W / n, less `centre`
and divided by `scale`, follows the law of beta = 1 in the limit of large n and p. One matrix in a
hundred exceeds

>>> from rmtspec import TracyWidom
>>> n, p = 1000, 500
>>> centre = (n**0.5 + p**0.5) ** 2 / n
>>> scale = (n**0.5 + p**0.5) * (n**-0.5 + p**-0.5) ** (1 / 3) / n
>>> print(f"{centre + scale * TracyWidom(beta=1).isf(0.01):.3f}")
2.961
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array, integer
from rmtspec.errors import InvalidOptionError
from rmtspec.laws._law import Law
from rmtspec.laws._tracy_widom_series import BETAS, CENTRE, EDGES, tail_series

_STEP = 1 / 16  # of the rule for moments, in t


@dataclass(frozen=True, slots=True)
class TracyWidom(Law):
    """Tracy-Widom law of the centred and scaled largest eigenvalue of a random matrix.

    It is computed from a table of Chebyshev series of log F and log(1 - F), made from determinants
    in multi-precision arithmetic. Compared with Painleve II values, `cdf`, `sf` and `pdf` are
    accurate to 1e-15, `cdf` and `sf` in their own tails to a relative error of 3e-13 down to
    1e-300, and `ppf` and `isf` to 1e-14 for any probability from 1e-300. `moment` is accurate to
    1e-13 of E|x|^k.

    Parameters
    ----------
    beta : {1, 2, 4}
        Real, complex or quaternion matrices (the orthogonal, unitary and symplectic ensembles).
        BEMA and the rest of this package, which are about real matrices, use 1.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        `beta` is another number, or not a whole number.

    Notes
    -----
    Let V be the operator on (t, inf) with the kernel Ai((x + y) / 2) / 2, F+ = det(I - V) and
    F- = det(I + V). Then ([1]_, section 3 of [2]_)::

        F1(s) = F+(s)    F2(s) = F+(s) F-(s)    F4(s) = (F+(t) + F-(t)) / 2 with t = sqrt(2) s

    Two scales are in use for beta = 4. Here the largest eigenvalue of the symplectic ensemble is
    on the scale of the other two, with mean -2.30688 and variance 0.51772. Some authors leave out
    the sqrt(2) and have mean -3.26243 and variance 1.03545: their values are sqrt(2) times these.

    ==================  =====================================================================
    given               returned
    ==================  =====================================================================
    scalar              float
    array               array of the same shape
    nan                 nan
    x = -inf or inf     cdf 0 or 1, sf 1 or 0, pdf 0, logpdf -inf, logcdf -inf or 0, logsf 0
                        or -inf
    far left, right     cdf, sf and pdf fade through the subnormal numbers to 0; their logs continue
                        by asymptotic expansion, with relative errors below 1e-12, and are finite
                        from x = -1e102 to 1e205
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
        hint = "Pass 1 for real matrices, 2 for complex and 4 for quaternion ones."
        beta = integer(self.beta, "beta", 1, hint=hint)
        if beta not in BETAS:
            raise InvalidOptionError(f"`beta` is {beta}", "1, 2 or 4", hint)
        object.__setattr__(self, "beta", beta)

    def mean(self) -> float:
        """Return the mean.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).mean():.6f}")
        -1.206534
        """
        return tail_series(self.beta).mean

    def var(self) -> float:
        """Return the variance.

        Examples
        --------
        >>> print(f"{TracyWidom(beta=1).var():.6f}")
        1.607781
        """
        return tail_series(self.beta).variance

    def support(self) -> tuple[float, float]:
        """Return the ends of the support, which is the whole line.

        Examples
        --------
        >>> TracyWidom(beta=1).support()
        (-inf, inf)
        """
        return (-math.inf, math.inf)

    def _density(self, x: Float64Array) -> Float64Array:
        _, log_tail, slope = self._tail(x)
        return np.exp(log_tail) * np.abs(slope)

    def _log_density(self, x: Float64Array) -> Float64Array:
        _, log_tail, slope = self._tail(x)
        return log_tail + np.log(np.abs(slope))

    def _distribution(self, x: Float64Array, upper: bool) -> Float64Array:
        left, log_tail, _ = self._tail(x)
        return np.where(left != upper, np.exp(log_tail), -np.expm1(log_tail))

    def _log_distribution(self, x: Float64Array, upper: bool) -> Float64Array:
        left, log_tail, _ = self._tail(x)
        near = left != upper
        other = np.log1p(-np.exp(np.where(near, -1.0, log_tail))) + 0.0  # no -0.0
        return np.where(near, log_tail, other)

    def _quantile(self, p: Float64Array, upper: bool) -> Float64Array:
        series = tail_series(self.beta)
        x = np.full(p.shape, np.nan)
        x[p == 0] = np.inf if upper else -np.inf
        x[p == 1] = -np.inf if upper else np.inf
        inside = (p > 0) & (p < 1)
        near = inside & (p <= (series.centre_sf if upper else series.centre_cdf))
        far = inside & ~near
        x[near] = series.inverse(np.log(p[near]), left=not upper) / series.scale
        x[far] = series.inverse(np.log1p(-p[far]), left=upper) / series.scale
        return x

    def _moment(self, k: int) -> float:
        """Sum over equidistant points: exact to rounding, because F is analytic everywhere."""
        t = np.arange(EDGES[0] + _STEP / 2, EDGES[-1], _STEP)  # not 0
        scale = tail_series(self.beta).scale
        x = t / scale
        k = min(k, 10**6)  # the moment is inf long before
        logs = self._log_density(x) + k * np.log(np.abs(x)) + np.log(_STEP / scale)
        top = logs.max()  # x^k alone may overflow
        total = np.sum(np.exp(logs - top) * np.sign(x) ** k)
        with np.errstate(over="ignore"):
            return float(np.sign(total) * np.exp(top + np.log(np.abs(total))))

    def _tail(self, x: Float64Array) -> tuple[NDArray[np.bool_], Float64Array, Float64Array]:
        """Return whether `x` is left of the centre, the log of its tail, and the slope."""
        series = tail_series(self.beta)
        with np.errstate(over="ignore"):
            t = x * series.scale
        log_tail, slope = series.log_tail(t)
        return t < CENTRE, log_tail, slope * series.scale


@functools.lru_cache(maxsize=256)
def upper_quantile(beta: float) -> float:
    """Return the value that the Tracy-Widom law of real matrices exceeds with chance `beta`."""
    return float(TracyWidom(1).isf(beta))
