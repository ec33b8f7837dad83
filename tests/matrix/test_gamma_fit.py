"""The gamma fit: shapes recovered, the null of its statistic, what has no bulk."""

import json
import math

import numpy as np
import pytest

import rmtspec
from rmtspec.errors import InvalidTypeError, InvalidValueError


def uneven(n, p, shape, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, p)) * np.sqrt(rng.gamma(shape, 1.0 / shape, p))


@pytest.mark.parametrize(("shape", "low", "high"), [(1, 0.9, 1.1), (2, 1.8, 2.2), (5, 4.4, 5.6)])
def test_recovers_the_shape(shape, low, high):
    """Median of 8 matrices 400 x 300: sd of one .06, .13 and .5."""
    specs = [rmtspec.spectrum(uneven(400, 300, shape, seed)) for seed in range(8)]
    fits = [rmtspec.fit_gamma(spec, draws=0) for spec in specs]
    assert low < np.median([fit.shape for fit in fits]) < high
    assert np.median([fit.variance for fit in fits]) == pytest.approx(1.0, abs=0.1)


def test_transposed_scaled_and_bulk_of_equal_variances():
    W = uneven(120, 80, 2.0, 0)
    fit, other = (
        rmtspec.fit_gamma(rmtspec.spectrum(matrix), draws=0) for matrix in (W, 10.0 * W.T)
    )
    assert other.shape == pytest.approx(fit.shape, rel=1e-3)
    assert other.variance == pytest.approx(100.0 * fit.variance, rel=1e-4)
    flat = rmtspec.fit_gamma(rmtspec.spectrum(rmtspec.ensembles.wishart(300, 200, rng=2)), draws=0)
    assert flat.shape > 30.0


def test_shape_is_infinite_where_equal_variances_fit_best():
    law = rmtspec.MarchenkoPastur(0.5)
    spec = rmtspec.Spectrum(law.ppf((np.arange(100) + 0.5) / 100), n=200)
    fit = rmtspec.fit_gamma(spec, draws=3)
    assert fit.shape == math.inf
    assert fit.law == rmtspec.MarchenkoPastur(0.5, fit.variance)
    assert fit.variance == pytest.approx(1.0)
    assert fit.pvalue == 1.0
    assert fit.to_dict()["shape"] is None


def test_pvalue_is_of_the_fitted_law_and_deterministic():
    spec = rmtspec.spectrum(uneven(120, 80, 2.0, 1))
    fit = rmtspec.fit_gamma(spec, draws=9)
    assert fit.pvalue > 0.1
    assert fit.pvalue == rmtspec.fit_gamma(spec, draws=9).pvalue
    assert fit.pvalue * 10 == pytest.approx(round(fit.pvalue * 10))
    humps = np.concatenate([np.linspace(0.5, 0.6, 50), np.linspace(2.0, 2.1, 50)])
    assert rmtspec.fit_gamma(rmtspec.Spectrum(humps, n=200), draws=9).pvalue == 0.1
    assert math.isnan(rmtspec.fit_gamma(spec, draws=0).pvalue)


def test_statistic_is_the_distance_from_the_law():
    spec = rmtspec.spectrum(uneven(60, 40, 1.0, 3))
    fit = rmtspec.fit_gamma(spec, draws=0)
    ranks = np.arange(8, 33)
    gap = np.abs(fit.law.cdf(spec.eigenvalues[ranks - 1]) - (ranks - 0.5) / 40).max()
    assert fit.statistic == pytest.approx(gap, rel=1e-12)


@pytest.mark.parametrize("W", [np.zeros((20, 20)), np.ones((30, 20)), np.arange(3.0)[None]])
def test_no_bulk(W):
    fit = rmtspec.fit_gamma(rmtspec.spectrum(W))
    assert fit.reason == "no bulk"
    assert fit.law is None
    assert math.isnan(fit.shape)
    assert "no bulk" in repr(fit)
    json.dumps(fit.to_dict(), allow_nan=False)


def test_words():
    fit = rmtspec.fit_gamma(rmtspec.spectrum(uneven(60, 40, 1.0, 3)), draws=0)
    assert "not asked for" in repr(fit)
    assert "/ p)" in repr(fit)
    json.dumps(fit.to_dict(), allow_nan=False)


def test_bad_input():
    spec = rmtspec.Spectrum(np.ones(20), n=30)
    with pytest.raises(InvalidTypeError, match="expected a Spectrum"):
        rmtspec.fit_gamma(np.ones((3, 3)))
    for options in ({"alpha": 0.5}, {"draws": -1}, {"rng": -1}):
        with pytest.raises(InvalidValueError):
            rmtspec.fit_gamma(spec, **options)
    with pytest.raises(InvalidTypeError, match="seed"):
        rmtspec.fit_gamma(spec, rng="zero")


@pytest.mark.parametrize(("n", "p"), [(1_000_000, 20), (20, 20), (17, 16)])
def test_extreme_sides(n, p):
    spec = rmtspec.Spectrum(np.random.default_rng(0).gamma(2.0, 0.5, p), n=n)
    fit = rmtspec.fit_gamma(spec, draws=1)
    assert 0.0 < fit.variance < 3.0
    assert 0.0 < fit.statistic < 0.5
