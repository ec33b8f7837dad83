"""Kernels over the bulk: least-squares variance, largest gaps between distributions."""

import math
from typing import Any

import numpy as np

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


@kernel
def pool_distances(
    spectra: Float64Array, pool: Float64Array, first: int, levels: Float64Array, out: Float64Array
) -> None:
    """Write how far each spectrum is from the pool of the others, scaled to their mean.

    `spectra` (count, p) are ascending, and `pool` holds all their values, ascending. They are
    compared at the values from `first` on, at which the distribution function of a spectrum has the
    `levels`: the largest difference of these from the share of the others' values at or below a
    value, divided by its least-squares scale. It is 1 for a spectrum without a positive scale.
    """
    count, p = spectra.shape
    size = len(levels)
    total = np.zeros(size)
    for k in range(count):
        for j in range(size):
            total[j] += spectra[k, first + j]
    for k in range(count):
        own = spectra[k]
        cross = squares = 0.0
        for j in range(size):
            other = (total[j] - own[first + j]) / (count - 1)
            cross += other * own[first + j]
            squares += other * other
        out[k] = 1.0
        if cross > 0.0 and squares > 0.0:
            scale, gap, of_pool, of_own = cross / squares, 0.0, 0, 0
            for j in range(size):
                point = own[first + j] / scale
                while of_pool < len(pool) and pool[of_pool] <= point:
                    of_pool += 1
                while of_own < p and own[of_own] <= point:
                    of_own += 1
                gap = max(gap, abs((of_pool - of_own) / (len(pool) - p) - levels[j]))
            out[k] = gap
