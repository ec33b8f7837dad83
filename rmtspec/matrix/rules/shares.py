"""Shares: how many singular values hold a share of the squares, or make up a share of all."""

import math

import numpy as np

from rmtspec.matrix.spectrum import Spectrum

_EPS = float(np.finfo(np.float64).eps)


def energy_rank(spec: Spectrum, share: float) -> int:
    """Return the fewest largest singular values that hold `share` of the sum of squares."""
    largest = float(spec.eigenvalues[-1])
    if largest == 0.0:
        return 0
    sums = np.cumsum(spec.eigenvalues[::-1] / largest)
    # Rounding in the sums must not cost one more of equal values, nor count rounded zeros.
    enough = (share - 4.0 * spec.p * _EPS) * sums[-1]
    return int(np.searchsorted(sums, enough)) + 1


def part_of(number: int, share: float) -> int:
    """Return the whole part of a share of a count, taking 0.29 * 100 as 29."""
    return math.floor(share * number + 1e-9)
