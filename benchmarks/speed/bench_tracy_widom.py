"""Tracy-Widom cdf and ppf against Fredholm determinants in float64, the named baseline.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 pytest benchmarks/speed/bench_tracy_widom.py

The baseline is Bornemann's method as one would write it with numpy and scipy: a 32-node
Gauss-Legendre rule cut at 19 - s, one 32 x 32 determinant a value (batched), and brentq on it for
quantiles. The table runs on 10,000 points, the baseline on the first 1,000 (cdf) or 20 (ppf) of
them: divide the times a value, `extra_info` ("microseconds a value", in --benchmark-json).
"""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import airy

from rmtspec.laws.tracy_widom import TracyWidom

NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)
SIZE = 10_000


ROWS, COLUMNS = np.triu_indices(32)


def determinant_cdf(s):
    """F1 by determinants, for a 1-D array; Ai once for each of the symmetric pairs."""
    s = np.asarray(s, dtype=float)
    half = (19 - 2 * s) / 2
    x = s[:, None] + half[:, None] * (1 + NODES)
    root = np.sqrt(half[:, None] * WEIGHTS / 2)
    values = airy((x[:, ROWS] + x[:, COLUMNS]) / 2)[0] * root[:, ROWS] * root[:, COLUMNS]
    kernel = np.empty((s.size, 32, 32))
    kernel[:, ROWS, COLUMNS] = values
    kernel[:, COLUMNS, ROWS] = values
    return np.linalg.det(np.eye(32) - kernel)


def determinant_ppf(p):
    def excess(s, q):
        return determinant_cdf([s])[0] - q

    return np.array([brentq(excess, -9, 7, args=(q,), xtol=1e-13) for q in p])


def timed(benchmark, function, values):
    function(values)  # warm up: tables are built on first use
    benchmark(function, values)
    benchmark.extra_info["microseconds a value"] = round(
        benchmark.stats.stats.median / np.size(values) * 1e6, 3
    )


@pytest.fixture
def law():
    return TracyWidom(beta=1)


@pytest.fixture
def points():
    return np.random.default_rng(1).uniform(-5, 4, SIZE)


@pytest.fixture
def probabilities():
    return np.random.default_rng(2).uniform(1e-3, 1 - 1e-3, SIZE)


@pytest.mark.benchmark(group="cdf")
def test_cdf_table(benchmark, law, points):
    timed(benchmark, law.cdf, points)
    np.testing.assert_allclose(law.cdf(points[:500]), determinant_cdf(points[:500]), atol=5e-14)


@pytest.mark.benchmark(group="cdf")
def test_cdf_determinant(benchmark, points):
    timed(benchmark, determinant_cdf, points[:1000])


@pytest.mark.benchmark(group="ppf")
def test_ppf_table(benchmark, law, probabilities):
    timed(benchmark, law.ppf, probabilities)
    few = probabilities[:20]
    np.testing.assert_allclose(law.ppf(few), determinant_ppf(few), atol=1e-10)


@pytest.mark.benchmark(group="ppf")
def test_ppf_determinant_and_brentq(benchmark, probabilities):
    timed(benchmark, determinant_ppf, probabilities[:20])


@pytest.mark.benchmark(group="one quantile")
def test_one_quantile(benchmark):
    timed(benchmark, lambda p: TracyWidom(beta=1).ppf(p), 0.9)


@pytest.mark.benchmark(group="one quantile")
def test_one_quantile_determinant_and_brentq(benchmark):
    timed(benchmark, determinant_ppf, [0.9])
