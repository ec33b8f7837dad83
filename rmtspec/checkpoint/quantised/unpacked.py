"""The codes of one quantised matrix with what they are worth: a table, scales, zero points."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Values = NDArray[np.float32]
_Groups = NDArray[np.intp]
#: Entries that are computed at a time.
_ENTRIES = 2**20


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A matrix whose entry is (value of its code - zero point of its group) x scale of its group.

    Attributes
    ----------
    codes : uint8 array of shape (rows, columns)
        Of the entries.
    table : float32 array
        The value of each code.
    scales : float32 array of shape (row groups, column groups)
        Of the groups of entries.
    row_groups, column_groups : int arrays of shape (rows,) and (columns,)
        The group that each row and each column is in.
    zeros : float32 array of the shape of `scales`, or None
        Zero points of the groups; None for 0.
    """

    codes: NDArray[np.uint8]
    table: _Values
    scales: _Values
    row_groups: _Groups
    column_groups: _Groups
    zeros: _Values | None = None

    def values(self) -> _Values:
        """Return the matrix in float32."""
        return self._by_rows(self.table, shifted=self.zeros is not None)

    def steps(self) -> _Values:
        """Return how far apart neighbouring values are at each entry, as `spacings` has it."""
        return np.abs(self._by_rows(spacings(self.table), shifted=False))

    def _by_rows(self, table: _Values, *, shifted: bool) -> _Values:
        """Return what the table gives each entry, less the zero point if shifted, scaled."""
        rows, columns = self.codes.shape
        found = np.empty((rows, columns), np.float32)
        count = max(1, _ENTRIES // max(1, columns))
        for start in range(0, rows, count):
            part = slice(start, start + count)
            np.take(table, self.codes[part], out=found[part], mode="clip")
            if shifted and self.zeros is not None:
                found[part] -= self._spread(self.zeros, part)
            found[part] *= self._spread(self.scales, part)
        return found

    def _spread(self, of_groups: _Values, part: slice) -> _Values:
        """Return what the groups have, for each entry of some rows; one column for all if equal."""
        rows = of_groups[self.row_groups[part]]
        return rows if of_groups.shape[1] == 1 else rows[:, self.column_groups]


def spacings(table: NDArray[Any]) -> _Values:
    """Return the step at the value of each code: the width of a uniform error that is as large.

    What is rounded to a value lies up to half of the way to the next ones. If a and b are the
    distances to these, its error has the mean square (a^3 + b^3) / (a + b) / 12, that of a step of
    sqrt((a^3 + b^3) / (a + b)): of a, if both are equal. At an end both are the one there is.
    """
    wide = np.asarray(table, np.float64)
    values = np.unique(wide[np.isfinite(wide)])
    if values.size < 2:
        return np.zeros(wide.shape, np.float32)
    gaps = np.diff(values)
    below, above = np.append(gaps[:1], gaps), np.append(gaps, gaps[-1:])
    steps = np.sqrt((below**3 + above**3) / (below + above))
    found: _Values = steps[np.searchsorted(values, wide).clip(max=values.size - 1)]
    return found.astype(np.float32)


def blocks(length: int, size: int) -> _Groups:
    """Return the group of each of so many rows or columns, in blocks of a size."""
    return np.arange(length) // min(size, max(1, length))
