"""Eigenvalues of large matrices against NumPy's eigvalsh of the same matrix.

The spectrum of a matrix is its Gram matrix, which any way needs, and the eigenvalues of that. The
time of the Gram matrix is subtracted.
"""

import statistics
import time

import numpy as np
import pytest
from scipy.linalg.blas import dsyrk

import rmtspec
from rmtspec._lapack import in_two_stages, used

#: Largest ratio, and pairs of calls, by side.
LIMITS = {4096: (0.80, 5), 6144: (0.70, 3), 8192: (0.60, 1)}


def noise(side):
    return np.random.default_rng(0).standard_normal((side, side))


def gram(W):
    return dsyrk(1.0, W.T, trans=0)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.fixture(autouse=True)
def two_stages():
    if not in_two_stages(4096):
        pytest.skip(f"no library with two stages: {used()}")


def less_the_gram(paired, name, ours, side, *, limit, rounds):
    W = noise(side)
    square = W.T @ W
    ours(W[: side // 4, : side // 4])  # compiled, loaded
    products = statistics.median(seconds(lambda: gram(W)) for _ in range(3))
    paired(
        name, lambda: ours(W), lambda: np.linalg.eigvalsh(square), limit=limit, rounds=rounds,
        less=products, warm=False,
    )  # fmt: skip


@pytest.mark.parametrize("side", LIMITS)
def test_spectrum_less_its_gram_matrix(paired, side):
    limit, rounds = LIMITS[side]
    name = f"spectrum of {side} x {side}, less the Gram matrix / numpy eigvalsh"
    less_the_gram(paired, name, rmtspec.spectrum, side, limit=limit, rounds=rounds)


def test_single_precision(paired):
    name = "the same of 4096 x 4096 in float32 / numpy eigvalsh in float64"

    def ours(W):
        return rmtspec.spectrum(W, precision="float32")

    less_the_gram(paired, name, ours, 4096, limit=0.48, rounds=5)


@pytest.mark.parametrize("side", [1024, 2048])
def test_smaller_sides_lose_nothing(paired, side):
    name = f"spectrum of {side} x {side}, less the Gram matrix / numpy eigvalsh"
    less_the_gram(paired, name, rmtspec.spectrum, side, limit=1.15, rounds=9)
