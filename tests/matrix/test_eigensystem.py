"""Eigensystem and residual, against the SVD."""

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose

from rmtspec.matrix.eigensystem import Eigensystem, residual
from rmtspec.matrix.entries import Entries, Scales

SHAPES = [(40, 25), (25, 40), (30, 30), (200, 8), (9, 1), (2, 2), (17, 16)]


def case(shape, seed=0, scaled=True):
    """A matrix, its entries, scales, and the scaled matrix with its longer side first."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal(shape) + 3 * np.outer(*(rng.standard_normal(side) for side in shape))
    entries = Entries(W)
    scales = Scales(np.ones(entries.n), np.ones(entries.p))
    if scaled:
        scales = Scales(*(np.exp(rng.normal(size=side)) for side in (entries.n, entries.p)))
    tall = W if shape[0] >= shape[1] else W.T
    return W, entries, scales, tall / np.outer(*scales)


@pytest.mark.parametrize("shape", SHAPES)
def test_squares_and_vectors_against_the_svd(shape):
    _, entries, scales, Z = case(shape)
    system = Eigensystem(entries, scales)
    _, singular, right = np.linalg.svd(Z, full_matrices=False)
    assert_allclose(system.squares[::-1], singular**2, rtol=1e-10, atol=1e-12 * singular[0] ** 2)
    assert_allclose(system.eigenvalues.values * entries.n, system.squares)
    for k in {1, (len(singular) + 1) // 2, len(singular)}:
        vectors = system.vectors(k)
        assert_allclose(np.abs(vectors.T @ right[:k].T), np.eye(k), atol=1e-8)


def test_the_gram_matrix_is_rounding_where_one_value_is_huge():
    W, entries, scales, _ = case((60, 40), scaled=False)
    W[:] = np.random.default_rng(1).standard_normal(W.shape)
    W[0] *= 1e9
    entries = Entries(W)
    system = Eigensystem(entries, scales)
    assert system.eigenvalues.method == "svd"
    _, singular, right = np.linalg.svd(W, full_matrices=False)
    assert_allclose(system.squares[::-1], singular**2, rtol=1e-6)
    for _ in range(2):
        assert_allclose(np.abs(np.sum(system.vectors(3) * right[:3].T, axis=0)), 1, rtol=1e-8)
        system.forget()


def test_equal_values_have_orthonormal_vectors():
    rng = np.random.default_rng(0)
    W = np.kron(np.eye(10), np.ones((6, 4))) + 1e-9 * rng.standard_normal((60, 40))
    vectors = Eigensystem(Entries(W), Scales(np.ones(60), np.ones(40))).vectors(10)
    assert_allclose(vectors.T @ vectors, np.eye(10), atol=1e-10)
    assert_allclose(np.linalg.norm(W @ vectors, axis=0), np.sqrt(24), rtol=1e-6)


def test_what_was_forgotten_is_made_again_the_same():
    _, entries, scales, _ = case((50, 30))
    system = Eigensystem(entries, scales)
    before = system.vectors(4)
    assert system.vectors(4).tolist() == before.tolist()
    system.forget()
    assert system.vectors(4).tolist() == before.tolist()


@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.parametrize("shape", [(40, 25), (25, 40), (30, 30)])
def test_residual_against_the_slow_reference(shape, k, monkeypatch):
    W, entries, scales, Z = case(shape)
    monkeypatch.setattr("rmtspec.matrix.eigenvalues._BLOCK_BYTES", 8 * 25 * 7)
    left_over, share = residual(entries, scales, Eigensystem(entries, scales), k)
    assert_allclose(left_over, naive.residual(Z, k), rtol=1e-9, atol=1e-9)
    left, singular, right = np.linalg.svd(Z, full_matrices=False)
    parts = (left[:, :k] * singular[:k]) @ right[:k] * np.outer(*scales)
    tall = W if shape[0] >= shape[1] else W.T
    assert share == pytest.approx(1 - np.square(tall - parts).sum() / np.square(W).sum(), abs=1e-12)
    single, _ = residual(entries, scales, Eigensystem(entries, scales), k, dtype=np.float32)
    assert single.dtype == np.float32
    assert_allclose(single, left_over, rtol=1e-6, atol=1e-6)


def test_leverage_near_one_is_held():
    """A row that is a component by itself: its leverage is 1, and 1 / (1 - 1) is no factor."""
    W = np.random.default_rng(0).standard_normal((60, 40))
    W[3] *= 1e3
    entries = Entries(W)
    ones = Scales(np.ones(60), np.ones(40))
    left_over, _ = residual(entries, ones, Eigensystem(entries, ones), 1)
    assert_allclose(left_over, naive.residual(W, 1), rtol=1e-6, atol=1e-7)
    assert np.abs(left_over[3]).max() < 1.0
