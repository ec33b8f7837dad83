"""Slow references, written from the definitions; they import nothing of ours."""

import math

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq, fsolve
from scipy.stats import gamma


def mp_edges(ratio, variance=1.0):
    """Edges of the bulk, the paper's eq. (6)."""
    return variance * (1 - math.sqrt(ratio)) ** 2, variance * (1 + math.sqrt(ratio)) ** 2


def mp_pdf(x, ratio, variance=1.0):
    """Density of the bulk, the paper's eq. (5)."""
    low, high = mp_edges(ratio, variance)
    if not low < x < high:
        return 0.0
    return math.sqrt((high - x) * (x - low)) / (2 * math.pi * variance * ratio * x)


def mp_cdf(x, ratio, variance=1.0):
    """Distribution function by quadrature, as in the paper's notebook."""
    low, high = mp_edges(ratio, variance)
    atom = max(0.0, 1 - 1 / ratio)
    if x < low:
        return atom if x >= 0 else 0.0
    if x >= high:
        return 1.0
    return atom + quad(mp_pdf, low, x, args=(ratio, variance), limit=200)[0]


def mp_ppf(p, ratio, variance=1.0):
    """Quantile by bracketing the quadrature, as in the paper's notebook."""
    low, high = mp_edges(ratio, variance)
    if p <= max(0.0, 1 - 1 / ratio):
        return 0.0
    return brentq(lambda x: mp_cdf(x, ratio, variance) - p, low, high, xtol=1e-14)


def gamma_bulk_pdf(x, ratio, shape):
    """Density at `x` of the bulk of gamma variances: Silverstein's equation followed down to it."""
    t = (np.arange(20_000) + 0.5) / 20_000 * (1.0 + 40.0 / shape)
    weights = gamma.pdf(t, shape, scale=1.0 / shape)
    weights /= weights.sum()

    def excess(parts, height):
        m = complex(*parts)
        z = ratio * np.sum(weights * t / (1.0 + t * m)) - 1.0 / m
        return z.real - x, z.imag - height

    m = (-1.0 / complex(x, 4.0)).real, (-1.0 / complex(x, 4.0)).imag
    for height in (4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 1e-3, 1e-5, 0.0):
        m = fsolve(excess, m, args=(height,), xtol=1e-12)
    return m[1] / (math.pi * ratio)


def _ranks(size, alpha):
    return [k for k in range(1, size + 1) if alpha * size <= k <= (1 - alpha) * size]


def bema(eigenvalues, n, alpha, tracy_widom_quantile, quantiles):
    """Variance and threshold of one fit to all eigenvalues, sorted ascending."""
    p = len(eigenvalues)
    g = p / n
    top = bottom = 0.0
    for k in _ranks(p, alpha):
        level = k / p if quantiles == "paper" else (k - 0.5) / p
        q = mp_ppf(level, g)
        top += q * eigenvalues[k - 1]
        bottom += q * q
    variance = top / bottom
    edge = (1 + math.sqrt(g)) ** 2
    margin = n ** (-2 / 3) * g ** (-1 / 6) * (1 + math.sqrt(g)) ** (4 / 3)
    return variance, variance * (edge + tracy_widom_quantile * margin)


def fit_statistic(eigenvalues, ratio, scale, alpha):
    """Largest gap between midpoints and the law of that scale, over the bulk."""
    size = len(eigenvalues)
    gaps = [
        abs((k - 0.5) / size - mp_cdf(eigenvalues[k - 1], ratio, scale))
        for k in _ranks(size, alpha)
    ]
    return max(gaps)


def energy_rank(squares, share):
    """Fewest of the largest that sum to at least that share of all; in exact numbers if given."""
    total = sum(squares)
    part = 0
    for count, square in enumerate(sorted(squares, reverse=True), 1):
        part += square
        if part >= share * total:
            return count if total > 0 else 0
    raise AssertionError("a share above 1")


def fraction_rank(size, share):
    """Whole part of a share of a size, at least 1; in exact numbers if given."""
    return max(1, math.floor(share * size))


def bcv_rank(W, row_order, column_order):
    """Least k of the least error of four blocks, each predicted by a truncated pseudo-inverse."""
    rows, columns = np.array_split(row_order, 2), np.array_split(column_order, 2)
    errors = [0.0] * (min(map(len, (*rows, *columns))) + 1)
    for i in range(2):
        for j in range(2):
            A = W[rows[i]][:, columns[j]]
            B = W[rows[i]][:, columns[1 - j]]
            C = W[rows[1 - i]][:, columns[j]]
            U, s, Vt = np.linalg.svd(W[rows[1 - i]][:, columns[1 - j]], full_matrices=False)
            for k in range(len(errors)):
                inverse = np.linalg.pinv((U[:, :k] * s[:k]) @ Vt[:k])
                errors[k] += np.sum((A - B @ inverse @ C) ** 2)
    return errors.index(min(errors))


def parallel_rank(W, shuffled, place):
    """Leading singular values above the `place`-th smallest of the shuffled ones of their rank."""
    ours = np.linalg.svd(W, compute_uv=False)
    theirs = [np.linalg.svd(other, compute_uv=False) for other in shuffled]
    for k, value in enumerate(ours):
        if value <= sorted(values[k] for values in theirs)[place - 1]:
            return k
    return len(ours)
