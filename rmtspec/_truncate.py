"""Truncation: a matrix of lower rank in place of a matrix, in its shape and dtype."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec import _checks
from rmtspec._split import relative_errors, split

#: Rows of the product that are in memory in float64.
_ROWS = 1024


class Truncation(NamedTuple):
    """The approximation, and its relative errors as `SplitFactors` has them."""

    matrix: NDArray[Any]
    error: float
    output_error: float


def truncate(W: ArrayLike, rank: Any, *, input_moment: ArrayLike | None = None) -> Truncation:
    """Return the product of the factors that `split` gives, rounded once; errors are the result's.

    Parameters and errors are those of `split`.
    """
    array = _checks.matrix(W)
    parts = split(np.asarray(array, dtype=np.float64), rank, input_moment=input_moment)
    kept = np.empty(array.shape, array.dtype)
    for start in range(0, len(kept), _ROWS):
        here = slice(start, start + _ROWS)
        kept[here] = parts.outer[here] @ parts.inner
    errors = relative_errors(array, lambda a, b: kept[a:b].astype(np.float64), input_moment)
    return Truncation(kept, *errors)
