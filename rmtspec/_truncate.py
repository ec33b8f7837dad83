"""Truncation: a matrix of lower rank in place of a matrix, in its shape and dtype."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec import _checks
from rmtspec._eigenvalues import blocks
from rmtspec._split import split


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
    moment = None if input_moment is None else np.asarray(input_moment, dtype=np.float64)
    kept = np.empty(array.shape, array.dtype)
    lost = whole = lost_output = whole_output = 0.0
    for start, block in blocks(array):
        here = slice(start, start + len(block))
        kept[here] = parts.outer[here] @ parts.inner
        gap = kept[here].astype(np.float64) - block
        lost += float(np.vdot(gap, gap))
        whole += float(np.vdot(block, block))
        if moment is not None:
            lost_output += max(0.0, float(np.vdot(gap @ moment, gap)))
            whole_output += max(0.0, float(np.vdot(block @ moment, block)))
    error = math.sqrt(lost / whole) if whole else 0.0
    if moment is None:
        return Truncation(kept, error, math.nan)
    return Truncation(kept, error, math.sqrt(lost_output / whole_output) if whole_output else 0.0)
