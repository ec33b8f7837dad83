"""Results rounded to the dtype in which they are kept, which may have no room for them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec.errors import InvalidValueError
from rmtspec.terms import Why


def in_dtype(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Return finite values rounded to a dtype.

    A product of low rank may have larger entries than the matrix that it approximates. Beyond the
    largest number of the dtype (65504 in float16) they would become infinite, or nan in float8.

    Raises
    ------
    InvalidValueError
        The dtype has no room for an entry; the message is `Why.OVERFLOWS`.

    Examples
    --------
    >>> import numpy as np
    >>> from rmtspec.matrix.in_dtype import in_dtype
    >>> in_dtype(np.array([65504.0]), np.float16).item()
    65504.0
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(dtype)
    if not np.isfinite(rounded).all() and np.isfinite(values).all():
        raise overflow(dtype)
    return rounded


def overflow(dtype: Any) -> InvalidValueError:
    """Return the error for entries that a dtype has no room for."""
    return InvalidValueError(Why.OVERFLOWS.words(dtype=np.dtype(dtype).name))


def check_product(outer: NDArray[Any], inner: NDArray[Any], rows: int = 1024) -> None:
    """Raise if the product of two factors has an entry that their dtype has no room for."""
    largest = _checks.largest(outer.dtype)
    left = np.linalg.norm(outer.astype(np.float64), axis=1).max(initial=0.0)
    right = np.linalg.norm(inner.astype(np.float64), axis=0).max(initial=0.0)
    if left * right < largest:  # no entry exceeds that
        return
    wide = inner.astype(np.float64)
    for start in range(0, len(outer), rows):
        product = outer[start : start + rows].astype(np.float64) @ wide
        if np.abs(product).max(initial=0.0) > largest:
            raise overflow(outer.dtype)
