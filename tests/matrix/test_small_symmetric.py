"""Eigenvalues of stacks of small symmetric matrices, against LAPACK's."""

import numpy as np
import pytest
import scipy.linalg

from rmtspec._kernels import symmetric
from rmtspec.matrix import small_symmetric
from rmtspec.matrix.small_symmetric import stacked_eigvalsh

SIDES = (1, 2, 3, 4, 5, 15, 16, 17, 33, 64, 127, 128)


def grams(count, p, seed=0):
    tall = np.random.default_rng(seed).standard_normal((count, p + 3, p))
    return np.matmul(tall.transpose(0, 2, 1), tall)


def rotated(eigenvalues, seed=0):
    p = len(eigenvalues)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((p, p)))[0]
    return (rotation * eigenvalues) @ rotation.T


def wilkinson(p):
    return np.diag(np.abs(np.arange(p) - p // 2.0)) + np.eye(p, k=1) + np.eye(p, k=-1)


def arrow(p, place):
    matrix = np.zeros((p, p))
    matrix[place] = matrix[:, place] = 1.0
    return matrix


def of_all_sizes(p, smallest):
    entries = np.random.default_rng(2).standard_normal((p, p))
    return entries * 10.0 ** np.random.default_rng(3).integers(smallest, 1, (p, p))


HARD = {
    "zero": np.zeros((5, 5)),
    "identity": np.eye(40),
    "diagonal": np.diag(np.random.default_rng(0).standard_normal(50)),
    "all equal": np.ones((64, 64)),
    "rank 3": rotated(np.r_[np.zeros(57), 1.0, 2.0, 3.0]),
    "20 orders": rotated(10.0 ** np.linspace(-20.0, 0.0, 60)),
    "300 orders": rotated(10.0 ** np.linspace(0.0, 300.0, 60)),
    "a cluster": rotated(np.r_[np.ones(59), 1e-8]),
    "two values": rotated(np.r_[np.ones(30), -np.ones(30)]),
    "Wilkinson": wilkinson(61),
    "glued": scipy.linalg.block_diag(wilkinson(21), wilkinson(21)) + 1e-14,
    "arrow up": arrow(40, 0),
    "arrow down": arrow(40, -1),
    "graded": np.outer(10.0 ** -np.arange(60.0), 10.0 ** -np.arange(60.0)) * (1.0 + np.eye(60)),
    "Hilbert": scipy.linalg.hilbert(30),
    "entries of all sizes": of_all_sizes(50, -170) + of_all_sizes(50, -170).T,
    "products that underflow": of_all_sizes(50, -155) * (1.0 - np.eye(50)) * 1e-150 + np.eye(50),
    "smallest": np.full((6, 6), 5e-324),
    "tiny": np.ones((6, 6)) * 1e-310,
    "huge": grams(1, 20)[0] * 1e306,
    "largest": np.eye(4) * np.finfo(float).max,
}


@pytest.mark.parametrize("p", SIDES)
@pytest.mark.parametrize("count", [1, 2, 3, 16, 19, 37])
def test_stacks_are_those_of_lapack(p, count):
    stack = grams(count, p)
    expected = np.linalg.eigvalsh(stack)
    found = stacked_eigvalsh(stack.copy())
    assert np.abs(found - expected).max() <= 2e-14 * expected.max()


@pytest.mark.parametrize("name", HARD)
def test_hard_matrices_are_those_of_lapack(name):
    matrix = HARD[name] if name == "smallest" else HARD[name] / 2.0 + HARD[name].T / 2.0
    expected = np.linalg.eigvalsh(matrix)
    found = stacked_eigvalsh(matrix[None].copy())[0]
    assert np.abs(found - expected).max() <= 1e-14 * np.abs(expected).max()


@pytest.mark.parametrize("p", [7, 32, 64])
def test_what_stands_beside_a_matrix_changes_no_digit(p):
    stack = grams(37, p)
    stack[5] = np.eye(p)  # converges at once
    stack[6] = wilkinson(p)
    together = stacked_eigvalsh(stack.copy())
    for group in (1, 2, 3, 5, 19):
        parts = [stacked_eigvalsh(stack[i : i + group].copy()) for i in range(0, 37, group)]
        np.testing.assert_array_equal(np.vstack(parts), together)


def test_only_the_lower_triangle_is_read():
    stack = grams(3, 12)
    expected = stacked_eigvalsh(stack.copy())
    changed = np.tril(stack) + np.triu(np.full((12, 12), 7.0), 1)
    np.testing.assert_array_equal(stacked_eigvalsh(changed), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_matrix_with_nan_spoils_no_other(bad):
    stack = grams(18, 9)
    expected = stacked_eigvalsh(stack.copy())
    stack[4, 3, 2] = bad
    found = small_symmetric.eigenvalues_of_stack(stack)
    assert np.isnan(found[4]).any()
    np.testing.assert_array_equal(np.delete(found, 4, 0), np.delete(expected, 4, 0))


def test_what_does_not_converge_goes_to_lapack(monkeypatch):
    stack = grams(3, 12)
    expected = np.linalg.eigvalsh(stack)
    real = small_symmetric.eigenvalues_of_stack

    def failing(matrices):
        values = real(matrices)
        values[1] = np.nan
        return values

    monkeypatch.setattr(small_symmetric, "eigenvalues_of_stack", failing)
    np.testing.assert_allclose(stacked_eigvalsh(stack.copy()), expected, rtol=1e-12)


@pytest.mark.kernels
def test_small_stacks_by_the_kernel_itself():
    stack = np.concatenate([grams(4, 6), [np.eye(6), wilkinson(6)]])
    found = small_symmetric.eigenvalues_of_stack(stack.copy())
    np.testing.assert_allclose(found, np.linalg.eigvalsh(stack), rtol=0.0, atol=1e-13)


@pytest.mark.kernels
def test_too_few_sweeps_are_told(monkeypatch):
    step = getattr(
        symmetric.eigenvalues_side_by_side, "py_func", symmetric.eigenvalues_side_by_side
    )
    values, beside = np.arange(6.0)[:, None] / 6.0, np.r_[np.full(5, 0.1), 0.0][:, None]
    assert step(values.copy(), beside.copy(), np.empty((7, 1)))
    monkeypatch.setattr(symmetric, "_MOST_SWEEPS", 0)
    assert not step(values.copy(), beside.copy(), np.empty((7, 1)))
