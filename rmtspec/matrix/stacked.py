"""Eigenvalues of many small matrices of one shape in one call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec._kernels.moments import sums_of_stack
from rmtspec.matrix.eigenvalues import Eigenvalues, EntryMoments, bulk_is_safe
from rmtspec.matrix.small_symmetric import stacked_eigvalsh

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
    row_squares, column_squares = np.empty(tall.shape[:2]), np.empty(tall.shape[::2])
    others = np.empty((len(tall), 2))
    sums_of_stack(tall, row_squares, column_squares, others)
    largest, fourths = others.T
    usual = (largest > _SMALLEST**2) & (largest < _LARGEST**2)  # not if one is nan
    usual &= row_squares.all(1) & column_squares.all(1)
    tall[~usual] = 0.0
    squares = np.maximum(stacked_eigvalsh(np.matmul(tall.transpose(0, 2, 1), tall)), 0.0)
    moments = _moments(row_squares, column_squares, fourths)
    n, eps = tall.shape[1], float(np.finfo(np.float64).eps)
    return [
        Eigenvalues(values / n, n, "gram", eps, moments=EntryMoments(*of_one))
        if is_usual and bulk_is_safe(values) else None
        for values, is_usual, of_one in zip(squares, usual.tolist(), moments, strict=True)
    ]  # fmt: skip


def _moments(rows: Float64Array, columns: Float64Array, fourths: Float64Array) -> list[list[float]]:
    """Return the numbers of `EntryMoments` of each matrix, from its sums."""
    (n, p), totals = (rows.shape[1], columns.shape[1]), rows.sum(1)
    with np.errstate(all="ignore"):  # of matrices that are computed alone
        of_rows = np.einsum("ki,ki->k", rows, rows) * n / totals**2 - 1.0
        of_columns = np.einsum("kj,kj->k", columns, columns) * p / totals**2 - 1.0
        kurtoses = fourths * n * p / totals**2
    each: list[list[float]] = np.stack([of_rows, of_columns, kurtoses], axis=1).tolist()
    return each
