"""Eigenvalues of many small matrices of one shape in one call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.matrix.eigenvalues import Eigenvalues, EntryMoments, bulk_is_safe

#: Largest sides, shorter and longer, of a matrix for which calls cost as much as the numbers.
_SHORTER, _LONGER = 128, 1024
#: Entries whose fourth powers, and sums of these, stay within the range of float64.
_LARGEST, _SMALLEST = 1e70, 1e-70


def is_small(shape: tuple[int, ...]) -> bool:
    """Tell whether a matrix of this shape is one for `stacked_eigenvalues`."""
    return len(shape) == 2 and 0 < min(shape) <= _SHORTER and max(shape) <= _LONGER


def stacked_eigenvalues(matrices: Sequence[NDArray[Any]]) -> list[Eigenvalues | None]:
    """Return the eigenvalues of small matrices of one shape, each as if it were alone.

    Parameters
    ----------
    matrices : sequence of ndarray of shape (rows, columns)
        Real, of any floating dtype.

    Returns
    -------
    list of Eigenvalues or None
        None for a matrix that needs more than its Gram matrix, or a message: with nan, zero rows or
        columns, a few eigenvalues that dwarf the others, or entries outside 1e-70 to 1e70.
    """
    rows, columns = matrices[0].shape
    tall = np.empty((len(matrices), max(rows, columns), min(rows, columns)))
    with np.errstate(invalid="ignore"):  # of a signalling nan, which is still a nan afterwards
        for place, matrix in zip(tall, matrices, strict=True):
            place[...] = matrix.T if rows < columns else matrix
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.square(tall)
        largest = squares.max((1, 2))  # nan if there is one
        usual = (largest > _SMALLEST**2) & (largest < _LARGEST**2)
        if not usual.all():
            tall[~usual] = squares[~usual] = 0.0
        row_squares, column_squares = squares.sum(2), squares.sum(1)
        fourths = np.einsum("kij,kij->k", squares, squares)
    usual &= row_squares.all(1) & column_squares.all(1)
    values = np.linalg.eigvalsh(np.matmul(tall.transpose(0, 2, 1), tall))
    return [
        _eigenvalues(np.maximum(values[i], 0.0), row_squares[i], column_squares[i], fourths[i])
        if usual[i] else None
        for i in range(len(matrices))
    ]  # fmt: skip


def _eigenvalues(
    values: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64],
    fourths: float,
) -> Eigenvalues | None:  # fmt: skip
    """Return eigenvalues from s^2, and moments from sums of squares and of fourth powers."""
    if not bulk_is_safe(values):
        return None
    n, p = rows.size, columns.size
    total = float(rows.sum())
    moments = EntryMoments(
        float(rows @ rows) * n / total**2 - 1.0,
        float(columns @ columns) * p / total**2 - 1.0,
        float(fourths) * n * p / total**2,
    )
    return Eigenvalues(values / n, n, "gram", float(np.finfo(np.float64).eps), moments=moments)
