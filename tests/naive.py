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


def sinkhorn(entries, sweeps=500):
    """Variances x and y after which entries^2 / (x y) have unit row and column means."""
    squares = np.square(entries)
    x, y = np.ones(len(squares)), np.ones(squares.shape[1])
    for _ in range(sweeps):
        x = (squares / y).mean(axis=1)
        y = (squares / x[:, None]).mean(axis=0)
    return x, y


def residual(matrix, k):
    """What is left without k components, each entry divided by the share that noise keeps."""
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    rest = matrix - (left[:, :k] * singular[:k]) @ right[:k]
    rows = np.maximum(1 - np.square(left[:, :k]).sum(axis=1), 0.05)
    columns = np.maximum(1 - np.square(right[:k]).sum(axis=0), 0.05)
    return rest / np.sqrt(np.outer(rows, columns))


def edge_of_noise(n, p, tracy_widom_quantile):
    """Threshold for s^2 of an n x p matrix of unit variance."""
    a, b = math.sqrt(n), math.sqrt(p)
    return (a + b) ** 2 + tracy_widom_quantile * (a + b) * (1 / a + 1 / b) ** (1 / 3)


def flip_tops(entries, k, draws, rng):
    """Largest s^2 of random sign flips without k rows and columns."""
    n, p = entries.shape
    tops = []
    for _ in range(draws):
        rows, columns = rng.permutation(n)[k:], rng.permutation(p)[k:]
        part = np.abs(entries[np.ix_(rows, columns)])
        signs = rng.choice([-1.0, 1.0], part.shape)
        tops.append(np.linalg.svd(part * signs, compute_uv=False)[0] ** 2)
    return tops


def separated(matrix, edge, rounds=30):
    """Count and threshold for s^2 in rounds; `edge` gives the threshold from what is left and k."""
    matrix = matrix[matrix.any(axis=1)][:, matrix.any(axis=0)]
    n, p = matrix.shape
    left_over, k = matrix, 0
    x, y = np.ones(n), np.ones(p)
    first = None
    for _ in range(rounds):
        rows, columns = sinkhorn(left_over)
        x, y = x * rows, y * columns
        if first is None:
            first = x, y
        else:
            x, y = (
                start * np.maximum(now / start, 0.2 * np.median(now / start))
                for now, start in zip((x, y), first, strict=True)
            )
        scaled = matrix / np.sqrt(np.outer(x, y))
        squares = np.linalg.svd(scaled, compute_uv=False) ** 2
        threshold = edge(residual(scaled, k), k)
        count = int(np.sum(squares > threshold))
        if count <= k:
            return k, threshold, scaled
        if p - count < 16:
            return None, threshold, scaled
        k, left_over = count, residual(scaled, count)
    raise AssertionError("the count still grew")


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


def entropy(weights):
    """-sum q log q of weights divided by their sum."""
    total = sum(weights)
    return -sum(w / total * math.log(w / total) for w in weights if w > 0)


def power_law(values):
    """Clauset, Shalizi and Newman: alpha, xmin and D of the tail with the least D.

    Against the empirical distribution function just below each value, as the package takes it.
    """
    values = sorted(values)
    best = (math.inf, 0.0, 0.0)
    for xmin in values[:-2]:
        tail = [v for v in values if v >= xmin]
        alpha = 1 + len(tail) / sum(math.log(v / xmin) for v in tail)
        gaps = [abs(1 - (v / xmin) ** (1 - alpha) - i / len(tail)) for i, v in enumerate(tail)]
        best = min(best, (max(gaps), xmin, alpha))
    return best[2], best[1], best[0]
