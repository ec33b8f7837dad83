"""Kernels of the Marchenko-Pastur law: edges, both tails, density, quantiles.

All formulas are in the angle phi from an edge of the bulk. With the ratio c, from the lower edge
``x / variance = 1 + c - 2 sqrt(c) cos(phi)``, and with r = sqrt(c) (or 1 / sqrt(c) if c > 1), the
share of the bulk between that edge and x is

    H(phi, r) = [phi - sin phi cos phi + r sin(phi)^3 / d (1 + (1 - r^2) G / d^2)] / pi,
    d = 1 - r cos phi,  z = r sin(phi) / d,  G = (z - atan z) / z^3,

and the share above x is H(pi - phi, -r): one formula serves both tails, c -> 0, c = 1 exactly and
c -> infinity. ``gap`` is 1 - r, passed separately because a rounded r does not give it near c = 1.

Kernels pass a law to one another as `Constants`. The three that Python calls (`distribution`,
`density`, `quantiles`) take a plain tuple of the same floats, a type that numba recognises half a
microsecond faster. Arrays are 1-D, contiguous, writable and float64; nothing is checked.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec._kernels._decorator import kernel


class Constants(NamedTuple):
    """The constants of a law that the kernels need; the edges are double-doubles."""

    ratio: float
    weight: float  # of the bulk
    r: float
    gap: float  # 1 - r
    width: float  # of the bulk
    lower: float
    lower_low: float
    top: float
    top_low: float


Packed = tuple[float, ...]  # those floats

# Quantiles of many probabilities: the share u of the bulk beyond the nearer edge is divided into
# 8 cells per power of two, and the quantile is a Taylor polynomial of degree 10 about the middle of
# each. The only singular points are the edges, at least 17 half cells away, so the truncation error
# is 17^-11 times a small coefficient, below rounding.
_TERMS = 11
_SHIFT = 49  # the bits of a float, shifted: exponent and first 3 bits of the mantissa
_SIDE = 0x3FFF  # those bits without the sign, which gives the side of the bulk
_OCTAVES = 8  # a table covers 2^-9 <= u <= 1/2; other values are solved for
_CELLS = 8 * _OCTAVES + 1  # one more for u = 1/2 itself
_FIRST = (1023 - 1 - _OCTAVES) << 3  # the cell that starts at 2^-9
_LEAST_RUN = 3  # neighbours in one cell for which its polynomial pays off
_TABLE_FROM = 500  # values in any order for which the table pays off
_SPLITTER = 134217729.0  # 2^27 + 1


@kernel
def two_sum(a: float, b: float) -> Any:
    """Return a + b as the rounded sum and its exact rounding error."""
    total = a + b
    moved = total - a
    return total, (a - (total - moved)) + (b - moved)


@kernel
def two_product(a: float, b: float) -> Any:
    """Return a b as the rounded product and its exact rounding error (Dekker)."""
    product = a * b
    wide = _SPLITTER * a
    a_high = wide - (wide - a)
    a_low = a - a_high
    wide = _SPLITTER * b
    b_high = wide - (wide - b)
    b_low = b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


@kernel
def constants(ratio: float, variance: float) -> Any:
    """Return the `Constants` of a law."""
    root = math.sqrt(ratio)
    square, error = two_product(root, root)
    root_low = ((ratio - square) - error) / (2.0 * root)
    difference, error = two_sum(1.0, -root)
    difference, difference_low = two_sum(difference, error - root_low)
    total, error = two_sum(1.0, root)
    total, total_low = two_sum(total, error + root_low)
    lower, lower_low = _scaled_square(difference, difference_low, variance)
    top, top_low = _scaled_square(total, total_low, variance)
    weight, r, gap = 1.0, root, difference
    if ratio > 1.0:
        weight, r, gap = 1.0 / ratio, 1.0 / root, -difference / root
    width = 4.0 * root * variance
    return Constants(ratio, weight, r, gap, width, lower, lower_low, top, top_low)


@kernel
def _scaled_square(high: float, low: float, scale: float) -> Any:
    """Return scale (high + low)^2 as a double-double."""
    square, error = two_product(high, high)
    square, error = two_sum(square, error + 2.0 * high * low)
    product, rest = two_product(scale, square)
    return two_sum(product, rest + scale * error)


@kernel
def share(phi: float, near: float, sine: float, cosine: float, r: float, gap: float) -> Any:
    """Return H(phi, r); `near` is sin(phi / 2)^2, `gap` is 1 - r."""
    if phi < 0.5:
        t = 4.0 * phi * phi  # the series of phi - sin phi cos phi
        s = 1.0 - t / 210.0 * (1.0 - t / 272.0)
        s = 1.0 - t / 72.0 * (1.0 - t / 110.0 * (1.0 - t / 156.0 * s))
        first = phi * phi * phi * (2.0 / 3.0) * (1.0 - t / 20.0 * (1.0 - t / 42.0 * s))
    else:
        first = phi - sine * cosine
    d = gap + 2.0 * r * near
    if d <= 0.0:  # ratio 1, at an x that underflows
        return 0.0
    slope = sine / d
    z = r * slope
    z2 = z * z
    cube = r * sine * (sine * slope)
    if z2 < 0.0625:
        # Chebyshev fit of (z - atan z) / z^3 in z^2, error 4e-18
        g = 0.06658687414697743 + z2 * (-0.057529943904780285 + z2 * 0.041034266985419496)
        g = 0.09090902874969416 + z2 * (-0.07692017877237385 + z2 * g)
        g = 0.1428571428525851 + z2 * (-0.11111111035986847 + z2 * g)
        g = 0.3333333333333333 + z2 * (-0.19999999999998933 + z2 * g)
        second = cube * (1.0 + gap * (1.0 + r) * g / (d * d))
    else:
        second = cube + gap * (1.0 + r) * (z - math.atan(z)) / (r * r)
    return (first + second) / math.pi


@kernel
def distribution(x: Float64Array, packed: Packed, upper: bool, out: Float64Array) -> None:
    """Write the law's cdf at `x`, or with `upper` its sf, into `out`; nan stays nan."""
    law = Constants(*packed)
    weight = law.weight
    atom = max(law.ratio - 1.0, 0.0) / law.ratio  # 1 - weight would be inaccurate near ratio 1
    for i in range(x.size):
        value = x[i]
        if value > law.lower and value < law.top:
            near = max(((value - law.lower) - law.lower_low) / law.width, 0.0)
            far = max(((law.top - value) + law.top_low) / law.width, 0.0)
            root_near = math.sqrt(near)
            root_far = math.sqrt(far)
            sine = 2.0 * root_near * root_far
            if near <= far:
                phi = 2.0 * math.atan2(root_near, root_far)
                inside = share(phi, near, sine, far - near, law.r, law.gap)
                out[i] = weight * (1.0 - inside) if upper else atom + weight * inside
            else:
                phi = 2.0 * math.atan2(root_far, root_near)
                inside = share(phi, far, sine, near - far, -law.r, 1.0 + law.r)
                out[i] = weight * inside if upper else 1.0 - weight * inside
        elif value >= law.top:
            out[i] = 0.0 if upper else 1.0
        elif value < 0.0:
            out[i] = 1.0 if upper else 0.0
        elif value <= law.lower:
            out[i] = weight if upper else atom
        else:
            out[i] = math.nan


@kernel
def density(x: Float64Array, packed: Packed, out: Float64Array) -> None:
    """Write the density of the bulk at `x` into `out`: 0 outside the open bulk, nan stays nan."""
    law = Constants(*packed)
    scale = 2.0 / (math.pi * math.sqrt(law.ratio))
    for i in range(x.size):
        value = x[i]
        if value > law.lower and value < law.top:
            near = max(((value - law.lower) - law.lower_low) / law.width, 0.0)
            far = max(((law.top - value) + law.top_low) / law.width, 0.0)
            out[i] = scale * math.sqrt(near) * math.sqrt(far) / value
        elif value == 0.0 and law.lower == 0.0:
            out[i] = math.inf
        elif math.isnan(value):
            out[i] = math.nan
        else:
            out[i] = 0.0


@kernel
def _start(u: float, r: float, gap: float) -> Any:
    """Return an angle near the phi where H(phi, r) = u; 0 if that underflows."""
    if not u > 1e-290:
        return 0.0
    if r <= 0.15:
        return (1.5 * math.pi * gap * gap * u) ** (1.0 / 3.0)
    # Near the edge H = 2 delta (y - atan y) / (pi r) with phi = delta y
    delta = gap / math.sqrt(r)
    v = 0.5 * math.pi * r * u
    if v > delta:
        return v + 0.5 * math.pi * delta - delta * delta / (v + 0.5 * math.pi * delta)
    y = (3.0 * v / delta) ** (1.0 / 3.0)
    return delta * (y + 0.2 * y * y * y)


@kernel
def solve(u: float, r: float, gap: float, phi: float) -> Any:
    """Return sin(phi / 2)^2 for H(phi, r) = u <= 1/2, by Halley's method from `phi`."""
    if not phi > 0.0:
        return 0.0
    low = 0.0
    high = math.pi
    phi = min(phi, 2.5)
    for _ in range(60):
        sine = math.sin(phi)
        cosine = math.cos(phi)
        near = 0.5 * sine * sine / (1.0 + cosine) if cosine > 0.0 else 0.5 * (1.0 - cosine)
        slope = gap * gap + 4.0 * r * near
        excess = share(phi, near, sine, cosine, r, gap) - u
        if excess > 0.0:
            high = phi
        else:
            low = phi
        newton = excess * (0.5 * math.pi) * slope / (sine * sine)
        step = newton / (1.0 - newton * (cosine / sine - r * sine / slope))
        moved = phi - step
        if abs(step) <= 4e-6 * phi:
            phi = moved
            break
        if not low < moved < high:
            moved = 0.5 * (low + high)
        phi = moved
    half = math.sin(0.5 * phi)
    return half * half


@kernel
def quantiles(p: Float64Array, packed: Packed, upper: bool, out: Float64Array) -> None:
    """Write the quantiles of `p`, or with `upper` those of 1 - `p`, into `out`.

    `out` first holds the signed shares of `_shares`. A sorted `p` has its cells in runs, with one
    polynomial each; many values in any order share a table of all cells; a few are solved for.
    """
    law = Constants(*packed)
    _shares(p, law.ratio, upper, out)
    if _ascending(p):
        _by_runs(out, law)
    elif p.size >= _TABLE_FROM:
        _by_table(out, law)
    else:
        for i in range(p.size):
            out[i] = _quantile(out[i], law)


@kernel
def _ascending(p: Float64Array) -> Any:
    """Tell whether `p` never falls (nan does); without an early exit, so that it vectorises."""
    rises = 0
    for i in range(1, p.size):
        rises += p[i - 1] <= p[i]
    return rises == p.size - 1


@kernel
def _shares(p: Float64Array, ratio: float, upper: bool, out: Float64Array) -> None:
    """Write into `out` the share of the bulk between the nearer edge and the quantile of each p.

    It has a minus sign if that edge is the upper one; inf stands for the atom, nan for p not in
    [0, 1].
    """
    if ratio <= 1.0:
        for i in range(p.size):
            value = p[i] + 0.0  # -0.0 becomes 0.0
            u = value if value <= 0.5 else 1.0 - value
            u = -u if upper == (value <= 0.5) else u
            out[i] = u if 0.0 <= value <= 1.0 else math.nan
        return
    for i in range(p.size):
        value = p[i] + 0.0
        product, error = two_product(value, ratio)
        if upper:
            above = product
            below = (1.0 - product) - error
        else:
            above = (1.0 - value) * ratio
            below = (product - (ratio - 1.0)) + error
        u = -above if above <= 0.5 else below
        if above > 0.5 and not below > 0.0:
            u = math.inf
        out[i] = u if 0.0 <= value <= 1.0 else math.nan


@kernel
def _quantile(u: float, law: Constants) -> Any:
    """Return the quantile of one signed share."""
    if math.isnan(u):
        return math.nan
    if math.isinf(u):
        return 0.0
    above = math.copysign(1.0, u) < 0.0
    r, gap = _seen_from(above, law)
    near = law.width * solve(abs(u), r, gap, _start(abs(u), r, gap))
    return _at(near, above, law)


@kernel
def _seen_from(above: bool, law: Constants) -> Any:
    """Return the r and 1 - r that H takes from the upper edge, or from the lower one."""
    return (-law.r, 1.0 + law.r) if above else (law.r, law.gap)


@kernel
def _at(distance: float, above: bool, law: Constants) -> Any:
    """Return the point of the bulk at a distance from the upper edge, or from the lower one."""
    return law.top + (law.top_low - distance) if above else law.lower + (law.lower_low + distance)


@kernel
def _expand(
    cell: int, above: bool, law: Constants, work: Float64Array, row: Float64Array, resume: bool
) -> None:
    """Write into `row` the middle of a cell, 1 / its half width, and the polynomial of x.

    With y = sin(phi / 2)^2 and D = (1 - r)^2 + 4 r y, dy/du = pi D / (8 sqrt(y (1 - y))); the
    series of y, y (1 - y) and its power -1/2 follow from one another, order by order. With
    `resume`, `row` and `work` hold a cell of the same side; if it is near, its y starts the search.
    """
    r, gap = _seen_from(above, law)
    octave = int(cell >> 3) - 1023
    half = math.ldexp(0.0625, octave)
    middle = min(math.ldexp(1.0 + 0.125 * (cell & 7), octave) + half, 0.5)
    y, q, s = work[0], work[1], work[2]
    t = (middle - row[0]) * row[1]
    if resume and abs(t) < 3.5:
        start = y[_TERMS - 1]
        for k in range(_TERMS - 2, -1, -1):
            start = y[k] + t * start
        phi = 2.0 * math.asin(math.sqrt(start))
    else:
        phi = _start(middle, r, gap)
    start = solve(middle, r, gap, phi)
    row[0] = middle
    row[1] = 1.0 / half
    y[0] = start
    q[0] = start * (1.0 - start)
    s[0] = 1.0 / math.sqrt(q[0])
    scale = half * math.pi / 8.0
    slope = gap * gap + 4.0 * r * start
    bend = 4.0 * r
    inverse = 1.0 / q[0]
    for k in range(1, _TERMS):
        per_order = 1.0 / k
        total = 0.0
        for j in range(1, k):
            total += y[j] * s[k - 1 - j]
        y[k] = scale * per_order * (slope * s[k - 1] + bend * total)
        total = 0.5 * y[k // 2] * y[k // 2] if k & 1 == 0 else 0.0
        for j in range(1, (k + 1) // 2):
            total += y[j] * y[k - j]
        q[k] = (1.0 - 2.0 * start) * y[k] - 2.0 * total
        total = -0.5 * k * q[k] * s[0]
        for j in range(1, k):
            total += (0.5 * j - k) * q[j] * s[k - j]
        s[k] = total * (per_order * inverse)
    row[2] = _at(law.width * start, above, law)
    signed = -law.width if above else law.width
    for k in range(1, _TERMS):
        row[2 + k] = signed * y[k]


@kernel
def _polynomial(u: float, row: Float64Array) -> Any:
    """Return the polynomial of a cell at the share `u`."""
    t = (abs(u) - row[0]) * row[1]
    x = row[9] + t * (row[10] + t * (row[11] + t * row[12]))
    x = row[6] + t * (row[7] + t * (row[8] + t * x))
    return row[2] + t * (row[3] + t * (row[4] + t * (row[5] + t * x)))


@kernel
def _by_table(out: Float64Array, law: Constants) -> None:
    """Turn signed shares in any order into quantiles, in place."""
    table = np.empty((2 * _CELLS + 1, _TERMS + 2))
    work = np.zeros((3, _TERMS))
    row = np.zeros(_TERMS + 2)
    for k in range(2 * _CELLS):
        _expand(_FIRST + k % _CELLS, k >= _CELLS, law, work, row, k % _CELLS > 0)
        table[k] = row
    table[2 * _CELLS] = math.nan  # the row for values left to `_quantile`
    bits = out.view(np.int64)
    for i in range(out.size):
        k = ((bits[i] >> _SHIFT) & _SIDE) - _FIRST
        k = k if 0 <= k < _CELLS else 2 * _CELLS
        if bits[i] < 0 and k < _CELLS:
            k += _CELLS
        u = out[i]
        x = _polynomial(u, table[k])
        out[i] = x if x == x else _quantile(u, law)


@kernel
def _by_runs(out: Float64Array, law: Constants) -> None:
    """Turn signed shares that come in runs of one cell into quantiles, in place."""
    row = np.zeros(_TERMS + 2)
    work = np.zeros((3, _TERMS))
    bits = out.view(np.int64)
    start = 0
    side = 0  # of the cell in `row` and `work`
    while start < out.size:
        key = bits[start] >> _SHIFT
        stop = _run_end(bits, start, key)
        cell = key & _SIDE
        if stop - start >= _LEAST_RUN and 1000 < cell <= _FIRST + _CELLS:
            here = -1 if key < 0 else 1
            _expand(cell, key < 0, law, work, row, side == here)
            side = here
            _evaluate_run(out[start:stop], row)
        else:
            for i in range(start, stop):
                out[i] = _quantile(out[i], law)
        start = stop


@kernel
def _run_end(bits: NDArray[np.int64], start: int, key: int) -> Any:
    """Return the end of the run of `key` that begins at `start`: doubling steps, then bisection."""
    inside, outside, step = start, start + 1, 1
    while outside < bits.size and bits[outside] >> _SHIFT == key:
        inside = outside
        step *= 2
        outside = start + step
    outside = min(outside, bits.size)
    while outside - inside > 1:
        middle = (inside + outside) // 2
        if bits[middle] >> _SHIFT == key:
            inside = middle
        else:
            outside = middle
    return outside


@kernel
def _evaluate_run(out: Float64Array, row: Float64Array) -> None:
    """Turn shares of one cell into quantiles, in place; a loop that the compiler vectorises."""
    for i in range(out.size):
        out[i] = _polynomial(out[i], row)
