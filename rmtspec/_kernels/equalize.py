"""Kernels over the entries of a noise matrix: Sinkhorn's sweep, sign flips, sums of powers."""

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
    for i in range(0, n - n % 4, 4):  # four rows, whose sums need not wait for each other
        a, b, c, d = entries[i], entries[i + 1], entries[i + 2], entries[i + 3]
        of_a = of_b = of_c = of_d = 0.0
        for j in range(p):
            of_a += a[j] * a[j] * inverse[j]
            of_b += b[j] * b[j] * inverse[j]
            of_c += c[j] * c[j] * inverse[j]
            of_d += d[j] * d[j] * inverse[j]
        change = max(change, _set(x, i, of_a / p), _set(x, i + 1, of_b / p))
        change = max(change, _set(x, i + 2, of_c / p), _set(x, i + 3, of_d / p))
        per_a, per_b = 1.0 / (x[i] * n), 1.0 / (x[i + 1] * n)
        per_c, per_d = 1.0 / (x[i + 2] * n), 1.0 / (x[i + 3] * n)
        for j in range(p):
            two = a[j] * a[j] * per_a + b[j] * b[j] * per_b
            y[j] += two + (c[j] * c[j] * per_c + d[j] * d[j] * per_d)
    for i in range(n - n % 4, n):
        row, total = entries[i], 0.0
        for j in range(p):
            total += row[j] * row[j] * inverse[j]
        change = max(change, _set(x, i, total / p))
        for j in range(p):
            y[j] += row[j] * row[j] / (x[i] * n)
    for j in range(p):
        y[j] = max(y[j], _LEAST)
        inverse[j] = 1.0 / y[j]
    return change


@kernel
def _set(x: Float64Array, i: int, value: float) -> Any:
    """Set x_i, and return its relative change."""
    before = x[i]
    x[i] = max(value, _LEAST)
    return abs(x[i] / before - 1.0)


@kernel
def flip_signs(
    entries: NDArray[np.float32],
    rows: NDArray[np.intp],
    kept: NDArray[np.float32],
    words: NDArray[np.uint32],
    out: NDArray[np.float32],
) -> None:
    """Write the absolute values of some rows, with the signs that the bits of `words` give.

    `kept` has a row for each of as many equal parts of `rows`: 1 for columns that are kept, 0 for
    those that become 0. Each row takes ``ceil(columns / 32)`` words.
    """
    p = entries.shape[1]
    taken = (p + 31) // 32
    part = len(rows) // len(kept)
    for i in range(len(rows)):
        row, of_part = entries[rows[i]], kept[i // part]
        for k in range(taken):
            word, start = words[i * taken + k], 32 * k
            for bit in range(min(32, p - start)):
                sign = np.float32(1 - 2 * np.int32((word >> np.uint32(bit)) & np.uint32(1)))
                out[i, start + bit] = abs(row[start + bit]) * (of_part[start + bit] * sign)


@kernel
def power_sums(entries: NDArray[np.float32]) -> Any:
    """Return the sums of squares, of cubes, and of sixth powers."""
    squares = cubes = sixths = 0.0
    for i in range(entries.shape[0]):
        row = entries[i]
        seconds = thirds = rest = 0.0
        for j in range(len(row)):
            value = np.float64(row[j])  # float() keeps single precision
            square = value * value
            cube = square * value
            seconds += square
            thirds += cube
            rest += cube * cube
        squares += seconds
        cubes += thirds
        sixths += rest
    return squares, cubes, sixths


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
            alpha += np.float64(following[i]) * np.float64(current[i])
        beta = betas[step - 1] if step else 0.0
        square = 0.0
        for i in range(p):
            following[i] -= np.float32(alpha) * current[i] + np.float32(beta) * before[i]
            square += np.float64(following[i]) ** 2
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
