"""Fit test: the statistic against its definition, and what it accepts."""

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles
from rmtspec.laws.fit_statistic import FitStatisticNull


@pytest.mark.kernels
@pytest.mark.parametrize("removed", [[], [6.0, 8.0]])
def test_statistic_against_the_slow_reference(removed):
    spec = rmtspec.spectrum(ensembles.spiked(60, 40, removed, rng=4))
    fit = rmtspec.bema(spec, 0.2, 0.001)
    r = fit.n_removed
    assert r == len(removed)
    n, p = spec.n - r, spec.p - r
    expected = naive.fit_statistic(
        list(spec.eigenvalues[:p]), p / n, fit.variance * n / spec.n, 0.2
    )
    assert_allclose(rmtspec.fit_test(spec, fit).statistic, expected, atol=1e-9)  # quad's tolerance


def test_pvalue_is_that_of_the_matrix_without_its_spikes():
    spec = rmtspec.spectrum(ensembles.spiked(300, 200, np.linspace(4, 9, 60), rng=0))
    fit = rmtspec.bema(spec, 0.25, 0.01)
    assert fit.n_removed == 60
    test = rmtspec.fit_test(spec, fit)
    null = FitStatisticNull(240, 140, 0.25)
    assert test.pvalue == null.sf(test.statistic)
    assert abs(test.pvalue - FitStatisticNull(300, 200, 0.25).sf(test.statistic)) > 0.01


def test_accepts_noise_and_rejects_what_is_none():
    noise = rmtspec.spectrum(ensembles.wishart(400, 300, rng=0))
    test = rmtspec.fit_test(noise, rmtspec.bema(noise))
    assert test.accepted
    assert 0.05 < test.pvalue <= 1.0
    uniform = rmtspec.Spectrum(np.linspace(0.1, 3.0, 300), n=400)
    test = rmtspec.fit_test(uniform, rmtspec.bema(uniform))
    assert not test.accepted
    assert test.pvalue < 1e-3


def test_cutoff_replaces_the_level():
    spec = rmtspec.Spectrum(np.linspace(0.1, 3.0, 300), n=400)
    fit = rmtspec.bema(spec)
    found = rmtspec.fit_test(spec, fit).statistic
    assert rmtspec.fit_test(spec, fit, cutoff=found).accepted
    assert not rmtspec.fit_test(spec, fit, cutoff=found * 0.999).accepted
    assert "statistic <= " in repr(rmtspec.fit_test(spec, fit, cutoff=0.1))


def test_size_of_the_test_on_noise():
    """300 draws at level .05: the share's standard error is .013."""
    rejected = 0
    for seed in range(300):
        spec = rmtspec.spectrum(ensembles.wishart(120, 90, rng=seed))
        rejected += not rmtspec.fit_test(spec, rmtspec.bema(spec, refine=False)).accepted
    assert abs(rejected / 300 - 0.05) < 0.04


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cutoff": 0.0}, "gamma"),
        ({"cutoff": 1.5}, "gamma"),
        ({"level": 0.0}, "level"),
        ({"level": "5%"}, "real number"),
    ],
)
def test_bad_options(options, words):
    spec = rmtspec.Spectrum(np.arange(1.0, 30.0), n=40)
    with pytest.raises(rmtspec.RmtspecError, match=words):
        rmtspec.fit_test(spec, rmtspec.bema(spec), **options)


def test_fit_of_another_spectrum():
    spec = rmtspec.Spectrum(np.arange(1.0, 30.0), n=40)
    other = rmtspec.Spectrum(np.arange(1.0, 30.0), n=41)
    with pytest.raises(ValueError, match=r"rmtspec.bema\(spec\)"):
        rmtspec.fit_test(other, rmtspec.bema(spec))
    with pytest.raises(TypeError, match="expected a BulkFit"):
        rmtspec.fit_test(spec, 0.1)
