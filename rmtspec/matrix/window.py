"""The window of the bulk: which eigenvalues BEMA and the fit test use, and how well they fit.

Both use the ranks alpha m <= k <= (1 - alpha) m of the lowest m eigenvalues (the paper, sections
3.3 and 4.3).
"""

import math
from typing import NamedTuple

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec._kernels.bulk import largest_gap
from rmtspec.laws.marchenko_pastur import MarchenkoPastur


class Window(NamedTuple):
    """Ranks first to last (counted from 1, both included) of the lowest `size` eigenvalues."""

    first: int
    last: int
    size: int

    @property
    def n_ranks(self) -> int:
        """Number of eigenvalues in the window; 0 if it is empty."""
        return max(0, self.last - self.first + 1)

    def of(self, eigenvalues: Float64Array) -> Float64Array:
        """Return the eigenvalues (ascending) at the ranks of the window."""
        return eigenvalues[self.first - 1 : self.last]

    def levels(self, quantiles: str) -> Float64Array:
        """Return the probability paired with each rank: (k - 1/2) / size, or k / size ("paper")."""
        shift = 0.5 if quantiles == "midpoint" else 0.0
        return (np.arange(self.first, self.last + 1) - shift) / self.size


def bulk_window(size: int, alpha: float) -> Window:
    """Return the window of `size` eigenvalues that leaves out the share `alpha` at each end."""
    first = max(1, math.ceil(alpha * size - 1e-9))
    last = min(size, math.floor((1.0 - alpha) * size + 1e-9))
    return Window(first, last, size)


def statistic(eigenvalues: Float64Array, law: MarchenkoPastur, window: Window) -> float:
    """Return s = max |F_emp - F_law| over the window (the paper, 4.3), F_emp at midpoints."""
    return float(largest_gap(law.cdf(window.of(eigenvalues)), window.first, window.size))
