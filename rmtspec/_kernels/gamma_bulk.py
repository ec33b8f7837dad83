"""Kernels of the bulk of columns with gamma-distributed variances: Silverstein's equation solved.

Let T be the variance of a column, of mean 1, and c the ratio. The Stieltjes transform m of the
eigenvalues of W W^T / N is -1 / y, where y is the root in the upper half plane of

    x = y (1 - c E[T / (T - y)]).

The density is Im(m) / (pi c), and the distribution function the imaginary part of the potential

    sum log(x - l) = x / y + log(-y) + c E[log(1 - T / y)] - 1.

Expectations are sums over nodes on a ray below the real axis, away from the pole at y.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec._kernels._decorator import kernel

ComplexArray = NDArray[np.complex128]
#: Ratio, nodes, weights, and the table of `grid`.
Packed = tuple[float, ComplexArray, ComplexArray, ComplexArray]

_STEPS = 40  # of Newton's method
_BISECTIONS = 80
_LEAST = 1e-9  # the grid ends where this share is left


@kernel
def equation(y: complex, c: float, nodes: ComplexArray, weights: ComplexArray) -> Any:
    """Return the right side of the equation at y, and its derivative.

    With R = 1 / (T - y) they are y (1 - c) - c y^2 E[R] and (1 - c) - c y (2 E[R] + y E[R^2]),
    which do not cancel near y = 0.
    """
    first_re = first_im = second_re = second_im = 0.0
    for j in range(nodes.size):
        d_re, d_im = nodes[j].real - y.real, nodes[j].imag - y.imag
        scale = 1.0 / (d_re * d_re + d_im * d_im)
        r_re, r_im = d_re * scale, -d_im * scale
        w_re, w_im = weights[j].real, weights[j].imag
        a_re = w_re * r_re - w_im * r_im
        a_im = w_re * r_im + w_im * r_re
        first_re += a_re
        first_im += a_im
        second_re += a_re * r_re - a_im * r_im
        second_im += a_re * r_im + a_im * r_re
    first = complex(first_re, first_im)
    second = complex(second_re, second_im)
    value = y * (1.0 - c - c * y * first)
    return value, 1.0 - c - c * y * (2.0 * first + y * second)


@kernel
def newton(z: complex, y: complex, c: float, nodes: ComplexArray, weights: ComplexArray) -> Any:
    """Return the root from the start `y`, the derivative there, and whether the steps converged."""
    slope = complex(1.0, 0.0)
    for _ in range(_STEPS):
        value, slope = equation(y, c, nodes, weights)
        step = (value - z) / slope
        size = abs(y)
        if not abs(step) < 0.5 * size:  # a nan ends the search below
            step *= 0.5 * size / abs(step)
        y -= step
        if not math.isfinite(y.real) or not math.isfinite(y.imag):
            return y, slope, False
        if abs(step) <= 1e-9 * abs(y):  # the next error is of the order of the square of this step
            return y, slope, True
    return y, slope, False


@kernel
def from_above(x: float, c: float, nodes: ComplexArray, weights: ComplexArray) -> Any:
    """Return the root at `x`, followed from far above in the upper half plane."""
    height = 4.0 * (1.0 + x + c)
    y = complex(x - c, height)
    slope = complex(1.0, 0.0)
    while height > 0.0:
        y, slope, _ = newton(complex(x, height), y, c, nodes, weights)
        lower = 0.5 * height if height > 1e-13 * x else 0.0
        moved = y - complex(0.0, height - lower) / slope
        y = moved if moved.imag > 0.0 else complex(y.real, 0.5 * y.imag)
        height = lower
    y, slope, _ = newton(complex(x, 0.0), y, c, nodes, weights)
    return y, slope


@kernel
def root(x: float, start: complex, c: float, nodes: ComplexArray, weights: ComplexArray) -> Any:
    """Return the root at `x` and the derivative there, from `start` if that leads to the root."""
    y, slope, converged = newton(complex(x, 0.0), start, c, nodes, weights)
    apart = y.imag / abs(y)  # outside the bulk the root is real, and x rises with it
    if converged and (apart > 1e-10 or (apart > -1e-10 and slope.real > 0.0)):
        return y, slope
    return from_above(x, c, nodes, weights)


@kernel
def density_at(y: complex, c: float) -> Any:
    """Return the density at the x of which `y` is the root."""
    size = y.real * y.real + y.imag * y.imag
    return max(y.imag, 0.0) / (math.pi * c * size)


@kernel
def share_above(x: float, y: complex, c: float, nodes: ComplexArray, weights: ComplexArray) -> Any:
    """Return the share of all N values above `x`, from the potential; y is the root at `x`."""
    total = 0.0
    y = complex(y.real, max(y.imag, 0.0))  # rounding must not carry it to the other branch
    for j in range(nodes.size):
        ratio = nodes[j] / y
        u_re, u_im = 1.0 - ratio.real, -ratio.imag
        log_size = 0.5 * math.log(u_re * u_re + u_im * u_im)
        total += weights[j].real * math.atan2(u_im, u_re) + weights[j].imag * log_size
    size = y.real * y.real + y.imag * y.imag
    angle = math.atan2(y.imag, y.real)  # of -1 / m
    return (-x * y.imag / size + angle + c * total) / math.pi


@kernel
def share(x: float, y: complex, c: float, nodes: ComplexArray, weights: ComplexArray) -> Any:
    """Return the sf of the law at `x` > 0, of which `y` is the root."""
    return min(max(share_above(x, y, c, nodes, weights) / c, 0.0), min(1.0, 1.0 / c))


@kernel
def grid(c: float, nodes: ComplexArray, weights: ComplexArray, out: ComplexArray) -> Any:
    """Fill the rows of `out` with x + i density, root, and sf + i 0; return first and last row.

    The walk begins at the mean in the middle row, and goes up and down until nothing is left.
    """
    middle = out.shape[0] // 2
    whole = min(1.0, 1.0 / c)
    ends = np.zeros(2, np.int64)
    begin, begin_slope = from_above(1.0, c, nodes, weights)
    for side in range(2):
        x, y, slope = 1.0, begin, begin_slope
        k = middle
        while True:
            height = density_at(y, c)
            above = share(x, y, c, nodes, weights)
            out[k, 0] = complex(x, height)
            out[k, 1] = y
            out[k, 2] = complex(above, 0.0)
            ends[side] = k
            left = above if side == 0 else whole - above
            if left < _LEAST or k in (0, out.shape[0] - 1):
                break
            step = min(0.012 * whole, 0.2 * left) / max(height, 1e-300)
            step = max(min(step, (0.25 if left < 0.02 else 0.07) * x), 0.004 * x)
            moved = x + step if side == 0 else x - step
            y, slope = root(moved, y + (moved - x) / slope, c, nodes, weights)
            x = moved
            k += 1 if side == 0 else -1
    return ends[1], ends[0]


@kernel
def near(x: float, table: ComplexArray) -> Any:
    """Return a start for the root at `x`: interpolated in the table, or continued beyond it."""
    last = table.shape[0] - 1
    if x >= table[last, 0].real:
        return table[last, 1] + (x - table[last, 0].real)
    if x <= table[0, 0].real:
        return table[0, 1] * (x / table[0, 0].real)
    low, high = 0, last
    while high - low > 1:
        k = (low + high) // 2
        if table[k, 0].real <= x:
            low = k
        else:
            high = k
    part = (x - table[low, 0].real) / (table[high, 0].real - table[low, 0].real)
    return table[low, 1] + part * (table[high, 1] - table[low, 1])


@kernel
def density(x: Float64Array, law: Packed, out: Float64Array) -> None:
    """Write the density at `x` into `out`: 0 below and at 0, nan stays nan."""
    c, nodes, weights, table = law
    gap = table[0, 0].real if c > 1.0 else 0.0
    for i in range(x.size):
        if x[i] > gap and x[i] < math.inf:
            y, _ = root(x[i], near(x[i], table), c, nodes, weights)
            out[i] = density_at(y, c)
        else:
            out[i] = math.nan if math.isnan(x[i]) else 0.0


@kernel
def upper_share(x: Float64Array, law: Packed, out: Float64Array) -> None:
    """Write the sf at `x` into `out`; nan stays nan."""
    c, nodes, weights, table = law
    gap = table[0, 0].real if c > 1.0 else 0.0
    for i in range(x.size):
        if x[i] > gap and x[i] < math.inf:
            y, _ = root(x[i], near(x[i], table), c, nodes, weights)
            out[i] = share(x[i], y, c, nodes, weights)
        elif x[i] >= 0.0 and x[i] < math.inf:
            out[i] = min(1.0, 1.0 / c)
        else:
            out[i] = math.nan if math.isnan(x[i]) else (1.0 if x[i] < 0.0 else 0.0)


@kernel
def quantiles(q: Float64Array, law: Packed, out: Float64Array) -> None:
    """Write the x with sf(x) = `q` into `out`: 0 in the atom, inf for q = 0, nan outside [0, 1]."""
    c, nodes, weights, table = law
    last = table.shape[0] - 1
    for i in range(q.size):
        if not 0.0 <= q[i] <= 1.0:
            out[i] = math.nan
        elif q[i] == 0.0:
            out[i] = math.inf
        elif q[i] >= min(1.0, 1.0 / c):
            out[i] = 0.0
        elif q[i] >= table[0, 2].real:
            out[i] = table[0, 0].real
        elif q[i] <= table[last, 2].real:
            out[i] = table[last, 0].real
        else:
            out[i] = _quantile(q[i], c, nodes, weights, table)


@kernel
def _quantile(
    q: float, c: float, nodes: ComplexArray, weights: ComplexArray, table: ComplexArray
) -> Any:
    """Return one quantile inside the table, by Newton's method between two of its rows."""
    low, high = 0, table.shape[0] - 1
    while high - low > 1:
        k = (low + high) // 2
        if table[k, 2].real >= q:
            low = k
        else:
            high = k
    left, right = table[low, 0].real, table[high, 0].real
    y = table[low, 1]
    part = (table[low, 2].real - q) / (table[low, 2].real - table[high, 2].real)
    y += part * (table[high, 1] - y)
    x = left + part * (right - left)
    for _ in range(_BISECTIONS):
        y, slope = root(x, y, c, nodes, weights)
        excess = share(x, y, c, nodes, weights) - q
        if abs(excess) < 1e-14:
            break
        if excess > 0.0:
            left = x
        else:
            right = x
        moved = x + excess / max(density_at(y, c), 1e-300)
        if not left <= moved <= right:
            moved = 0.5 * (left + right)
        y += (moved - x) / slope
        step, x = abs(moved - x), moved
        if step <= 1e-8 * x:  # the next error is of the order of the square of this step
            break
    return x
