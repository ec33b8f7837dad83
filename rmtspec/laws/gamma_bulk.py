"""The bulk of a noise matrix whose columns have gamma-distributed variances.

>>> import numpy as np
>>> from rmtspec.laws.gamma_bulk import GammaMarchenkoPastur
>>> rng = np.random.default_rng(0)
>>> scales = np.sqrt(rng.gamma(2.0, 0.5, size=500))
>>> noise = rng.standard_normal((2000, 500)) * scales
>>> eigenvalues = np.linalg.eigvalsh(noise.T @ noise / 2000)
>>> law = GammaMarchenkoPastur(ratio=500 / 2000, shape=2.0)
>>> print(f"{np.mean(eigenvalues <= 1.0):.2f} of them, {law.cdf(1.0):.2f} of the law")
0.64 of them, 0.62 of the law
"""

import math
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._kernels import gamma_bulk as kernels
from rmtspec._kernels.gamma_bulk import ComplexArray
from rmtspec.laws._law import Law

_RATIOS = (1e-6, 1e3)
_SHAPES = (0.2, 1e4)
_VARIANCES = (1e-300, 1e300)
_DIGITS = 30.0  # -log of the error of the sums over the nodes
_ROWS = 2001  # room for the table of roots; 150 to 800 are used


class GammaMarchenkoPastur(Law):
    """Limit law of the eigenvalues of W^T W / N, W an N x M matrix whose columns differ in scale.

    The entries are independent, and the variances of the columns are independent draws of a gamma
    law of the given shape and of mean `variance`: the model of [1]_. As the shape grows, it becomes
    the Marchenko-Pastur law of the same ratio and variance. The support is (0, inf) for a ratio up
    to 1; for a ratio c > 1 there is an atom of mass 1 - 1 / c at 0 and a gap above it.

    Parameters
    ----------
    ratio : float
        c = M / N, columns divided by rows of W, from 1e-6 to 1e3.
    shape : float
        Shape of the gamma law, from 0.2 to 1e4: the squared mean of the variances divided by their
        variance.
    variance : float
        Mean of the variances of the columns, from 1e-300 to 1e300.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        A parameter is outside its range, or not a number.

    Notes
    -----
    The Stieltjes transform solves Silverstein's equation [2]_, here by Newton's method. Its
    integrals over the gamma law run along a ray below the real axis, where they are smooth; the
    distribution function comes from the logarithmic potential at the root, without integrating the
    density. The cdf and sf are accurate to 1e-9, absolutely; quantiles that cut off less than 1e-9
    are those of 1e-9. Making a law takes 0.5 to 25 ms (the smaller the shape, the
    longer), a value 2 to 20 microseconds.

    References
    ----------
    .. [1] Z. T. Ke, Y. Ma, X. Lin, Estimation of the number of spiked eigenvalues in a covariance
       matrix by bulk eigenvalue matching analysis, JASA (2021).
    .. [2] J. W. Silverstein, Z. D. Bai, On the empirical distribution of eigenvalues of a class of
       large dimensional random matrices, Journal of Multivariate Analysis (1995).

    Examples
    --------
    >>> import rmtspec
    >>> law = rmtspec.GammaMarchenkoPastur(0.25, shape=2.0)
    >>> print(f"{law.median():.4f}, {law.ppf(0.99):.4f}; {law.mean():.4f}, {law.var():.4f}")
    0.7294, 3.8009; 1.0000, 0.7500
    """

    __slots__ = ("_packed", "_ratio", "_shape", "_variance")

    def __init__(self, ratio: float, shape: float, variance: float = 1.0) -> None:
        hint = "Pass columns / rows (p / n) of the matrix."
        self._ratio = _checks.inside(ratio, "ratio", *_RATIOS, closed=True, hint=hint)
        hint = "Pass the shape of the gamma law; MarchenkoPastur is the law of equal variances."
        self._shape = _checks.inside(shape, "shape", *_SHAPES, closed=True, hint=hint)
        hint = "Pass the mean variance of the columns; rescale the matrix if it is that extreme."
        self._variance = _checks.inside(variance, "variance", *_VARIANCES, closed=True, hint=hint)
        nodes, weights = _gamma_nodes(self._shape)
        rows = np.zeros((_ROWS, 3), dtype=np.complex128)
        first, last = kernels.grid(self._ratio, nodes, weights, rows)
        self._packed: kernels.Packed = self._ratio, nodes, weights, rows[first : last + 1].copy()

    @property
    def ratio(self) -> float:
        """Columns divided by rows of the matrix."""
        return self._ratio

    @property
    def shape(self) -> float:
        """Shape of the gamma law of the variances."""
        return self._shape

    @property
    def variance(self) -> float:
        """Mean of the variances of the columns."""
        return self._variance

    @property
    def atom(self) -> float:
        """Mass at 0: ``1 - 1 / ratio`` for a ratio above 1, else 0."""
        return max(self._ratio - 1.0, 0.0) / self._ratio

    def support(self) -> tuple[float, float]:
        """Return the ends of the support, 0 and inf.

        Examples
        --------
        >>> GammaMarchenkoPastur(0.25, 2.0).support()
        (0.0, inf)
        """
        return (0.0, math.inf)

    def mean(self) -> float:
        """Return the mean, which is the mean variance.

        Examples
        --------
        >>> GammaMarchenkoPastur(0.25, 2.0, variance=3.0).mean()
        3.0
        """
        return self._variance

    def var(self) -> float:
        """Return the variance of the law, ``(ratio + 1 / shape) variance^2``.

        Examples
        --------
        >>> GammaMarchenkoPastur(0.25, 2.0).var()
        0.75
        """
        return (self._ratio + 1.0 / self._shape) * (self._variance * self._variance)

    def rough_ppf(self, p: Float64Array) -> Float64Array:
        """Return quantiles interpolated in the table, within 1e-5 of `ppf`, for searches.

        Examples
        --------
        >>> law, p = GammaMarchenkoPastur(0.25, 2.0), np.array([0.2, 0.8])
        >>> bool(np.allclose(law.rough_ppf(p), law.ppf(p), rtol=1e-5))
        True
        """
        from scipy.interpolate import CubicHermiteSpline

        table = self._packed[3]
        x, height = table[:, 0].real, table[:, 0].imag
        below = 1.0 - table[:, 2].real
        rises = np.append(np.diff(below) > 0.0, True) & (height > 0.0)
        spline = CubicHermiteSpline(below[rises], x[rises], 1.0 / height[rises])
        quantiles: Float64Array = spline(p) * self._variance
        return quantiles

    def _density(self, x: Float64Array) -> Float64Array:
        unit, out = x / self._variance, np.empty_like(x)
        kernels.density(unit, self._packed, out)
        return out / self._variance

    def _log_density(self, x: Float64Array) -> Float64Array:
        with np.errstate(divide="ignore"):
            return np.log(self._density(x))

    def _distribution(self, x: Float64Array, upper: bool) -> Float64Array:
        unit, out = x / self._variance, np.empty_like(x)
        kernels.upper_share(unit, self._packed, out)
        return out if upper else 1.0 - out

    def _log_distribution(self, x: Float64Array, upper: bool) -> Float64Array:
        with np.errstate(divide="ignore"):
            return np.log(self._distribution(x, upper)) + 0.0  # no -0.0

    def _quantile(self, p: Float64Array, upper: bool) -> Float64Array:
        out = np.empty_like(p)
        q = p if upper else 1.0 - p
        kernels.quantiles(q, self._packed, out)
        return out * self._variance

    def _moment(self, k: int) -> float:
        """Return E[x^k] from the free cumulants of the eigenvalues of W W^T / N, c E[T^j]."""
        powers = np.cumprod((self._shape + np.arange(k)) / self._shape)  # E[T], ..., E[T^k]
        moments = np.zeros(k + 1)
        moments[0] = 1.0
        for order in range(1, k + 1):
            power = np.eye(1, k + 1)[0]
            for j in range(1, order + 1):
                power = np.convolve(power, moments)[: k + 1]
                moments[order] += self._ratio * powers[j - 1] * power[order - j]
        with np.errstate(over="ignore"):
            return float(moments[k] / self._ratio * np.float64(self._variance) ** k)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GammaMarchenkoPastur):
            return NotImplemented
        return self._parameters() == other._parameters()

    def __hash__(self) -> int:
        return hash((GammaMarchenkoPastur, *self._parameters()))

    def __reduce__(self) -> tuple[Any, ...]:
        return GammaMarchenkoPastur, self._parameters()

    def __repr__(self) -> str:
        ratio, shape, variance = self._parameters()
        return f"GammaMarchenkoPastur(ratio={ratio!r}, shape={shape!r}, variance={variance!r})"

    def _parameters(self) -> tuple[float, float, float]:
        return self._ratio, self._shape, self._variance


def _gamma_nodes(shape: float) -> tuple[ComplexArray, ComplexArray]:
    """Return nodes and weights for expectations over the gamma law of mean 1.

    They are those of the trapezoidal rule in log t along the ray t = r exp(-i angle), whose error
    falls exponentially in the distance of the nearest pole. The angle shrinks with the width of
    the law, so that the weights do not cancel.
    """
    angle = min(0.7, 1.5 / math.sqrt(shape))
    step = 2.0 * math.pi * angle / (_DIGITS + 3.0)
    constant = shape * math.log(shape) - math.lgamma(shape)
    s = np.arange(-1.5 * _DIGITS / shape - 12.0, 8.0, step)
    size = shape * (s - np.exp(s) * math.cos(angle)) + constant
    s = s[size > -_DIGITS]
    ray = s - 1j * angle
    nodes = np.exp(ray)
    weights = np.exp(shape * (ray - nodes) + (constant + math.log(step)))
    return nodes, weights
