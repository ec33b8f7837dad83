"""Make rmtspec/laws/_tracy_widom_table.npz: Chebyshev series of the logs of the Tracy-Widom laws.

    pip install python-flint && python benchmarks/tables/make_tracy_widom.py

It takes about six minutes on one idle core. It needs python-flint, for this script only: compiled
ball arithmetic of any precision, which also bounds the rounding errors.

Bornemann, "On the numerical evaluation of Fredholm determinants" (2010): with the kernel
V(x, y) = Ai((x + y) / 2) / 2 on (t, inf), F+ = det(I - V) and F- = det(I + V),

    F1(t) = F+(t)      F2(t) = F+(t) F-(t)      F4(t / sqrt 2) = (F+(t) + F-(t)) / 2.

The half line is cut off at t + length, and the integrals are Gauss-Legendre sums. The precision
grows with |t| to give 25 correct digits of log F on the left and of log(1 - F) on the right, down
to where F and 1 - F leave the range of double precision. Each value is computed once for the three
laws, which is why the table of beta = 4 is in t = sqrt(2) s. Every piece is interpolated at
Chebyshev points, and coefficients below 1e-18 of the largest are dropped; the script stops if they
do not fall that low. `--check` compares values with those from more nodes and a later cut-off.
"""

import math
import sys
from itertools import pairwise

import numpy as np
from flint import arb, arb_mat, ctx

from rmtspec.laws._tracy_widom_series import BETAS, CENTRE, EDGES, TABLE

POINTS = (26, 32, 40, 44, 44, 40, 34)  # Chebyshev points of each piece
WORKING_BITS = 400  # outside the determinants
DROP = 1e-18


def plus_and_minus(t: arb, *, extra: int = 0) -> tuple[arb, arb]:
    """Return F+ and F- at `t`, accurate to 25 digits of F and of 1 - F."""
    at = float(t)
    size = abs(at) ** 1.5
    if at < 0:
        # log F is about -|t|^3 / 24 - |t|^1.5 / 4.2; the part cut off must be far below F.
        small = abs(at) ** 3 / 24 + size / 4 + 130
        length = (1.5 * small) ** (2 / 3) - at
        nodes = 70 + int(0.9 * length * max(1.0, abs(at) / 20)) + extra
        bits = 250 + int(1.3 * small)
    else:
        # 1 - F4 is about exp(-4/3 t^1.5), and its digits are differences of numbers near 1.
        small = 2 / 3 * size + 110
        length = min((1.5 * small) ** (2 / 3) - at, 100 / math.sqrt(at + 0.1))
        nodes = 80 + extra
        bits = 300 + int(2.5 * size)
    length += extra / 8
    ctx.prec = bits
    half = arb(length) / 2
    rule = [arb.legendre_p_root(nodes, k, weight=True) for k in range(nodes)]
    x = [arb(t) + half * (1 + root) for root, _ in rule]
    root_weight = [(half * weight / 2).sqrt() for _, weight in rule]
    kernel = arb_mat(nodes, nodes)
    identity = arb_mat(nodes, nodes)
    for i in range(nodes):
        identity[i, i] = 1
        for j in range(i, nodes):
            value = ((x[i] + x[j]) / 2).airy_ai() * root_weight[i] * root_weight[j]
            kernel[i, j] = value
            kernel[j, i] = value
    return (identity - kernel).det(), (identity + kernel).det()


def logs(t: arb, *, upper: bool, extra: int = 0) -> list[arb]:
    """Return log F (or with `upper` log(1 - F)) of the laws of beta 1, 2, 4 at `t`."""
    plus, minus = plus_and_minus(t.mid(), extra=extra)
    cdfs = [plus, plus * minus, (plus + minus) / 2]
    values = [(1 - cdf if upper else cdf).log() for cdf in cdfs]
    if max(float(value.rad()) for value in values) > 1e-25:
        raise RuntimeError(f"lost precision at t = {float(t)}: {values}")
    ctx.prec = WORKING_BITS
    return [value.mid() for value in values]


def series(low: float, high: float, points: int) -> list[list[arb]]:
    """Return the Chebyshev coefficients of the three laws on one piece."""
    ctx.prec = WORKING_BITS
    angles = [arb.pi() * (2 * k + 1) / (2 * points) for k in range(points)]
    middle, half = arb(low + high) / 2, arb(high - low) / 2
    values = [logs(middle + half * angle.cos(), upper=low >= CENTRE) for angle in angles]
    every = []
    for law in range(len(BETAS)):
        coefficients = []
        for order in range(points):
            total = sum(
                (v[law] * (order * a).cos() for v, a in zip(values, angles, strict=True)), arb(0)
            )
            coefficients.append(total * (1 if order == 0 else 2) / points)
        every.append(coefficients)
    return every


def keep(coefficients: list[arb]) -> list[float]:
    """Return the coefficients as floats, without the negligible ones at the end."""
    floats = [float(c) for c in coefficients]
    limit = DROP * max(abs(c) for c in floats)
    last = max(k for k, c in enumerate(floats) if abs(c) > limit)
    if last >= len(floats) - 2:
        raise RuntimeError(f"the series does not end: {floats[-3:]}; take more points")
    return floats[: last + 1]


def clenshaw(coefficients: list[arb], x: arb) -> arb:
    one, two = arb(0), arb(0)
    for c in reversed(coefficients[1:]):
        one, two = c + 2 * x * one - two, one
    return coefficients[0] + x * one - two


def moments(pieces: list[list[arb]]) -> tuple[arb, arb]:
    """Return the mean and variance in t, by parts from F below the centre and 1 - F above it."""
    ctx.prec = WORKING_BITS
    rule = [arb.legendre_p_root(90, k, weight=True) for k in range(90)]
    first, second = arb(0), arb(0)
    for (low, high), coefficients in zip(pairwise(EDGES), pieces, strict=True):
        sign = 1 if low >= CENTRE else -1
        for root, weight in rule:
            t = arb(low + high) / 2 + arb(high - low) / 2 * root
            tail = clenshaw(coefficients, root).exp() * weight * (high - low) / 2
            first += sign * tail
            second += 2 * abs(t - CENTRE) * tail
    return CENTRE + first, second - first * first


def write(rows: list[list[float]], means: list[float], variances: list[float]) -> None:
    """Write the series of all laws, one row per law and piece, and the moments."""
    coefficients = np.zeros((len(rows), max(map(len, rows))))
    for padded, row in zip(coefficients, rows, strict=True):
        padded[: len(row)] = row
    np.savez_compressed(
        TABLE,
        coefficients=coefficients.reshape(len(BETAS), len(POINTS), -1),
        means=means,
        variances=variances,
    )


def main() -> None:
    pieces = []
    for (low, high), points in zip(pairwise(EDGES), POINTS, strict=True):
        pieces.append(series(low, high, points))
        print(f"[{low:g}, {high:g}] done", flush=True)
    laws = [list(law) for law in zip(*pieces, strict=True)]
    means, variances = [], []
    for beta, law in zip(BETAS, laws, strict=True):
        mean, variance = moments(law)
        scale = arb(2).sqrt() if beta == 4 else arb(1)
        means.append(float(mean / scale))
        variances.append(float(variance / scale**2))
    write([keep(piece) for law in laws for piece in law], means, variances)
    print(f"wrote {TABLE.name}, {TABLE.stat().st_size / 1024:.0f} KiB; means {means}")


def check() -> None:
    """Print how much values change with more nodes and a later cut-off."""
    for t in (-27, -20, -14, -10, -7, -4, -2, 0, 3, 8, 12, 25, 40, 75, 110):
        upper = t >= CENTRE
        few, many = (logs(arb(t), upper=upper, extra=extra) for extra in (0, 32))
        moved = max(abs(float(a - b)) for a, b in zip(few, many, strict=True))
        print(f"t = {t:4d}: {moved:.1e}", flush=True)


if __name__ == "__main__":
    check() if "--check" in sys.argv[1:] else main()
