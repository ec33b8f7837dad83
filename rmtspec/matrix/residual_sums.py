"""What k components leave of a matrix, equalized or not: the sums that its noise is judged by.

The matrix is read in blocks of rows, twice: for the smaller Gram matrix, and for the residual.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.eigenvalues import blocks, gram_matrix

#: Ratio of the largest eigenvalue to the mean of the bulk beyond which the Gram matrix has lost it.
_RANGE = 1e10
#: The matrix is read in so many blocks, of which a few are in memory at a time, or in fewer of so
#: many entries, below which calls cost more than the numbers.
_PIECES, _ENTRIES = 16, 2**16


class Residual(NamedTuple):
    """Sums over what k components leave of the equalized matrix, and over its scales."""

    n_rows: int
    n_columns: int
    squares: Float64Array  # s^2 of the components, descending
    energy: float  # sum of E^2
    kurtosis: float  # of the noise, from the fourth powers of E
    weighted: float  # sum of x y E^2 over sum of x y (1 - h)(1 - g)
    mean_weight: float  # mean of x y
    dispersion: float  # sqrt(mean(x^2 y^2)) / mean(x y)
    above_rounding: bool


def residual_sums(
    array: NDArray[Any], k: int, rows: Float64Array | None, columns: Float64Array | None
) -> Residual:
    """Return the sums for k components, with scales of rows and of columns or without."""
    wide = array.shape[0] < array.shape[1]
    tall = array.T if wide else array
    along, across = (columns, rows) if wide else (rows, columns)
    squares, vectors, diagonal = _leading(array, tall, k, along=along, across=across)
    weight_along, weight_across = _weights(along, tall.shape[0]), _weights(across, tall.shape[1])
    leverage = np.einsum("ij,ij->i", vectors, vectors)
    safe = np.where(squares > 0.0, squares, 1.0)
    total = float(diagonal.sum())
    unit = (
        total / array.size or 1.0
    )  # fourth powers in units of its square neither over- nor underflow
    energy = fourth = weighted = freedom = 0.0
    powers = np.zeros(3)  # sums of r, r^2 and r^4 over rows, then over the matrix
    row_kept = np.empty(tall.shape[0], dtype=np.bool_)
    for start, block in _equalized(tall, along, across):
        stop = start + len(block)
        row_kept[start:stop] = block.any(axis=1)
        scores = block @ vectors
        rest = block - scores @ vectors.T
        np.square(rest, out=rest)
        energy += float(rest.sum())
        weight = weight_along[start:stop]
        weighted += float(weight @ (rest @ weight_across))
        rest /= unit
        fourth += float(np.vdot(rest, rest))
        free = np.maximum(row_kept[start:stop] - np.square(scores) @ (1.0 / safe), 0.0)
        freedom += float(weight @ free)
        powers += [float(np.sum(free**power)) for power in (1, 2, 4)]
        del block, rest  # before the next one is made
    column_kept = diagonal > 0.0
    free = np.maximum(column_kept - leverage, 0.0)
    freedom *= float(weight_across @ free)
    powers *= [float(np.sum(free**power)) for power in (1, 2, 4)]
    rounding = max(tall.shape) * np.finfo(np.float64).eps
    x, y = weight_along[row_kept], weight_across[column_kept]
    some = bool(x.size and y.size)
    means = (float(x.mean()), float(y.mean())) if some else (math.nan, math.nan)
    # In units of the means: their squares may leave the range of float64.
    spread = np.mean(np.square(x / means[0])) * np.mean(np.square(y / means[1])) if some else 0.0
    above_rounding = energy > rounding**2 * total and freedom > 0.0
    return Residual(
        n_rows=len(x), n_columns=len(y), squares=squares, energy=energy,
        kurtosis=_kurtosis(energy / unit, fourth, powers) if above_rounding else math.nan,
        weighted=weighted / freedom if above_rounding else math.nan,
        mean_weight=means[0] * means[1], dispersion=math.sqrt(spread) if some else math.nan,
        above_rounding=above_rounding,
    )  # fmt: skip


def _kurtosis(energy: float, fourth: float, powers: Float64Array) -> float:
    """Return the kurtosis of noise whose residual has these sums of squares and fourth powers.

    The fourth cumulant of a residual entry is r^4 that of the noise, up to terms of order 1 / n p.
    """
    square = (energy / powers[0]) ** 2
    return float(3.0 + (fourth - 3.0 * square * powers[1]) / (square * powers[2]))


def _leading(
    array: NDArray[Any],
    tall: NDArray[Any],
    k: int,
    *,
    along: Float64Array | None,
    across: Float64Array | None,
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return the k leading s^2, their vectors on the shorter side, and the squares of columns."""
    from scipy.linalg import eigh, svd

    gram = gram_matrix(array)[0] if along is None and across is None else None
    if gram is None:
        gram = _scaled_gram(tall, along, across)
        if not 0.0 < float(np.trace(gram)) < math.inf:
            gram_matrix(array)  # says what is wrong with the matrix; else it is the scales
            if not math.isfinite(float(np.trace(gram))):
                raise InvalidValueError(
                    "The equalized matrix overflows; expected scales in the units of `W`, which "
                    "leave entries near 1."
                )
    diagonal = np.diagonal(gram).copy()
    p = len(diagonal)
    if k == 0:
        return np.empty(0), np.empty((p, 0)), diagonal
    values, vectors = eigh(
        gram, lower=False, overwrite_a=True, check_finite=False, subset_by_index=(p - k, p - 1)
    )
    del gram
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    bulk = max(float(diagonal.sum() - values.sum()), 0.0) / max(p - k, 1)
    if values[0] > _RANGE * bulk:
        parts = [block for _, block in _equalized(tall, along, across)]
        _, singular, right = svd(np.vstack(parts), full_matrices=False, check_finite=False)
        values, vectors = np.square(singular[:k]), right[:k].T
    return values, np.ascontiguousarray(vectors), diagonal


def _scaled_gram(
    tall: NDArray[Any], along: Float64Array | None, across: Float64Array | None
) -> Float64Array:
    """Return the upper triangle of the Gram matrix of the equalized matrix."""
    from scipy.linalg.blas import dsyrk

    gram = np.zeros((tall.shape[1], tall.shape[1]), order="F")
    for _, block in _equalized(tall, along, across):
        turned = not block.flags.f_contiguous
        gram = dsyrk(
            1.0, block.T if turned else block, beta=1.0, c=gram, trans=not turned, overwrite_c=1
        )
        del block  # before the next one is made
    return gram


def _equalized(
    tall: NDArray[Any], along: Float64Array | None, across: Float64Array | None
) -> Iterator[tuple[int, Float64Array]]:
    """Yield (first row, rows of the equalized matrix), one block in memory at a time."""
    inverse = None if across is None else _inverse(across)
    step = max(-(-len(tall) // _PIECES), _ENTRIES // max(tall.shape[1], 1))
    for first in range(0, len(tall), step):
        for start, block in blocks(tall[first : first + step]):
            scaled, start = block, first + start
            del block
            if along is not None:
                scaled = scaled * _inverse(along[start : start + len(scaled)])[:, None]
            if inverse is not None:
                scaled = scaled * inverse
            yield start, scaled
            del scaled  # before the next one is made


def _inverse(scales: Float64Array) -> Float64Array:
    """Return 1 / scales, 0 where a scale is 0."""
    return np.where(scales > 0.0, 1.0 / np.where(scales > 0.0, scales, 1.0), 0.0)


def _weights(scales: Float64Array | None, size: int) -> Float64Array:
    return np.ones(size) if scales is None else np.square(scales)
