"""The entries of a matrix as the noise models read them: longer side first, in blocks, scaled."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec.matrix.eigenvalues import blocks, entries_per_side


class Scales(NamedTuple):
    """Standard deviations of rows (n,) and columns (p,): entry i, j has rows[i] * columns[j]."""

    rows: Float64Array
    columns: Float64Array


class Entries:
    """A matrix without its zero rows and columns, the longer side first.

    Attributes
    ----------
    shape : tuple of int
        (rows, columns) of the matrix as given.
    dtype : dtype
        As given.
    n, p : int
        Larger and smaller side without zero rows and columns; 0 for a matrix of zeros.
    wide : bool
        Whether the rows here are the columns of the matrix as given.
    rows, columns : ndarray of bool
        Which of the longer side, and of the shorter, are not zero.
    typical : float
        Median number of entries that are not zero in a row or in a column, the smaller.
    largest : float
        The largest absolute value.
    energy : float
        The sum of squares, in units of ``largest**2``.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self.shape: tuple[int, int] = (array.shape[0], array.shape[1])
        self.dtype = array.dtype
        self.wide = array.shape[0] < array.shape[1]
        tall = array.T if self.wide else array
        counts = entries_per_side(tall, self.wide)
        if np.count_nonzero(counts[0]) < np.count_nonzero(counts[1]):
            # Without its zero rows the longer side is the shorter one.
            tall, counts, self.wide = tall.T, counts[::-1], not self.wide
        self.rows, self.columns = counts[0] > 0, counts[1] > 0
        self.n, self.p = int(np.count_nonzero(self.rows)), int(np.count_nonzero(self.columns))
        self.typical = min(_median(count[count > 0]) if self.p else 0.0 for count in counts)
        self._tall = tall if self.rows.all() else tall[self.rows]
        self.largest = max((float(np.abs(block).max()) for _, block in self.blocks()), default=0.0)
        self.energy = 0.0
        for _, block in self.blocks():
            block = block / self.largest
            self.energy += float(np.vdot(block, block))

    def blocks(self, scales: Scales | None = None) -> Iterator[tuple[int, Float64Array]]:
        """Yield (first row, rows in C order), one block at a time, divided by `scales` if given."""
        whole = bool(self.columns.all())
        for start, block in blocks(self._tall):
            part = np.ascontiguousarray(block if whole else block[:, self.columns])
            del block  # before a copy of it is made
            if scales is not None:
                part = part * (1.0 / scales.rows[start : start + len(part), None])
                part *= 1.0 / scales.columns
            yield start, part
            del part

    def placed(self, values: Float64Array, *, longer: bool) -> Float64Array:
        """Return values of the live rows (or columns) in the places of all, 0 elsewhere."""
        live = self.rows if longer else self.columns
        out = np.zeros(live.size)
        out[live] = values
        return out


def _median(counts: NDArray[Any]) -> float:
    """Return the median of counts, which are all the same in a matrix without zeros."""
    first = counts[0]
    return float(first if (counts == first).all() else np.median(counts))
