"""Kernels over the bulk: least-squares variance and largest gap between two distributions."""

import math
from typing import Any

from rmtspec._checks import Float64Array
from rmtspec._kernels._decorator import kernel


@kernel
def scale_through_origin(quantiles: Float64Array, eigenvalues: Float64Array) -> Any:
    """Return the slope of the least-squares line through the origin, sum(q l) / sum(q q)."""
    cross = 0.0
    square = 0.0
    for q, value in zip(quantiles, eigenvalues):  # noqa: B905  (numba has no strict=)
        cross += q * value
        square += q * q
    return cross / square


@kernel
def largest_gap(cdf: Float64Array, first: int, size: int) -> Any:
    """Return max |(k - 1/2) / size - cdf[k - first]| over k = first, first + 1, ..."""
    gap = 0.0
    for i in range(len(cdf)):
        gap = max(gap, math.fabs((first + i - 0.5) / size - cdf[i]))
    return gap
