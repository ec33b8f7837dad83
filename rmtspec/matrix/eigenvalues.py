"""Eigenvalues of a matrix read in blocks: from its Gram matrix, or by QR and SVD."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidValueError
from rmtspec.terms import Why

Eigensolver = Callable[[Float64Array], ArrayLike]
Matrix = NDArray[Any]

#: Bytes of one float64 block.
_BLOCK_BYTES = 2**24
#: Ratio of largest eigenvalue to bulk beyond which the Gram route is abandoned, per precision.
_RANGE = {"float64": 1e10, "float32": 1e3}
#: Outside this range, sums of squared entries overflow or underflow float64.
_LARGEST, _SMALLEST = 1e145, 1e-145


class Eigenvalues(NamedTuple):
    """Eigenvalues s^2 / n, ascending, and how they were computed."""

    values: Float64Array
    n: int
    method: str
    eps: float
    dropped_rows: int = 0
    dropped_columns: int = 0


def matrix_eigenvalues(
    array: Matrix, method: str, precision: str, eigensolver: Eigensolver | None
) -> Eigenvalues:
    """Return the eigenvalues of `array`; `rmtspec.spectrum` describes the parameters."""
    wide = array.shape[0] < array.shape[1]
    tall = array.T if wide else array  # the longer side first; a view
    gram, row_is_zero = _gram(tall, wide, eigensolver)
    column_is_zero = np.diagonal(gram) == 0.0
    n = int(np.count_nonzero(~row_is_zero))
    p = int(np.count_nonzero(~column_is_zero))
    if n == 0 or p == 0:
        longer, shorter = tall.shape
        return Eigenvalues(np.zeros(shorter), longer, "gram", 0.0)
    dropped = (tall.shape[0] - n, tall.shape[1] - p)
    rows, columns = dropped[::-1] if wide else dropped
    if dropped != (0, 0):
        if n < p:  # without its zero rows the longer side is the shorter one
            kept = tall[~row_is_zero][:, ~column_is_zero]
            eigenvalues = matrix_eigenvalues(kept, method, precision, eigensolver)
            return eigenvalues._replace(dropped_rows=rows, dropped_columns=columns)
        gram = np.asfortranarray(gram[np.ix_(~column_is_zero, ~column_is_zero)])
        tall = tall[:, ~column_is_zero] if dropped[1] else tall
    values, route, eps = _solve(tall, gram, method, precision, eigensolver=eigensolver)
    return Eigenvalues(values / n, n, route, eps, dropped_rows=rows, dropped_columns=columns)


def gram_matrix(array: Matrix) -> tuple[Float64Array, bool]:
    """Return the smaller Gram matrix of `array`, upper triangle, and whether rows < columns."""
    wide = array.shape[0] < array.shape[1]
    return _gram(array.T if wide else array, wide)[0], wide


def blocks(tall: Matrix) -> Iterator[tuple[int, Float64Array]]:
    """Yield (first row, rows as contiguous float64), one block in memory at a time."""
    step = _block_rows(tall)
    for start in range(0, tall.shape[0], step):
        block = np.array(tall[start : start + step], dtype=np.float64, order="K", copy=None)
        if not (block.flags.c_contiguous or block.flags.f_contiguous):
            block = np.ascontiguousarray(block)
        yield start, block
        del block  # before the next one is made


def _block_rows(tall: Matrix) -> int:
    return max(1, _BLOCK_BYTES // (8 * max(int(tall.shape[1]), 1)))


def _gram(
    tall: Matrix, wide: bool, eigensolver: Eigensolver | None = None
) -> tuple[Float64Array, NDArray[np.bool_]]:
    """Return the upper triangle of ``tall.T @ tall`` (Fortran order) and which rows are zero.

    An eigensolver with a method `gram` computes the product itself, on its own device.
    """
    from scipy.linalg.blas import dsyrk

    if tall.dtype.itemsize >= 8:
        _check_range(tall, wide)
    n, p = tall.shape
    elsewhere = getattr(eigensolver, "gram", None)
    gram = np.zeros((p, p) if elsewhere is None else (1, 1), order="F")
    row_is_zero = np.empty(n, dtype=np.bool_)
    for start, block in blocks(tall):
        squares = np.einsum("ij,ij->i", block, block)
        if not np.isfinite(squares).all():
            _raise_not_finite(tall, wide)
        row_is_zero[start : start + len(squares)] = squares == 0.0
        if elsewhere is not None:
            continue
        if block.flags.f_contiguous:
            gram = dsyrk(1.0, block, beta=1.0, c=gram, trans=1, overwrite_c=1)
        else:
            gram = dsyrk(1.0, block.T, beta=1.0, c=gram, trans=0, overwrite_c=1)
        del block  # before the next one is made
    if elsewhere is not None:
        gram = np.asfortranarray(elsewhere(tall), dtype=np.float64)
        if gram.shape != (p, p):
            raise InvalidValueError(
                f"`eigensolver.gram` returned shape {gram.shape}; expected ({p}, {p}), the product "
                "of the transpose of the array it was given with that array."
            )
    return gram, row_is_zero


def _solve(
    tall: Matrix, gram: Float64Array, method: str, precision: str, *, eigensolver: Any
) -> tuple[Float64Array, str, float]:
    """Return s^2 ascending, the route taken, and its machine epsilon."""
    from scipy.linalg import eigvalsh

    if method != "svd":
        if precision == "float32" and eigensolver is None:
            single = np.asarray(eigvalsh(gram.astype(np.float32), lower=False, check_finite=False))
            values = np.maximum(single.astype(np.float64), 0.0)
            if _bulk_is_safe(values, _RANGE["float32"]):
                return values, "gram32", float(np.finfo(np.float32).eps)
        if eigensolver is None:
            values = eigvalsh(gram, lower=False, overwrite_a=True, check_finite=False, driver="evd")
        else:
            values = _call(eigensolver, gram)
        values = np.maximum(values, 0.0)
        if method == "gram" or _bulk_is_safe(values, _RANGE["float64"]):
            return values, "gram", float(np.finfo(np.float64).eps)
    return _svd_squares(tall), "svd", float(np.finfo(np.float64).eps)


def _bulk_is_safe(values: Float64Array, span: float) -> bool:
    """Tell whether the lower quarter of the spectrum exceeds the rounding of the Gram matrix."""
    return bool(values[-1] <= span * values[len(values) // 4])


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


def _check_range(tall: Matrix, wide: bool) -> None:
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
