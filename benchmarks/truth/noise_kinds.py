"""Noise of many kinds, and components planted in it: matrices whose true count is known."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Generator = np.random.Generator
Maker = Callable[[int, int, Generator], Float64Array]


def gaussian(n: int, p: int, rng: Generator) -> Float64Array:
    """Return standard normal entries."""
    return rng.standard_normal((n, p))


def rank_one(n: int, p: int, rng: Generator) -> Float64Array:
    """Return normal entries whose variances are products of log-normal ones, sigma 0.7 each."""
    rows, columns = rng.normal(0.0, 0.7, (n, 1)), rng.normal(0.0, 0.7, (1, p))
    return np.exp((rows + columns) / 2.0) * rng.standard_normal((n, p))


def gamma_rows(n: int, p: int, rng: Generator) -> Float64Array:
    """Return normal entries with row variances of a gamma law, shape 2, scale 0.5."""
    return np.sqrt(rng.gamma(2.0, 0.5, (n, 1))) * rng.standard_normal((n, p))


def gamma_both(n: int, p: int, rng: Generator) -> Float64Array:
    """Return the same with column variances too."""
    return np.sqrt(rng.gamma(2.0, 0.5, (1, p))) * gamma_rows(n, p, rng)


def student_3(n: int, p: int, rng: Generator) -> Float64Array:
    """Return entries of Student's t with 3 degrees of freedom."""
    return rng.standard_t(3.0, (n, p))


def student_5(n: int, p: int, rng: Generator) -> Float64Array:
    """Return entries of Student's t with 5 degrees of freedom."""
    return rng.standard_t(5.0, (n, p))


def blocks(n: int, p: int, rng: Generator) -> Float64Array:
    """Return normal entries with variances in blocks: no product of rows and columns."""
    variances = np.ones((n, p))
    third, half, quarter = n // 3, p // 2, p // 4
    variances[:third, :half] = 6.0
    variances[third:, :quarter] = 3.0
    variances[: n // 2, half:] = 0.3
    return np.sqrt(variances) * rng.standard_normal((n, p))


def sparse(n: int, p: int, rng: Generator) -> Float64Array:
    """Return normal entries of which 90 % are 0."""
    return np.where(rng.random((n, p)) < 0.1, rng.standard_normal((n, p)), 0.0)


def skewed(n: int, p: int, rng: Generator) -> Float64Array:
    """Return exponential entries less their mean."""
    return rng.exponential(1.0, (n, p)) - 1.0


def large_rows(n: int, p: int, rng: Generator) -> Float64Array:
    """Return normal entries, six rows of which are ten times larger."""
    entries = rng.standard_normal((n, p))
    entries[:6] *= 10.0
    return entries


def smooth_laplace(n: int, p: int, rng: Generator) -> Float64Array:
    """Return Laplace entries whose variance is a smooth function of both places."""
    i, j = np.arange(n)[:, None] / n, np.arange(p)[None, :] / p
    scale = 1.0 + 0.8 * np.sin(2.0 * np.pi * i) * np.cos(np.pi * j)
    return scale * rng.laplace(0.0, 1.0, (n, p))


KINDS: dict[str, Maker] = {
    "Gaussian": gaussian,
    "rank-one profile": rank_one,
    "gamma rows": gamma_rows,
    "gamma rows and columns": gamma_both,
    "Student t(3)": student_3,
    "Student t(5)": student_5,
    "blocks": blocks,
    "90 % zeros": sparse,
    "skewed": skewed,
    "six large rows": large_rows,
    "smooth profile, Laplace": smooth_laplace,
}


def planted(noise: Float64Array, strengths: Float64Array, rng: Generator) -> Float64Array:
    """Return noise with components of random directions added.

    Strengths are in units of the detection limit of a white matrix of the same mean square,
    (n p)^(1/4) rms(noise).
    """
    n, p = noise.shape
    rms = float(np.sqrt(np.mean(np.square(noise))))
    left = np.linalg.qr(rng.standard_normal((n, len(strengths))))[0]
    right = np.linalg.qr(rng.standard_normal((p, len(strengths))))[0]
    singular = np.asarray(strengths) * (n * p) ** 0.25 * rms
    signal: Float64Array = (left * singular) @ right.T
    return noise + signal
