"""Equalizing a noise matrix: the scales after which all rows and columns have unit mean square.

Sinkhorn's theorem gives, for a matrix E whose zeros are not too many, positive x and y, unique up
to a common factor, such that E_ij^2 / (x_i y_j) has unit row and column means. The limit law of the
spectrum needs no more than that of the variances (Landa, Zhang and Kluger, 2022).
"""

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec._kernels.equalize import sweep
from rmtspec.matrix.entries import Entries, Scales

_SWEEPS = 200
_TOLERANCE = 1e-10
#: Rows or columns explained almost wholly by components get at least this share of the variance
#: that they had in the first round, relative to the others.
_GUARD = 0.2


def sinkhorn(entries: Float64Array) -> Scales:
    """Return the scales that equalize `entries`, (n, p) in C order.

    At most 200 sweeps: a matrix with too many zeros has no such scales, and sparse ones take long.
    """
    n, p = entries.shape
    x, y, inverse = np.ones(n), np.empty(p), np.ones(p)
    for _ in range(_SWEEPS):
        if sweep(entries, inverse, x, y) < _TOLERANCE:
            break
    return even(Scales(np.sqrt(x), np.sqrt(y)))


def even(scales: Scales) -> Scales:
    """Return the same scales with equal geometric means of rows and columns."""
    shift = np.exp((np.log(scales.rows).mean() - np.log(scales.columns).mean()) / 2.0)
    return Scales(scales.rows / shift, scales.columns * shift)


def guarded(scales: Scales, first: Scales) -> Scales:
    """Return `scales`, none of which fell far below `first` by comparison with the others."""
    rows, columns = (
        start * np.maximum(now / start, np.sqrt(_GUARD) * np.median(now / start))
        for now, start in zip(scales, first, strict=True)
    )
    return Scales(rows, columns)


def starting_scales(entries: Entries) -> Scales:
    """Return scales that bring the largest entry of every row and column near 1.

    Their squares then stay in the range of float64, whatever that of the entries.
    """
    rows, columns = np.empty(entries.n), np.zeros(entries.p)
    for start, block in entries.blocks():
        here = slice(start, start + len(block))
        rows[here] = np.maximum(block.max(axis=1), -block.min(axis=1))
        block = np.abs(block / rows[here, None])
        np.maximum(columns, block.max(axis=0), out=columns)
    return Scales(rows, columns)
