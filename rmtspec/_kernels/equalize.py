"""Kernels over the entries of a noise matrix: Sinkhorn's sweep, and random sign flips."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec._kernels._decorator import kernel

_LEAST = 1e-300


@kernel
def sweep(entries: Float64Array, inverse: Float64Array, x: Float64Array, y: Float64Array) -> Any:
    """Do one sweep of Sinkhorn's iteration on the squares of `entries`, (n, p) in C order.

    `inverse` holds 1 / y, and is updated like `x` and `y`: x_i = mean_j e_ij^2 / y_j, then
    y_j = mean_i e_ij^2 / x_i. Return the largest relative change of x.
    """
    n, p = entries.shape
    change = 0.0
    y[:] = 0.0
    for i in range(n):
        total = 0.0
        row = entries[i]
        for j in range(p):
            total += row[j] * row[j] * inverse[j]
        total = max(total / p, _LEAST)
        change = max(change, abs(total / x[i] - 1.0))
        x[i] = total
        factor = 1.0 / (total * n)
        for j in range(p):
            y[j] += row[j] * row[j] * factor
    for j in range(p):
        y[j] = max(y[j], _LEAST)
        inverse[j] = 1.0 / y[j]
    return change


@kernel
def flip_signs(
    entries: Float64Array,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    words: NDArray[np.uint64],
    out: NDArray[Any],
) -> None:
    """Write |entries[rows][:, columns]| with the signs that the bits of `words` give to `out`.

    Each row takes ``ceil(columns / 64)`` words.
    """
    taken = (len(columns) + 63) // 64
    for i in range(len(rows)):
        row = entries[rows[i]]
        for j in range(len(columns)):
            word = words[i * taken + j // 64]
            value = abs(row[columns[j]])
            negative = (word >> np.uint64(j % 64)) & np.uint64(1)
            out[i, j] = -value if negative else value


@kernel
def top_eigenvalue(gram: NDArray[np.float32], vector: Float64Array, tolerance: float) -> Any:
    """Return the largest eigenvalue of a positive semidefinite matrix, by Lanczos from `vector`.

    It stops when five more steps raise the value by no more than a share of `tolerance`.
    """
    p = gram.shape[0]
    alphas = np.empty(p)
    betas = np.empty(p)
    current = vector.astype(np.float32)
    before = np.zeros(p, dtype=np.float32)
    top = 0.0
    for step in range(p):
        following = np.zeros(p, dtype=np.float32)
        for j in range(p):
            weight = current[j]
            row = gram[j]
            for i in range(p):
                following[i] += row[i] * weight
        alpha = 0.0
        for i in range(p):
            alpha += float(following[i]) * float(current[i])
        beta = betas[step - 1] if step else 0.0
        square = 0.0
        for i in range(p):
            following[i] -= np.float32(alpha) * current[i] + np.float32(beta) * before[i]
            square += float(following[i]) ** 2
        alphas[step] = alpha
        betas[step] = np.sqrt(square)
        stopped = betas[step] <= 1e-6 * alpha
        if stopped or step == p - 1 or step % 5 == 4:
            now = _top_of_tridiagonal(alphas[: step + 1], betas[:step], top)
            if stopped or now - top <= tolerance * now:
                return now
            top = now
        before = current
        current = following / np.float32(betas[step])
    return top


@kernel
def _top_of_tridiagonal(diagonal: Float64Array, beside: Float64Array, low: float) -> Any:
    """Return the largest eigenvalue of a tridiagonal matrix, at least `low`, by bisection."""
    size = len(diagonal)
    high = low
    for i in range(size):
        reach = diagonal[i]
        if i > 0:
            reach += beside[i - 1]
        if i < size - 1:
            reach += beside[i]
        high = max(high, reach)
    while high - low > 1e-9 * high:
        middle = 0.5 * (low + high)
        pivot = diagonal[0] - middle
        above = pivot > 0.0
        for i in range(1, size):
            if above:
                break
            pivot = diagonal[i] - middle - beside[i - 1] ** 2 / pivot
            above = pivot > 0.0
        if above:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
