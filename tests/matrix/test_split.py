"""Split: the best approximation of its rank, in the matrix's dtype."""

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles


def truncated(W, k):
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    return (U[:, :k] * s[:k]) @ Vt[:k]


@pytest.mark.parametrize("shape", [(120, 80), (80, 120), (90, 90)])
@pytest.mark.parametrize("k", [1, 5, 80])
def test_equals_the_truncated_svd(shape, k):
    W = ensembles.spiked(*shape, [4.0, 6.0, 9.0, 15.0, 30.0], rng=0)
    parts = rmtspec.split(W, k)
    assert parts.outer.shape == (shape[0], k)
    assert parts.inner.shape == (k, shape[1])
    assert_allclose(parts.outer @ parts.inner, truncated(W, k), atol=1e-10)
    s = np.linalg.svd(W, compute_uv=False)
    assert_allclose(parts.singular_values, s[:k], rtol=1e-10)
    assert_allclose(parts.error**2, (s[k:] ** 2).sum() / (s**2).sum(), rtol=1e-9, atol=1e-20)
    assert_allclose(parts.discarded_energy, parts.error**2)
    # U sqrt(S) and sqrt(S) V^T: both Gram matrices are S
    assert_allclose(parts.outer.T @ parts.outer, np.diag(s[:k]), atol=1e-8 * s[0])
    assert_allclose(parts.inner @ parts.inner.T, np.diag(s[:k]), atol=1e-8 * s[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtype_is_kept_and_its_rounding_counted(dtype):
    W = ensembles.spiked(60, 40, [5.0], rng=0).astype(dtype)
    parts = rmtspec.split(W, 40)
    assert parts.outer.dtype == parts.inner.dtype == W.dtype
    product = parts.outer.astype(float) @ parts.inner.astype(float)
    relative = np.linalg.norm(W.astype(float) - product) / np.linalg.norm(W.astype(float))
    assert_allclose(parts.error, relative, rtol=1e-6, atol=1e-18)
    assert parts.error < max(4 * float(ml_dtypes.finfo(dtype).eps), 2e-14)


def test_integers_give_float64():
    W = np.arange(12).reshape(4, 3)
    assert rmtspec.split(W, 3).outer.dtype == np.float64


def test_wide_range_and_rank_deficient():
    W = ensembles.example_3_3(200, rng=0)
    best = np.linalg.norm(W - truncated(W, 12)) / np.linalg.norm(W)
    assert_allclose(rmtspec.split(W, 12).error, best, rtol=1e-6)
    low = np.outer(np.arange(1.0, 31.0), np.ones(20))
    parts = rmtspec.split(low, 20)
    assert np.isfinite(parts.outer).all()
    assert_allclose(parts.outer @ parts.inner, low, atol=1e-10)
    zero = rmtspec.split(np.zeros((5, 4)), 2)
    assert zero.error == 0.0
    assert not (zero.outer @ zero.inner).any()


def test_input_moment_lowers_the_output_error():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((40, 30))
    X = rng.standard_normal((30, 5)) @ rng.standard_normal((5, 400))
    X += 0.05 * rng.standard_normal(X.shape)
    moment = X @ X.T / X.shape[1]

    def output_error(parts):
        return np.linalg.norm((W - parts.outer @ parts.inner) @ X) / np.linalg.norm(W @ X)

    aware, free = rmtspec.split(W, 5, input_moment=moment), rmtspec.split(W, 5)
    assert output_error(aware) < 0.1 < output_error(free)
    assert_allclose(aware.output_error, output_error(aware), rtol=1e-9)
    assert np.isnan(free.output_error)
    assert aware.error > free.error
    norms = np.linalg.norm(aware.outer, axis=0), np.linalg.norm(aware.inner, axis=1)
    assert_allclose(*norms)
    identity = rmtspec.split(W, 5, input_moment=np.eye(30))
    assert_allclose(identity.outer @ identity.inner, truncated(W, 5), atol=1e-10)


def test_rank_deficient_moment():
    W = ensembles.wishart(20, 10, rng=0)
    x = np.arange(1.0, 11.0)
    parts = rmtspec.split(W, 1, input_moment=np.outer(x, x))
    assert_allclose(parts.outer @ (parts.inner @ x), W @ x, rtol=1e-2)


@pytest.mark.parametrize(
    ("rank", "words"),
    [(0, "no signal"), (41, "from 1 to 40"), (-1, "from 1"), (2.0, "whole"), ("3", "whole")],
)
def test_bad_ranks(rank, words):
    with pytest.raises(rmtspec.RmtspecError, match=words):
        rmtspec.split(np.ones((60, 40)), rank)


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (np.eye(3), r"expected \(4, 4\)"),
        (np.zeros((4, 4)), "all zero"),
        (np.triu(np.ones((4, 4))), "not symmetric"),
        (-np.eye(4), "negative"),
        (np.full((4, 4), np.nan), "nan"),
    ],
)
def test_bad_moments(moment, words):
    with pytest.raises(rmtspec.RmtspecError, match=words):
        rmtspec.split(np.ones((5, 4)), 1, input_moment=moment)


def test_bad_matrix():
    W = np.ones((5, 4))
    W[1, 2] = np.nan
    with pytest.raises(rmtspec.RmtspecError, match=r"\[1, 2\]"):
        rmtspec.split(W, 1)


def test_repr_and_dict():
    parts = rmtspec.split(ensembles.spiked(400, 300, [3, 20], rng=0), 2)
    assert "1,400 instead of 120,000" in repr(parts)
    row = parts.to_dict()
    assert (row["rank"], row["parameters"], row["output_error"]) == (2, 1400, None)
