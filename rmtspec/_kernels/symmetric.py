"""Kernels for the eigenvalues of many small symmetric matrices.

A matrix is made tridiagonal by itself; the iterations on the tridiagonal matrices of several are
done side by side, one in each lane of the processor's vectors, because a step of one waits for the
division of the step before.
"""

import math
from typing import Any

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec._kernels._decorator import kernel, reordering_kernel

#: Sweeps for one eigenvalue before it is given up; two are usual.
_MOST_SWEEPS = 60
_EPS = 2.0**-53
#: Sums of squares of entries below this, where the largest is about 1, are 0.
_NEGLIGIBLE = 1e-280


@kernel
def _in_units(matrix: Float64Array) -> Any:
    """Divide the lower triangle by a power of two near its largest entry, and return that."""
    p = matrix.shape[0]
    largest = 0.0
    for i in range(p):
        for j in range(i + 1):
            largest = max(largest, abs(matrix[i, j]))
    if not 0.0 < largest < np.inf:
        return 1.0
    unit = math.ldexp(1.0, min(1000, max(-1000, math.frexp(largest)[1])))  # its inverse is a float
    inverse = 1.0 / unit
    for i in range(p):
        for j in range(i + 1):
            matrix[i, j] *= inverse
    return unit


@reordering_kernel
def tridiagonals(
    matrices: Float64Array, diagonals: Float64Array, squares: Float64Array, units: Float64Array
) -> None:
    """Make symmetric matrices (count, p, p) tridiagonal by Householder's reflections.

    Only their lower triangles are read, and overwritten. `diagonals` (p, lanes) get the diagonals,
    in units of `units` (count,), powers of two, and `squares` the squares of the entries between i
    and i + 1, in the last row 0; the lanes that are over get the last matrix again. A matrix is
    reduced from its last row on: each pass over the triangle takes away the last reflection,
    ``A - v w^T - w v^T``, and multiplies by the next, so that it is read once.
    """
    count, p, _ = matrices.shape
    work = np.empty((4, p))
    v, w, x, y = work[0], work[1], work[2], work[3]
    for lane in range(count):
        matrix = matrices[lane]
        units[lane] = _in_units(matrix)
        v[:] = 0.0
        w[:] = 0.0
        for k in range(p - 1, 0, -1):
            row, of_v, of_w = matrix[k], v[k], w[k]
            for j in range(k + 1):
                row[j] -= of_v * w[j] + of_w * v[j]
            diagonals[k, lane] = row[k]
            rest = 0.0
            for j in range(k - 1):
                rest += row[j] * row[j]
            first = row[k - 1]
            tau, inverse, beside = 0.0, 0.0, first
            if rest > _NEGLIGIBLE:
                norm = math.sqrt(first * first + rest)
                beside = -norm if first > 0.0 else norm
                tau = (beside - first) / beside
                inverse = 1.0 / (first - beside)
            squares[k - 1, lane] = beside * beside
            for j in range(k - 1):
                x[j] = row[j] * inverse
            x[k - 1] = 1.0
            y[:k] = 0.0
            for i in range(0, k - 1, 2):
                _two_rows(matrix, work, i)
            if k % 2 == 1:
                _last_row(matrix, work, k - 1)
            half = 0.0
            for j in range(k):
                y[j] *= tau
                half += y[j] * x[j]
            half *= 0.5 * tau
            for j in range(k):
                v[j] = x[j]
                w[j] = y[j] - half * x[j]
        diagonals[0, lane] = matrix[0, 0] - 2.0 * v[0] * w[0]
        squares[p - 1, lane] = 0.0
    for lane in range(count, diagonals.shape[1]):
        for i in range(p):
            diagonals[i, lane] = diagonals[i, count - 1]
            squares[i, lane] = squares[i, count - 1]


@reordering_kernel
def _two_rows(matrix: Float64Array, work: Float64Array, i: int) -> None:
    """Take the last reflection from rows i and i + 1, and add their products with x to y."""
    v, w, x, y = work[0], work[1], work[2], work[3]
    upper, lower = matrix[i], matrix[i + 1]
    v0, v1, w0, w1, x0, x1 = v[i], v[i + 1], w[i], w[i + 1], x[i], x[i + 1]
    of_upper = of_lower = 0.0
    for j in range(i):
        a = upper[j] - (v0 * w[j] + w0 * v[j])
        b = lower[j] - (v1 * w[j] + w1 * v[j])
        upper[j] = a
        lower[j] = b
        y[j] += a * x0 + b * x1
        of_upper += a * x[j]
        of_lower += b * x[j]
    a = upper[i] - 2.0 * v0 * w0
    b = lower[i] - (v1 * w0 + w1 * v0)
    c = lower[i + 1] - 2.0 * v1 * w1
    upper[i], lower[i], lower[i + 1] = a, b, c
    y[i] += of_upper + a * x0 + b * x1
    y[i + 1] += of_lower + b * x0 + c * x1


@reordering_kernel
def _last_row(matrix: Float64Array, work: Float64Array, i: int) -> None:
    """Do with row i what `_two_rows` does with two."""
    v, w, x, y = work[0], work[1], work[2], work[3]
    row, v0, w0, x0 = matrix[i], v[i], w[i], x[i]
    of_row = 0.0
    for j in range(i):
        a = row[j] - (v0 * w[j] + w0 * v[j])
        row[j] = a
        y[j] += a * x0
        of_row += a * x[j]
    row[i] -= 2.0 * v0 * w0
    y[i] += of_row + row[i] * x0


@kernel
def eigenvalues_side_by_side(d: Float64Array, e: Float64Array, state: Float64Array) -> Any:
    """Replace the diagonals `d` (p, lanes) of tridiagonal matrices by their eigenvalues, unsorted.

    `e` holds the squares of the entries beside the diagonals, the last row 0; `state` has shape
    (7, lanes). Entries are about 1 or less. This is the root-free QL iteration of Pal, Walker and
    Kahan (LAPACK's dsterf), without division into blocks: a lane whose value has converged is left
    alone until all have, so that its result does not depend on the others. Return False if an
    eigenvalue did not converge.
    """
    p, lanes = d.shape
    c, s, square, gamma, shift, live, floor = (
        state[0], state[1], state[2], state[3], state[4], state[5], state[6],
    )  # fmt: skip
    for lane in range(lanes):
        top = 0.0
        for i in range(p):
            top = max(top, abs(d[i, lane]), math.sqrt(e[i, lane]))
        floor[lane] = (0.25 * _EPS * top) ** 2
    for first in range(p - 1):
        top_d, next_d, top_e = d[first], d[first + 1], e[first]
        for sweep in range(_MOST_SWEEPS + 1):
            some = 0.0
            for lane in range(lanes):
                least = 4.0 * _EPS * _EPS * abs(top_d[lane] * next_d[lane]) + floor[lane]
                live[lane] = 1.0 if top_e[lane] > least else 0.0
                some += live[lane]
            if some == 0.0:
                break
            if sweep == _MOST_SWEEPS:
                return False
            for lane in range(lanes):  # Wilkinson's shift
                root = math.sqrt(top_e[lane])
                half = (next_d[lane] - top_d[lane]) / (2.0 * root if root > 0.0 else 1.0)
                far = math.sqrt(half * half + 1.0)
                value = top_d[lane] - root / (half + (far if half >= 0.0 else -far))
                shift[lane] = value if live[lane] > 0.0 else top_d[lane]
                gamma[lane] = d[p - 1, lane] - shift[lane]
                square[lane] = gamma[lane] * gamma[lane]
                c[lane], s[lane] = 1.0, 0.0
            for i in range(p - 2, first - 1, -1):
                own_e, below_e, own_d, below_d = e[i], e[i + 1], d[i], d[i + 1]
                for lane in range(lanes):
                    on = live[lane] > 0.0
                    between, before, last_c = own_e[lane], gamma[lane], c[lane]
                    r = square[lane] + between
                    below_e[lane] = s[lane] * r if on else below_e[lane]
                    inverse = 1.0 / (r if r > 0.0 else 1.0)
                    now_c = square[lane] * inverse if r > 0.0 else 1.0
                    now_s = between * inverse
                    now = now_c * (own_d[lane] - shift[lane]) - now_s * before
                    below_d[lane] = before + (own_d[lane] - now) if on else below_d[lane]
                    divided = now * now / (now_c if now_c != 0.0 else 1.0)
                    square[lane] = divided if now_c != 0.0 else last_c * between
                    gamma[lane], c[lane], s[lane] = now, now_c, now_s
            for lane in range(lanes):
                on = live[lane] > 0.0
                top_e[lane] = s[lane] * square[lane] if on else top_e[lane]
                top_d[lane] = shift[lane] + gamma[lane] if on else top_d[lane]
    return True
