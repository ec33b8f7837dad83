"""Marchenko-Pastur quantiles against elementary functions and against quadrature with brentq.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 pytest benchmarks/speed/bench_marchenko_pastur.py

The named peers: numpy's ``sin(x) + arctan(x) + cos(x)`` on as many values, which quantiles that are
solved for one by one cannot undercut; those very quantiles; and the paper's notebook, brentq on
scipy's quad of the density.
"""

import math

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq

from rmtspec import MarchenkoPastur

SIZE = 100_000
RATIO = 0.5
LAW = MarchenkoPastur(RATIO)
UNSORTED = np.random.default_rng(1).random(SIZE)
GRID = (np.arange(SIZE) + 0.5) / SIZE


def elementary():
    return np.sin(UNSORTED) + np.arctan(UNSORTED) + np.cos(UNSORTED)


def solved_for():
    """Quantiles of 100,000 values, 100 at a time: too few for a table, so each is solved for."""
    return [LAW.ppf(UNSORTED[i : i + 100]) for i in range(0, SIZE, 100)]


def notebook_ppf(levels):
    low, high = (1 - math.sqrt(RATIO)) ** 2, (1 + math.sqrt(RATIO)) ** 2

    def density(x):
        return math.sqrt(max((high - x) * (x - low), 0.0)) / (2 * math.pi * RATIO * x)

    def excess(x, level):
        return quad(density, low, x)[0] - level

    return [brentq(excess, low, high, args=(level,)) for level in levels]


def test_quantiles_against_elementary_functions(paired):
    paired(
        "MP ppf, 100,000 unsorted / sin + arctan + cos",
        lambda: LAW.ppf(UNSORTED),
        elementary,
        limit=6,
    )
    paired("MP ppf, 100 at a time / sin + arctan + cos", solved_for, elementary, limit=24)


def test_distribution_against_elementary_functions(paired):
    paired(
        "MP cdf, 100,000 unsorted / sin + arctan + cos",
        lambda: LAW.cdf(UNSORTED),
        elementary,
        limit=12,
    )


def test_sorted_grid_against_other_orders(paired):
    paired(
        "MP ppf, grid of 100,000 / 100 at a time", lambda: LAW.ppf(GRID), solved_for, limit=1 / 3
    )
    paired(
        "MP ppf, grid / unsorted, 100,000 each",
        lambda: LAW.ppf(GRID),
        lambda: LAW.ppf(UNSORTED),
        limit=0.75,
    )
    grid, few = (np.arange(1000) + 0.5) / 1000, UNSORTED[:1000]
    paired(
        "MP ppf, grid of 1000 / 1000 solved for",
        lambda: LAW.ppf(grid),
        lambda: [LAW.ppf(few[i : i + 100]) for i in range(0, 1000, 100)],
        limit=1 / 3,
    )


def test_quantiles_against_the_notebook(paired):
    levels = 20
    paired(
        f"MP ppf, 100,000 unsorted / {levels} by quad + brentq",
        lambda: LAW.ppf(UNSORTED),
        lambda: notebook_ppf(UNSORTED[:levels]),
        limit=SIZE / levels / 5000,  # 5,000 times faster a value
    )
