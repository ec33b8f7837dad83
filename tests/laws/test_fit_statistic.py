"""Null law of the fit statistic: its own shape, and the size of the test it gives."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles
from rmtspec.laws.fit_statistic import FitStatisticNull


@pytest.mark.parametrize("quantiles", ["midpoint", "paper"])
@pytest.mark.parametrize(
    ("n", "p", "alpha"),
    [
        (100, 100, 0.2),
        (4000, 17, 0.4),
        (9000, 9000, 0.05),
        (12, 9, 0.3),
        (33, 33, 0.49),  # two ranks compared
        (2, 2, 0.2),
        (10**8, 20000, 0.05),
        (500, 500, 1e-6),
    ],
)
def test_shape(n, p, alpha, quantiles):
    null = FitStatisticNull(n, p, alpha, quantiles)
    s = np.linspace(0.0, 20.0 / p, 400)
    sf = null.sf(s)
    assert sf[0] == 1.0
    assert (np.diff(sf) < 0).all()
    assert_allclose(null.cdf(s), 1 - sf)
    levels = np.array([0.9999, 0.97, 0.5, 0.05, 0.01, 1e-5, 1e-9])
    assert_allclose(null.sf(null.isf(levels)), levels, rtol=1e-9)
    assert_allclose(null.ppf(1 - levels), null.isf(levels), rtol=1e-6)
    assert (null.isf(0.0), null.isf(1.0)) == (np.inf, 0.0)
    assert np.isnan(null.isf([1.5, -0.1, np.nan])).all()
    assert np.isnan(null.sf(np.nan))


def test_shapes_and_types():
    null = FitStatisticNull(300, 200, 0.25)
    for method in (null.sf, null.cdf, null.isf, null.ppf):
        assert isinstance(method(0.01), float)
        assert isinstance(method(np.float32(0.25)), float)
        block = np.linspace(0.001, 0.9, 12).reshape(2, 2, 3)
        assert_allclose(
            method(block.tolist()), [[[method(v) for v in r] for r in b] for b in block]
        )
        assert method([]).shape == (0,)
        with pytest.raises(rmtspec.RmtspecError, match="expected real numbers"):
            method(1j)


def test_published_points():
    """95 and 99 % points measured independently with 784x1000, 250x500, 200x200 at alpha .25."""
    for n, p, points in [
        (200, 200, (0.0121, 0.0137)),
        (500, 250, (0.0099, 0.0111)),
        (1000, 784, (0.0038, 0.0044)),
    ]:
        assert_allclose(FitStatisticNull(n, p, 0.25).isf([0.05, 0.01]), points, rtol=0.035)


def test_grows_like_the_logarithm():
    sizes = np.array([100, 200, 400, 800, 1600, 3200, 6400, 12800])
    points = np.array([p * FitStatisticNull(p, p, 0.25).isf(0.05) for p in sizes])
    assert_allclose(points, 0.164 + 0.416 * np.log(sizes), rtol=0.05)
    steps = np.diff(points)
    assert_allclose(steps[-1], steps[-2], rtol=1e-6)  # linear in log p beyond the table


@pytest.mark.parametrize("quantiles", ["midpoint", "paper"])
def test_beyond_the_table_the_law_only_moves(quantiles):
    """Each quantile of p s rises by the same amount, so the tail keeps its length."""
    levels = [0.9, 0.5, 0.05, 0.001, 1e-6]
    at_end = 2048 * FitStatisticNull(4096, 2048, 0.1, quantiles).isf(levels)
    beyond = 16384 * FitStatisticNull(32768, 16384, 0.1, quantiles).isf(levels)
    # 1e-3: the first rank of the window, rounded to a whole one, is another share of p
    assert_allclose(beyond - at_end, (beyond - at_end)[0], rtol=1e-3)
    assert 0.37 < (beyond - at_end)[0] / np.log(8) < 0.46  # theory: below sqrt(2) / pi


def size_of_test(shape, alpha, quantiles, draws, entries="gaussian", strengths=()):
    pvalues = []
    for seed in range(draws):
        W = ensembles.spiked(*shape, strengths, entries=entries, rng=[seed, *shape])
        spec = rmtspec.spectrum(W)
        fit = rmtspec.bema(spec, alpha, 1e-4, quantiles=quantiles, refine=bool(strengths))
        pvalues.append(rmtspec.fit_test(spec, fit).pvalue)
    return np.mean(np.array(pvalues) < 0.05), np.mean(np.array(pvalues) < 0.01)


def test_size_quickly():
    """400 draws: standard errors .011 and .005, so a right table fails once in thousands."""
    at_5, at_1 = size_of_test((70, 55), 0.22, "midpoint", 400)
    assert abs(at_5 - 0.05) < 0.04
    assert abs(at_1 - 0.01) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "alpha", "quantiles", "draws"),
    [
        ((40, 37), 0.2, "midpoint", 8000),
        ((150, 20), 0.11, "midpoint", 8000),
        ((300, 110), 0.35, "paper", 5000),
        ((260, 210), 0.2, "midpoint", 3000),
    ],
)
def test_size_off_the_grid(shape, alpha, quantiles, draws):
    """Within .008 and .004 of nominal, plus three standard errors of the draws."""
    at_5, at_1 = size_of_test(shape, alpha, quantiles, draws)
    assert abs(at_5 - 0.05) < 0.008 + 3 * (0.05 * 0.95 / draws) ** 0.5
    assert abs(at_1 - 0.01) < 0.004 + 3 * (0.01 * 0.99 / draws) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("entries", ["uniform", "rademacher"])
def test_size_with_other_entries(entries):
    """600 draws: standard error .009."""
    assert abs(size_of_test((250, 500), 0.25, "midpoint", 600, entries)[0] - 0.05) < 0.035


@pytest.mark.slow
def test_size_after_spikes_are_removed():
    """300 draws of 500x400 with 10 spikes of strength 20: standard error .013."""
    found = size_of_test((500, 400), 0.2, "midpoint", 300, strengths=[20.0] * 10)
    assert abs(found[0] - 0.05) < 0.045


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((5, 6, 0.2), "larger side"),
        ((6, 0, 0.2), "at least 1"),
        ((6, 5, 0.5), "alpha"),
        ((6, 5, 0.2, "upper"), "midpoint, paper"),
        ((6.0, 5, 0.2), "whole number"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(rmtspec.RmtspecError, match=words):
        FitStatisticNull(*arguments)
