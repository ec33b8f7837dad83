"""Eigenvalues of a matrix read in blocks: from its Gram matrix, or by QR and SVD."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec._checks import Float64Array
from rmtspec._lapack import eigvalsh
from rmtspec.errors import InvalidValueError
from rmtspec.terms import Why

Eigensolver = Callable[[Float64Array], ArrayLike]
Matrix = NDArray[Any]

#: Bytes of one float64 block.
_BLOCK_BYTES = 2**24
#: Entries of a part of a block that stays in the cache.
_CACHED = 2**15
#: Ratio of largest eigenvalue to bulk beyond which the Gram route is abandoned, per precision.
_RANGE = {"float64": 1e10, "float32": 1e3}
#: Outside this range, sums of squared entries overflow or underflow float64.
_LARGEST, _SMALLEST = 1e145, 1e-145
#: The same for fourth powers.
_LARGEST_FOURTH, _SMALLEST_FOURTH = 1e70, 1e-70


class EntryMoments(NamedTuple):
    """What one pass over the entries, without zero rows and columns, tells of their variances.

    `row_dispersion` is the variance of the mean squares of rows (of the longer side) divided by the
    square of their mean, `column_dispersion` that of columns; `kurtosis` is the mean fourth power
    divided by the square of the mean square.
    """

    row_dispersion: float
    column_dispersion: float
    kurtosis: float


class Eigenvalues(NamedTuple):
    """Eigenvalues s^2 / n, ascending, and how they were computed."""

    values: Float64Array
    n: int
    method: str
    eps: float
    dropped_rows: int = 0
    dropped_columns: int = 0
    moments: EntryMoments | None = None


def matrix_eigenvalues(
    array: Matrix, method: str, precision: str, eigensolver: Eigensolver | None
) -> Eigenvalues:
    """Return the eigenvalues of `array`; `rmtspec.spectrum` describes the parameters."""
    wide = array.shape[0] < array.shape[1]
    tall = array.T if wide else array  # the longer side first; a view
    gram, row_squares, fourths = _gram(tall, wide, eigensolver)
    row_is_zero, column_is_zero = row_squares == 0.0, np.diagonal(gram) == 0.0
    if tall.dtype.itemsize >= 8 and (row_is_zero.any() or column_is_zero.any()):
        rows, columns = entries_per_side(tall, wide)  # squares of small entries are 0 too
        row_is_zero, column_is_zero = rows == 0, columns == 0
    n = int(np.count_nonzero(~row_is_zero))
    p = int(np.count_nonzero(~column_is_zero))
    if n == 0 or p == 0:
        longer, shorter = tall.shape
        return Eigenvalues(np.zeros(shorter), longer, "gram", 0.0)
    moments = _moments(row_squares[~row_is_zero], np.diagonal(gram)[~column_is_zero], fourths)
    dropped = (tall.shape[0] - n, tall.shape[1] - p)
    dropped_rows, dropped_columns = dropped[::-1] if wide else dropped
    if dropped != (0, 0):
        if n < p:  # without its zero rows the longer side is the shorter one
            kept = tall[~row_is_zero][:, ~column_is_zero]
            eigenvalues = matrix_eigenvalues(kept, method, precision, eigensolver)
            return eigenvalues._replace(dropped_rows=dropped_rows, dropped_columns=dropped_columns)
        gram = np.asfortranarray(gram[np.ix_(~column_is_zero, ~column_is_zero)])
        tall = tall[:, ~column_is_zero] if dropped[1] else tall
    values, route, eps = _solve(tall, gram, method, precision, eigensolver=eigensolver)
    return Eigenvalues(
        values / n, n, route, eps, dropped_rows=dropped_rows, dropped_columns=dropped_columns,
        moments=moments,
    )  # fmt: skip


def gram_matrix(array: Matrix) -> tuple[Float64Array, bool]:
    """Return the smaller Gram matrix of `array`, upper triangle, and whether rows < columns."""
    wide = array.shape[0] < array.shape[1]
    return _gram(array.T if wide else array, wide)[0], wide


def check_finite(array: Matrix) -> None:
    """Raise if an entry is nan or infinite, naming the first of them."""
    wide = array.shape[0] < array.shape[1]
    tall = array.T if wide else array
    if not all(np.isfinite(block).all() for _, block in blocks(tall)):
        _raise_not_finite(tall, wide)


def blocks(tall: Matrix) -> Iterator[tuple[int, Float64Array]]:
    """Yield (first row, rows as contiguous float64), one block in memory at a time."""
    step = _block_rows(tall)
    for start in range(0, tall.shape[0], step):
        with np.errstate(invalid="ignore"):  # of a signalling nan, which is still a nan afterwards
            block = np.array(tall[start : start + step], dtype=np.float64, order="K", copy=None)
        if not (block.flags.c_contiguous or block.flags.f_contiguous):
            block = np.ascontiguousarray(block)
        yield start, block
        del block  # before the next one is made


def entries_per_side(tall: Matrix, wide: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return how many entries of each row, and of each column, are not zero.

    Raise for nan and inf, and for entries whose squares leave the range of float64.
    """
    if tall.dtype.itemsize >= 8:
        check_range(tall, wide)
    rows = np.zeros(tall.shape[0], dtype=np.intp)
    columns = np.zeros(tall.shape[1], dtype=np.intp)
    for start, block in blocks(tall):
        if not np.isfinite(block).all():
            _raise_not_finite(tall, wide)
        there = block != 0.0
        rows[start : start + len(block)] = np.count_nonzero(there, axis=1)
        columns += np.count_nonzero(there, axis=0)
        del block  # before the next one is made
    return rows, columns


def _block_rows(tall: Matrix) -> int:
    return max(1, _BLOCK_BYTES // (8 * max(int(tall.shape[1]), 1)))


def _gram(
    tall: Matrix, wide: bool, eigensolver: Eigensolver | None = None
) -> tuple[Float64Array, Float64Array, tuple[float, float]]:
    """Return the upper triangle of ``tall.T @ tall`` (Fortran order), and sums of powers.

    They are the sum of squares of each row, and that of all (w / unit)^4 with the unit. An
    eigensolver with a method `gram` or `gram_with_sums` computes the product, or all of it, itself,
    on its own device.
    """
    from scipy.linalg.blas import dsyrk

    unit = 1.0
    if tall.dtype.itemsize >= 8:
        largest = check_range(tall, wide)
        unit = 1.0 if _SMALLEST_FOURTH < largest < _LARGEST_FOURTH else largest or 1.0
    n, p = tall.shape
    if (all_elsewhere := getattr(eigensolver, "gram_with_sums", None)) is not None:
        gram, row_squares, fourths = all_elsewhere(tall, unit)
        if not np.isfinite(row_squares).all():
            _raise_not_finite(tall, wide)
        return _as_gram(gram, p), row_squares, (float(fourths), unit)
    elsewhere = getattr(eigensolver, "gram", None)
    gram = np.zeros((p, p) if elsewhere is None else (1, 1), order="F")
    row_squares, fourths = np.empty(n), 0.0
    for start, block in blocks(tall):
        squares = np.einsum("ij,ij->i", block, block)
        if not np.isfinite(squares).all():
            _raise_not_finite(tall, wide)
        row_squares[start : start + len(squares)] = squares
        fourths += _fourths(block if unit == 1.0 else block / unit)
        if elsewhere is not None:
            continue
        if block.flags.f_contiguous:
            gram = dsyrk(1.0, block, beta=1.0, c=gram, trans=1, overwrite_c=1)
        else:
            gram = dsyrk(1.0, block.T, beta=1.0, c=gram, trans=0, overwrite_c=1)
        del block  # before the next one is made
    if elsewhere is not None:
        gram = _as_gram(elsewhere(tall), p)
    return gram, row_squares, (fourths, unit)


def _as_gram(returned: ArrayLike, p: int) -> Float64Array:
    """Return what an eigensolver's `gram` returned, in Fortran order; raise if it is no product."""
    gram = np.asfortranarray(returned, dtype=np.float64)
    if gram.shape != (p, p):
        raise InvalidValueError(
            f"`eigensolver.gram` returned shape {gram.shape}; expected ({p}, {p}), the product "
            "of the transpose of the array it was given with that array."
        )
    return gram


def _moments(
    row_squares: Float64Array, column_squares: Float64Array, fourths: tuple[float, float]
) -> EntryMoments:
    """Return the moments from sums of squares of rows and of columns, and of fourth powers."""
    total, unit = fourths
    rows, columns = row_squares / row_squares.mean(), column_squares / column_squares.mean()
    mean = float(row_squares.mean()) / column_squares.size / unit / unit
    kurtosis = total / mean / mean / (row_squares.size * column_squares.size)
    return EntryMoments(float(rows.var()), float(columns.var()), kurtosis)


def _fourths(block: Float64Array) -> float:
    """Return the sum of fourth powers of a block, a few rows (or columns) at a time."""
    lines = block if block.flags.c_contiguous else block.T
    step = max(1, _CACHED // max(lines.shape[1], 1))
    total = 0.0
    for start in range(0, len(lines), step):
        squares = np.square(lines[start : start + step])
        total += float(np.einsum("ij,ij->", squares, squares))
        del squares  # before the next ones are made
    return total


def _solve(
    tall: Matrix, gram: Float64Array, method: str, precision: str, *, eigensolver: Any
) -> tuple[Float64Array, str, float]:
    """Return s^2 ascending, the route taken, and its machine epsilon."""
    if method != "svd":
        if precision == "float32" and eigensolver is None:
            unit = _power_of_two(float(np.diagonal(gram).max()))  # float32 has room for few scales
            scaled = np.empty_like(gram, dtype=np.float32)
            np.divide(gram, unit, out=scaled, casting="same_kind")
            single = eigvalsh(scaled, overwrite=True)
            values = np.maximum(np.asarray(single, dtype=np.float64), 0.0) * unit
            if bulk_is_safe(values, "float32"):
                return values, "gram32", float(np.finfo(np.float32).eps)
        ours = eigensolver is None
        values = eigvalsh(gram, overwrite=True) if ours else _call(eigensolver, gram)
        values = np.maximum(values, 0.0)
        if method == "gram" or bulk_is_safe(values):
            return values, "gram", float(np.finfo(np.float64).eps)
    return _svd_squares(tall), "svd", float(np.finfo(np.float64).eps)


def _power_of_two(size: float) -> float:
    """Return the power of two below a size, division by which rounds nothing."""
    return math.ldexp(1.0, math.frexp(size)[1] - 1)


def bulk_is_safe(values: Float64Array, precision: str = "float64") -> bool:
    """Tell whether the lower quarter of the spectrum exceeds the rounding of the Gram matrix."""
    return bool(values[-1] <= _RANGE[precision] * values[len(values) // 4])


def _svd_squares(tall: Matrix) -> Float64Array:
    """Return s^2, ascending, without squaring the condition number: QR by row blocks, then SVD."""
    from scipy.linalg import qr, svdvals

    factor: Float64Array | None = None
    for _, block in blocks(tall):
        stacked = block if factor is None else np.vstack([factor, block])
        if stacked.shape[0] > stacked.shape[1]:
            ours = factor is not None  # the first block may be the caller's own memory
            triangle = qr(stacked, mode="r", overwrite_a=ours, check_finite=False)[0]
            factor = triangle[: stacked.shape[1]].copy()
        else:
            factor = stacked
    values: Float64Array = svdvals(factor, check_finite=False)
    return np.square(values[::-1])


def _call(eigensolver: Eigensolver, gram: Float64Array) -> Float64Array:
    if not hasattr(eigensolver, "gram"):  # what that returns has both triangles
        for column in range(gram.shape[1]):  # in Fortran order a column is contiguous
            gram[column + 1 :, column] = gram[column, column + 1 :]
    values = np.asarray(eigensolver(gram), dtype=np.float64)
    finite = np.isfinite(values).all()
    if values.shape != (gram.shape[0],) or not finite:
        raise InvalidValueError(
            f"`eigensolver` returned shape {values.shape}{'' if finite else ' with nan or inf'}; "
            f"expected the {gram.shape[0]} finite eigenvalues of the Gram matrix it was given."
        )
    return np.sort(values)


def check_range(tall: Matrix, wide: bool) -> float:
    """Return the largest absolute value; raise if squares leave the range of float64."""
    largest = 0.0
    for start in range(0, tall.shape[0], step := _block_rows(tall)):
        part = tall[start : start + step]
        largest = max(largest, float(part.max()), -float(part.min()))
        if not np.isfinite(largest):
            _raise_not_finite(tall, wide)
    if largest and not _SMALLEST < largest < _LARGEST:
        raise InvalidValueError(
            f"`W` has entries up to {largest:.3g}, whose squares leave the range of float64; "
            f"expected between {_SMALLEST:g} and {_LARGEST:g}. Divide `W` by {largest:.0e} first."
        )
    return largest


def _raise_not_finite(tall: Matrix, wide: bool) -> None:
    """Raise, naming the number of nan and infinite entries and the first positions."""
    nans = infinities = 0
    places: list[str] = []
    for start, block in blocks(tall):
        bad = ~np.isfinite(block)
        nans += int(np.isnan(block).sum())
        infinities += int(np.isinf(block).sum())
        for i, j in np.argwhere(bad)[: 3 - len(places)]:
            row, column = (j, i + start) if wide else (i + start, j)
            places.append(f"[{row}, {column}]")
    shown = ", ".join(places)
    raise InvalidValueError(Why.NOT_FINITE.words(nans=nans, infinities=infinities, places=shown))
