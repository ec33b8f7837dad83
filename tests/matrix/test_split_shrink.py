"""Shrinkage: nearer to the planted signal in its own norm, and errors that stay true."""

import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize_scalar

import rmtspec
from rmtspec import ensembles

NORMS = {"frobenius": "fro", "operator": 2, "nuclear": "nuc"}


def planted(rows, columns, strengths, seed, variance=1.0):
    """Return a matrix and the signal in it."""
    noise = ensembles.wishart(rows, columns, variance=variance, rng=seed)
    W = ensembles.spiked(rows, columns, strengths, variance=variance, rng=seed)
    return W, W - noise  # the noise is drawn first, from the same seed


def pair(theta, g):
    """Return y, and the matrix of the observed component in the basis of the true one."""
    c = math.sqrt((theta**4 - g) / (theta**4 + theta**2))
    d = math.sqrt((theta**4 - g) / (theta**4 + g * theta**2))
    y = math.sqrt((1 + theta**2) * (g + theta**2)) / theta
    return y, np.outer([c, math.sqrt(1 - c * c)], [d, math.sqrt(1 - d * d)])


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(("n", "p"), [(400, 400), (400, 100)])
@pytest.mark.parametrize("times", [1.05, 1.5, 3.0])
def test_values_minimise_the_limit_of_the_loss(name, n, p, times):
    g = p / n
    theta = times * g**0.25
    y, observed = pair(theta, g)
    scale = math.sqrt(n * 2.0)
    W = np.full((n, p), y * scale / math.sqrt(n * p))  # one component, and nothing else
    got = rmtspec.split(W, 1, shrink=name, noise_variance=2.0).singular_values[0] / scale

    def loss(value):
        return np.linalg.norm(np.diag([theta, 0.0]) - value * observed, NORMS[name])

    best = minimize_scalar(loss, bounds=(0.0, 1.5 * y), method="bounded").fun
    assert loss(got) == pytest.approx(min(best, loss(0.0)), rel=1e-6)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(300, 200), (150, 400)])
def test_nearer_to_the_signal_than_truncation(name, shape):
    limit = (min(shape) / max(shape)) ** 0.25
    for seed in range(5):
        W, signal = planted(*shape, np.array([1.05, 1.5, 2, 3, 8]) * limit, seed, variance=4.0)
        shrunk, plain = rmtspec.split(W, 5, shrink=name), rmtspec.split(W, 5)
        ours, theirs = (
            np.linalg.norm(parts.outer @ parts.inner - signal, NORMS[name])
            for parts in (shrunk, plain)
        )
        assert ours < 0.9 * theirs  # 0.68 to 0.85
        assert shrunk.noise_variance == pytest.approx(4.0, rel=0.03)


def test_is_optimal_at_1000():
    W, signal = planted(1000, 1000, [1.2, 1.5, 2, 3, 6], 0)
    parts = rmtspec.split(W, 5, shrink="frobenius")
    U, _, Vt = np.linalg.svd(W)
    oracle = np.einsum("ij,ij->j", U[:, :5], signal @ Vt[:5].T)
    least = np.linalg.norm(signal - (U[:, :5] * oracle) @ Vt[:5])
    assert np.linalg.norm(signal - parts.outer @ parts.inner) < 1.005 * least  # truncation: 1.32
    assert_allclose(parts.singular_values, oracle, rtol=0.15)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_errors_are_those_of_the_factors(name, dtype):
    W = ensembles.spiked(60, 90, [1.5, 5.0, 9.0], rng=0).astype(dtype)
    parts = rmtspec.split(W, 3, shrink=name)
    assert parts.outer.dtype == parts.inner.dtype == dtype
    plain = W.astype(float)
    product = parts.outer.astype(float) @ parts.inner.astype(float)
    error = np.linalg.norm(plain - product) / np.linalg.norm(plain)
    assert_allclose(parts.error, error, rtol=1e-5)
    assert_allclose(parts.discarded_energy, parts.error**2)
    assert parts.error > rmtspec.split(W, 3).error
    assert_allclose(
        parts.singular_values, np.linalg.svd(product)[1][:3], rtol=5e-3, atol=1e-2
    )  # the atol is for a value that is 0


def test_strong_signal_hardly_changes_and_its_error_keeps_its_digits():
    rng = np.random.default_rng(0)
    signal = 1e8 * rng.standard_normal((80, 2)) @ rng.standard_normal((2, 50))
    W = signal + rng.standard_normal((80, 50))
    parts = rmtspec.split(W, 2, shrink="frobenius")
    assert parts.noise_variance == pytest.approx(1.0, rel=0.1)  # the difference has no digits
    assert_allclose(parts.singular_values, np.linalg.svd(signal)[1][:2], rtol=1e-6)
    gap = np.linalg.norm(W - parts.outer @ parts.inner) / np.linalg.norm(W)
    assert_allclose(parts.error, gap, rtol=1e-6)


def test_low_rank_without_noise_is_left():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 30))
    parts = rmtspec.split(W, 3, shrink="operator")
    assert_allclose(parts.outer @ parts.inner, W, atol=1e-12)
    zero = rmtspec.split(np.zeros((6, 4)), 2, shrink="nuclear")
    assert zero.error == 0.0
    assert not (zero.outer @ zero.inner).any()


def test_noise_becomes_zero_and_a_rank_too_large_is_borne():
    W = ensembles.spiked(300, 200, [3.0, 5.0], rng=0)
    exact, more = (rmtspec.split(W, k, shrink="frobenius") for k in (2, 40))
    assert exact.noise_variance == pytest.approx(more.noise_variance, rel=1e-6)
    assert_allclose(more.singular_values[:2], exact.singular_values, rtol=1e-6)
    assert not more.singular_values[2:].any()
    assert not more.outer[:, 2:].any()
    assert not more.inner[2:].any()
    assert more.rank == 40


def test_zero_rows_carry_no_noise():
    W = ensembles.spiked(200, 150, [2.0, 4.0], rng=0)
    padded = np.zeros((400, 160))
    padded[::2, :150] = W
    parts, expected = (rmtspec.split(each, 2, shrink="nuclear") for each in (padded, W))
    assert_allclose(parts.singular_values, expected.singular_values, rtol=1e-10)
    assert parts.noise_variance == pytest.approx(expected.noise_variance)


def test_transpose_scale_layout_and_input_untouched():
    W = ensembles.spiked(90, 120, [2.0, 4.0], rng=0)
    kept = W.copy()
    parts = rmtspec.split(W, 2, shrink="frobenius")
    assert (kept == W).all()
    for other, factor in ((W.T, 1.0), (1e-3 * W, 1e-3), (np.asfortranarray(W), 1.0)):
        values = rmtspec.split(other, 2, shrink="frobenius").singular_values
        assert_allclose(values, factor * parts.singular_values, rtol=1e-9)


def test_given_variance_and_what_the_result_says():
    W = ensembles.spiked(120, 80, [4.0], rng=0)
    parts = rmtspec.split(W, 80, shrink="operator", noise_variance=1.3)
    assert parts.noise_variance == 1.3
    assert np.count_nonzero(parts.singular_values) == 1
    assert "operator norm, noise variance 1.3" in repr(parts)
    assert parts.to_dict()["shrink"] == "operator"
    assert pickle.loads(pickle.dumps(parts)).shrink == "operator"
    plain = rmtspec.split(W, 2)
    assert plain.shrink is None
    assert math.isnan(plain.noise_variance)
    assert "shrink" not in plain.to_dict()
    assert "shrunk" not in repr(plain)


def test_profile_is_still_nearer_than_truncation():
    rng = np.random.default_rng(0)
    _, signal = planted(300, 200, [3.0, 5.0], 0)
    x, y = np.exp(0.7 * rng.standard_normal(300)), np.exp(0.7 * rng.standard_normal(200))
    W = signal + rng.standard_normal((300, 200)) * np.sqrt(np.outer(x, y))
    for name, norm in NORMS.items():
        shrunk, plain = rmtspec.split(W, 2, shrink=name), rmtspec.split(W, 2)
        ours = np.linalg.norm(shrunk.outer @ shrunk.inner - signal, norm)
        assert ours < np.linalg.norm(plain.outer @ plain.inner - signal, norm)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shrink": "spectral"}, "`shrink` is 'spectral'; expected one of frobenius, operator"),
        ({"shrink": "frobenius", "input_moment": np.eye(80)}, "`shrink` and `input_moment` are"),
        ({"shrink": "nuclear", "noise_variance": 0.0}, "`noise_variance` is 0.0; expected a pos"),
        ({"shrink": "nuclear", "noise_variance": math.nan}, "`noise_variance` is nan"),
        ({"noise_variance": 1.0}, "`noise_variance` is given without `shrink`"),
        ({"shrink": "operator", "rank": 80}, "`rank` is 80 with `shrink`, and the matrix has 80"),
    ],
)
def test_options_that_do_not_go_together(options, words):
    W = ensembles.spiked(120, 80, [4.0], rng=0)
    with pytest.raises(rmtspec.errors.InvalidOptionError, match=words):
        rmtspec.split(W, options.pop("rank", 2), **options)
