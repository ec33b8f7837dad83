"""Ensembles: moments, seeds, and the paper's matrix."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import rmtspec
from rmtspec import ensembles


@pytest.mark.parametrize("entries", ensembles.ENTRIES)
def test_mean_and_variance(entries):
    W = ensembles.wishart(400, 300, variance=4.0, entries=entries, degrees=12.0, rng=0)
    assert W.shape == (400, 300)
    assert abs(W.mean()) < 5 * 2 / W.size**0.5
    assert_allclose(W.var(), 4.0, rtol=0.03)
    assert_array_equal(
        W, ensembles.wishart(400, 300, variance=4.0, entries=entries, degrees=12.0, rng=0)
    )


def test_spikes_stand_where_theory_puts_them():
    """s^2 / n -> (1 + t^2)(g + t^2) / t^2 (Benaych-Georges and Nadakuditi, 2012)."""
    t = np.array([3.0, 5.0, 20.0])
    spec = rmtspec.spectrum(ensembles.spiked(2000, 1000, t, variance=0.25, rng=0))
    expected = 0.25 * (1 + t**2) * (0.5 + t**2) / t**2
    assert_allclose(spec.eigenvalues[-3:], expected, rtol=0.02)


def test_example_3_3_is_the_formula_as_printed():
    n = 12
    signal = ensembles.example_3_3(n, rng=0) - np.random.default_rng(0).standard_normal((n, n))
    for i in range(1, n + 1):
        for j in range(1, n + 1):
            expected = (
                np.tan(np.pi / 2 + 1 / (j + 1))
                + np.cos(i) * np.log(i + j + 1)
                + np.sin(j) * np.cos(i / j)
            )
            assert_allclose(signal[i - 1, j - 1], expected, rtol=1e-11)


def test_generators_pass_through():
    generator = np.random.default_rng(5)
    first, second = ensembles.wishart(5, 4, rng=generator), ensembles.wishart(5, 4, rng=generator)
    assert (first != second).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ensembles.wishart(0, 5), "rows"),
        (lambda: ensembles.wishart(5, 2.5), "columns"),
        (lambda: ensembles.wishart(5, 5, variance=0), "positive"),
        (lambda: ensembles.wishart(5, 5, entries="cauchy"), "student-t"),
        (lambda: ensembles.wishart(5, 5, entries="student-t", degrees=2), "infinite"),
        (lambda: ensembles.spiked(5, 3, [1.0] * 4), "at most 3"),
        (lambda: ensembles.spiked(5, 3, [-1.0]), ">= 0"),
        (lambda: ensembles.spiked(5, 3, [[1.0]]), "one dimension"),
        (lambda: ensembles.example_3_3(0), "at least 1"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(rmtspec.RmtspecError, match=words):
        call()
