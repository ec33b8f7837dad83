"""The common part of the laws: checks of arguments, shapes, and the derived methods.

>>> from rmtspec import MarchenkoPastur, TracyWidom
>>> for law in (MarchenkoPastur(0.25), TracyWidom(beta=1)):
...     low, high = law.interval(0.9)
...     print(f"{low:.4f} {high:.4f} {law.cdf(high) - law.cdf(low):.4f}")
0.3362 1.9309 0.9000
-3.1804 0.9793 0.9000
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidTypeError, InvalidValueError


class Law(ABC):
    """A law of real numbers, with the names of scipy.stats.

    The private methods are its formulas: they take 1-D contiguous float64 arrays, leave these
    unchanged, return new ones of the same shape, and check nothing.
    """

    __slots__ = ()

    @abstractmethod
    def _density(self, x: Float64Array) -> Float64Array: ...

    @abstractmethod
    def _log_density(self, x: Float64Array) -> Float64Array: ...

    @abstractmethod
    def _distribution(self, x: Float64Array, upper: bool) -> Float64Array: ...

    @abstractmethod
    def _log_distribution(self, x: Float64Array, upper: bool) -> Float64Array: ...

    @abstractmethod
    def _quantile(self, p: Float64Array, upper: bool) -> Float64Array: ...

    @abstractmethod
    def _moment(self, k: int) -> float:
        """Return E[x^k] for k >= 2."""

    @abstractmethod
    def support(self) -> tuple[float, float]:
        """Return the ends of the support."""

    @abstractmethod
    def mean(self) -> float:
        """Return the mean."""

    @abstractmethod
    def var(self) -> float:
        """Return the variance."""

    def pdf(self, x: ArrayLike) -> Any:
        """Return the density at `x`, without any atom.

        Parameters
        ----------
        x : array_like
            Points.

        Returns
        -------
        float or ndarray
            In the shape of `x`; likewise for every method that takes an array.

        Raises
        ------
        InvalidTypeError
            `x` does not hold real numbers; likewise for every method that takes an array.

        Examples
        --------
        >>> from rmtspec import MarchenkoPastur
        >>> round(MarchenkoPastur(0.25).pdf(1.0), 6)
        0.616404
        """
        return _mapped(self._density, x, "x")

    def logpdf(self, x: ArrayLike) -> Any:
        """Return the logarithm of `pdf`, even where `pdf` is below the smallest float.

        Examples
        --------
        >>> from rmtspec import TracyWidom
        >>> print(f"{TracyWidom(beta=1).logpdf(120.0):.3f}")
        -879.512
        """
        return _mapped(self._log_density, x, "x")

    def cdf(self, x: ArrayLike) -> Any:
        """Return the probability of a value at most `x`, accurate where it is small.

        Examples
        --------
        >>> from rmtspec import MarchenkoPastur
        >>> MarchenkoPastur(4.0).cdf([-1.0, 0.0, 9.0])
        array([0.  , 0.75, 1.  ])
        """
        return _mapped(self._distribution, x, "x", False)

    def logcdf(self, x: ArrayLike) -> Any:
        """Return the logarithm of `cdf`, computed from the smaller tail.

        Examples
        --------
        >>> from rmtspec import TracyWidom
        >>> print(f"{TracyWidom(beta=1).logcdf(-30.0):.3f}")
        -1164.184
        """
        return _mapped(self._log_distribution, x, "x", False)

    def sf(self, x: ArrayLike) -> Any:
        """Return the probability of a value above `x`, accurate where it is small.

        Examples
        --------
        >>> from rmtspec import TracyWidom
        >>> print(f"{TracyWidom(beta=1).sf(12.0):.3e}")
        1.977e-14
        """
        return _mapped(self._distribution, x, "x", True)

    def logsf(self, x: ArrayLike) -> Any:
        """Return the logarithm of `sf`, computed from the smaller tail.

        Examples
        --------
        >>> from rmtspec import TracyWidom
        >>> print(f"{TracyWidom(beta=1).logsf(120.0):.3f}")
        -881.906
        """
        return _mapped(self._log_distribution, x, "x", True)

    def ppf(self, p: ArrayLike) -> Any:
        """Return the quantile: the least x with ``cdf(x) >= p``.

        Near 1, use `isf`, which takes 1 - p and so keeps its digits.

        Examples
        --------
        >>> from rmtspec import MarchenkoPastur
        >>> MarchenkoPastur(0.25).ppf([0.0, 1.0, 1.5])
        array([0.25, 2.25,  nan])
        """
        return _mapped(self._quantile, p, "p", False)

    def isf(self, q: ArrayLike) -> Any:
        """Return the least x with ``sf(x) <= q``, accurate where `q` is small.

        Examples
        --------
        >>> from rmtspec import TracyWidom
        >>> print(f"{TracyWidom(beta=1).isf(1e-20):.6f}")
        15.834960
        """
        return _mapped(self._quantile, q, "q", True)

    def rvs(self, size: int | tuple[int, ...] | None = None, *, rng: Any = None) -> Any:
        """Return independent values of the law (unlike eigenvalues of one matrix, which repel).

        Parameters
        ----------
        size : int or tuple of int, optional
            Shape of the result; a single float if None.
        rng : None, int, or numpy.random.Generator
            Passed to `numpy.random.default_rng`.

        Raises
        ------
        InvalidValueError, InvalidTypeError
            NumPy refuses the `size` or the `rng`.

        Examples
        --------
        >>> from rmtspec import TracyWidom
        >>> TracyWidom(beta=1).rvs(3, rng=0).round(4)
        array([-0.8207, -2.0162, -3.2821])
        """
        try:
            uniform = np.random.default_rng(rng).random(size)
        except (TypeError, ValueError) as error:
            kind = InvalidTypeError if isinstance(error, TypeError) else InvalidValueError
            raise kind(
                f"`size` is {size!r} and `rng` is {rng!r}; expected a shape and a source of random "
                f"numbers ({error}). Pass a whole number or a tuple of them as `size`, and None, a "
                "seed or a NumPy Generator as `rng`."
            ) from error
        return self.ppf(np.maximum(uniform, 2.0**-54))  # 0, one in 2^53, would be -inf

    def std(self) -> float:
        """Return the standard deviation.

        Examples
        --------
        >>> from rmtspec import TracyWidom
        >>> print(f"{TracyWidom(beta=1).std():.6f}")
        1.267983
        """
        return math.sqrt(self.var())

    def median(self) -> float:
        """Return the median.

        Examples
        --------
        >>> from rmtspec import TracyWidom
        >>> print(f"{TracyWidom(beta=1).median():.6f}")
        -1.268575
        """
        return float(self.ppf(0.5))

    def moment(self, k: int) -> float:
        """Return E[x^k], atom included, for a whole number `k` >= 0; inf beyond the largest float.

        Examples
        --------
        >>> from rmtspec import MarchenkoPastur
        >>> MarchenkoPastur(1.0).moment(3)
        5.0
        """
        k = _checks.integer(k, "k", 0, hint="Pass the order of the moment.")
        return (1.0, self.mean())[k] if k < 2 else self._moment(k)

    def interval(self, level: float) -> tuple[float, float]:
        """Return the quantiles that cut off (1 - level) / 2 at either end, `level` in [0, 1].

        Examples
        --------
        >>> from rmtspec import MarchenkoPastur
        >>> MarchenkoPastur(0.25).interval(1.0)
        (0.25, 2.25)
        """
        hint = "Pass the share that the interval holds, such as 0.95."
        tail = (1.0 - _checks.inside(level, "level", 0.0, 1.0, closed=True, hint=hint)) / 2.0
        return float(self.ppf(tail)), float(self.isf(tail))


def shaped(result: Any) -> Any:
    """Return a 0-d array as a float, any other unchanged."""
    return result if result.ndim else float(result)


def _mapped(
    formula: Callable[..., Float64Array], values: ArrayLike, name: str, *options: bool
) -> Any:
    """Return `formula` of `values`, in their shape."""
    array = _checks.floats(values, name)
    flat = np.ascontiguousarray(array).reshape(-1)
    # for a read-only array numba would compile again
    out = formula(flat if flat.flags.writeable else flat.copy(), *options)
    return shaped(out.reshape(array.shape))
