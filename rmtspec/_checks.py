"""Checks of user input: each returns the converted value or raises an error with a cure."""

import contextlib
import functools
import math
import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec._arrays import as_array
from rmtspec.errors import (
    InvalidOptionError,
    InvalidOptionTypeError,
    InvalidTypeError,
    InvalidValueError,
)

Float64Array = NDArray[np.float64]


def positive(value: Any, name: str, hint: str = "") -> float:
    """Return `value` as a float if it is a finite number above 0."""
    number = _real(value, name)
    if not (math.isfinite(number) and number > 0):
        raise InvalidOptionError(f"`{name}` is {value!r}", "a positive number", hint)
    return number


def inside(
    value: Any, name: str, low: float, high: float, *, closed: bool = False, hint: str = ""
) -> float:
    """Return `value` as a float if it is between `low` and `high`, ends included if `closed`."""
    number = _real(value, name)
    if not (low <= number <= high if closed else low < number < high):
        brackets = "[]" if closed else "()"
        expected = f"a number in {brackets[0]}{low:g}, {high:g}{brackets[1]}"
        raise InvalidOptionError(f"`{name}` is {value!r}", expected, hint)
    return number


def cutoff(value: Any, name: str) -> float:
    """Return `value` as a float if it can be the cutoff of a fit statistic, which is below 1."""
    hint = "It is the paper's gamma; the paper uses 0.01 to 0.15."
    return inside(value, name, 0.0, 1.0, hint=hint)


def integer(value: Any, name: str, low: int, high: int | None = None, *, hint: str = "") -> int:
    """Return `value` as an int if it is between `low` and `high`, both included."""
    if isinstance(value, bool | np.bool_):
        raise InvalidOptionTypeError(f"`{name}` is {value!r}", "a whole number", hint)
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidOptionTypeError(
            f"`{name}` is {value!r} ({type(value).__name__})", "a whole number", hint
        ) from None
    if number < low or (high is not None and number > high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidOptionError(f"`{name}` is {number}", f"a whole number {span}", hint)
    return number


def seed(value: Any, name: str) -> int:
    """Return a seed: `value` if it is a whole number from 0, or one drawn from a Generator."""
    if isinstance(value, np.random.Generator):
        return int(value.integers(2**63))
    return integer(value, name, 0, hint="The same seed gives the same result.")


def generator(rng: Any, name: str = "rng") -> np.random.Generator:
    """Return the NumPy Generator that `rng`, a seed or a Generator, stands for."""
    return np.random.default_rng(seed(rng, name))


def choice(value: Any, name: str, options: tuple[str, ...]) -> str:
    """Return `value` if it is one of `options`."""
    if not isinstance(value, str) or value not in options:
        raise InvalidOptionError(f"`{name}` is {value!r}", f"one of {', '.join(options)}")
    return str(value)


def floats(values: ArrayLike, name: str) -> Float64Array:
    """Return `values` as a float64 array of the same shape; nan is allowed, complex is not."""
    if type(values) is np.ndarray and values.dtype == np.float64:
        return values
    array = as_array(values, name, matrix=False)
    if array.dtype.kind not in "fiub" and not is_float(array.dtype):
        raise InvalidTypeError(f"`{name}` has dtype {array.dtype}; expected real numbers.")
    return np.asarray(array, dtype=np.float64)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Tell whether `dtype` is a real floating type; those of ml_dtypes (bfloat16, ...) are."""
    if dtype.kind == "f":
        return True
    # ml_dtypes registers its types with kind "V"; asking numpy for a cast does not import it.
    return dtype.kind == "V" and dtype.names is None and np.can_cast(dtype, np.float64)


@functools.lru_cache(maxsize=32)
def resolution(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return (epsilon, smallest subnormal) of `dtype`; integers are exact in float64."""
    limits = _limits(dtype)
    return float(limits.eps), float(limits.smallest_subnormal)


def largest(dtype: np.dtype[Any]) -> float:
    """Return the largest finite number of a floating `dtype`, and of float64 for integers."""
    return float(_limits(dtype).max)


def _limits(dtype: np.dtype[Any]) -> Any:
    limits: Any = np.finfo(np.float64)
    if issubclass(dtype.type, np.floating):
        limits = np.finfo(dtype)
    elif is_float(dtype):
        import ml_dtypes

        with contextlib.suppress(ValueError):  # int4 and the like, which are exact in float64
            limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return limits


def matrix(values: ArrayLike, name: str = "W") -> NDArray[Any]:
    """Return `values` as a real 2-D array, without a copy if it is one; entries are not checked."""
    array = as_array(values, name)
    if array.dtype.kind == "c":
        raise InvalidTypeError(
            f"`{name}` is complex ({array.dtype}); expected real numbers. The laws used here are "
            "those of real matrices: pass the real part, or both parts stacked as columns."
        )
    if array.dtype.kind == "b" or not (array.dtype.kind in "iu" or is_float(array.dtype)):
        raise InvalidTypeError(
            f"`{name}` has dtype {array.dtype}; expected real floating numbers (integers are "
            f"converted). Convert it first: {name}.astype(float)."
        )
    if array.ndim != 2:
        raise InvalidValueError(
            f"`{name}` has shape {array.shape}; expected a matrix, with 2 dimensions. "
            + _shape_hint(array.ndim, name)
        )
    if array.size == 0:
        raise InvalidValueError(
            f"`{name}` is empty, shape {array.shape}; expected at least one row and one column."
        )
    return array


def _shape_hint(ndim: int, name: str) -> str:
    if ndim > 2:
        return f"Reshape a convolution kernel: {name}.reshape(len({name}), -1)."
    if ndim == 1:
        return f"A vector has no spectrum; if it is a row of a matrix, pass {name}[None, :]."
    return "A single number has no spectrum."


def _real(value: Any, name: str) -> float:
    if type(value) is float:  # most are
        return value
    if not isinstance(value, str | bytes | bool | np.bool_):
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    raise InvalidOptionTypeError(f"`{name}` is {value!r} ({type(value).__name__})", "a real number")
