"""BEMA on matrices whose truth is known. Seeds are fixed; false-alarm rates are stated."""

import ml_dtypes
import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import kstest

import rmtspec
from rmtspec import ensembles

SIZES = [(784, 1000), (250, 500), (200, 200)]


def fit_of(W, **options):
    return rmtspec.bema(rmtspec.spectrum(W), **options)


@pytest.mark.kernels
@pytest.mark.parametrize("quantiles", ["midpoint", "paper"])
@pytest.mark.parametrize("shape", [(60, 40), (50, 50), (30, 120)])
def test_plain_fit_against_the_slow_reference(shape, quantiles):
    spec = rmtspec.spectrum(ensembles.spiked(*shape, [4.0], rng=3))
    fit = rmtspec.bema(spec, 0.25, 0.1, quantiles=quantiles, refine=False)
    variance, threshold = naive.bema(
        list(spec.eigenvalues), spec.n, 0.25, 0.450143289058251, quantiles
    )
    assert_allclose(fit.variance, variance, rtol=1e-9)  # brentq's tolerance in the reference
    assert_allclose(fit.threshold, threshold, rtol=1e-9)
    assert fit.n_spikes == sum(value > threshold for value in spec.eigenvalues)
    assert_allclose(fit.bulk_edge, variance * (1 + spec.ratio**0.5) ** 2, rtol=1e-9)


def test_threshold_is_the_paper_s_at_ratio_one():
    spec = rmtspec.spectrum(ensembles.wishart(200, 200, rng=0))
    fit = rmtspec.bema(spec, beta=0.1, refine=False)
    expected = fit.variance * (4 + 2 ** (4 / 3) * 0.450143289058251 * 200 ** (-2 / 3))
    assert_allclose(fit.threshold, expected, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SIZES)
def test_false_spikes_on_pure_noise(shape):
    """600 draws: the share's own standard error is .012 at .10, .004 at .01."""
    draws = 600
    found = np.zeros(2)
    for seed in range(draws):
        spec = rmtspec.spectrum(ensembles.wishart(*shape, rng=seed))
        found += [rmtspec.bema(spec, beta=beta).n_spikes > 0 for beta in (0.1, 0.01)]
    assert abs(found[0] / draws - 0.10) <= 0.03
    assert abs(found[1] / draws - 0.01) <= 0.01


@pytest.mark.parametrize("shape", [(1000, 1000), (2000, 500)])
@pytest.mark.parametrize(
    ("strengths", "tolerance"),
    [
        ([3.0] * 5, 0.01),
        ([20.0] * 5, 0.01),
        ([100.0] * 5, 0.01),
        (np.linspace(3.0, 10.0, 100), 0.01),
        (np.linspace(3.0, 10.0, 200), 0.02),
        (np.linspace(3.0, 10.0, 350), 0.02),
        ([200.0, *[2.5] * 5], 0.01),
    ],
    ids=["5x3", "5x20", "5x100", "100", "200", "350", "200 beside 2.5"],
)
def test_planted_spikes_are_found_and_none_invented(shape, strengths, tolerance):
    """beta .01: a false spike would come in 1 % of draws; the seed is fixed."""
    fit = fit_of(ensembles.spiked(*shape, strengths, rng=7), beta=0.01)
    assert fit.refinement == "refined"
    assert abs(fit.variance - 1.0) <= tolerance
    assert fit.n_spikes == len(strengths)


@pytest.mark.parametrize("entries", ["uniform", "rademacher"])
def test_other_entries(entries):
    W = ensembles.spiked(784, 1000, [3.0, 5.0, 20.0], entries=entries, rng=2)
    fit = fit_of(W, beta=0.01)
    assert fit.n_spikes == 3
    assert abs(fit.variance - 1.0) < 0.01


def test_invariance_to_precision_scale_and_transposition():
    W = ensembles.spiked(600, 400, [3.0, 4.0, 30.0], rng=5)
    fit = fit_of(W, beta=0.01)
    assert fit.n_spikes == 3
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        low = fit_of(W.astype(dtype), beta=0.01)
        assert low.n_spikes == 3
        assert_allclose(low.variance, fit.variance, rtol=0.01)
    for scale in (1e-4, 1e4):
        scaled = fit_of(W.T * scale, beta=0.01)
        assert scaled.n_spikes == 3
        for name in ("variance", "lower_edge", "bulk_edge", "threshold"):
            assert_allclose(getattr(scaled, name), getattr(fit, name) * scale**2, rtol=1e-9)


def test_law_describes_the_bulk_it_was_fitted_to():
    spec = rmtspec.spectrum(ensembles.spiked(1000, 1000, np.linspace(3, 10, 200), rng=7))
    fit = rmtspec.bema(spec, beta=0.01)
    assert fit.n_removed == 200
    bulk = spec.eigenvalues[: spec.p - fit.n_removed]
    assert kstest(bulk, fit.law.cdf).statistic < 0.01
    assert_allclose(fit.law.ratio, 800 / 800)
    assert_allclose(fit.law.variance, fit.variance * 800 / 1000)
    assert (fit.law.bulk_edge, fit.law.lower_edge) == (fit.bulk_edge, fit.lower_edge)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("seed", range(20))
def test_example_3_3(seed, dtype):
    fit = fit_of(ensembles.example_3_3(1000, rng=seed).astype(dtype))
    assert abs(fit.variance - 1.0) < 0.03
    assert 10 <= fit.n_spikes <= 12


def test_example_3_3_as_published():
    fit = fit_of(ensembles.example_3_3(1000, rng=0), alpha=0.25, quantiles="paper", refine=False)
    assert_allclose([fit.variance, fit.bulk_edge], [1.021, 4.083], atol=0.002)
    assert fit.n_spikes == 10


def test_trained_layer(data_folder):
    from safetensors.numpy import load_file

    W = load_file(data_folder / "models" / "mlp-784-1000-10-mnist.safetensors")["0.weight"]
    spec = rmtspec.spectrum(W)
    paper = rmtspec.bema(spec, 0.25, 0.1, quantiles="paper", refine=False)
    assert abs(paper.n_spikes - 57) <= 3
    assert rmtspec.fit_test(spec, paper).statistic < 0.01
    fit = rmtspec.bema(spec)
    assert abs(fit.n_spikes - 70) <= 3
    assert fit.refinement == "refined"
    assert rmtspec.fit_test(spec, fit).accepted
    assert not rmtspec.fit_test(spec, rmtspec.bema(spec, refine=False)).accepted


def test_refinement_is_refused_where_the_bulk_is_no_such_law():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((800, 600)) * np.exp(0.6 * rng.standard_normal((800, 1)))
    spec = rmtspec.spectrum(W * np.exp(0.6 * rng.standard_normal((1, 600))))
    fit = rmtspec.bema(spec)
    plain = rmtspec.bema(spec, refine=False)
    assert (fit.refinement, plain.refinement) == ("refused", "plain")
    assert fit.note
    assert (fit.variance, fit.n_spikes, fit.n_removed) == (plain.variance, plain.n_spikes, 0)
    assert not rmtspec.fit_test(spec, fit).accepted


def test_refinement_is_refused_on_real_convolution_weights(data_folder):
    """Iterated without a guard, the fit removes half of these spectra and more."""
    from safetensors.numpy import load_file

    fits = [
        fit_of(kernel.reshape(len(kernel), -1))
        for kernel in load_file(data_folder / "models" / "resnet56-cifar10.safetensors").values()
        if kernel.ndim == 4
    ]
    assert len(fits) == 55
    assert {fit.refinement for fit in fits} == {"refused"}
    assert max(fit.n_spikes / fit.p for fit in fits) < 0.6


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rank", [1, 5, 64, 150, 239])
def test_low_rank_is_no_bulk(dtype, rank):
    rng = np.random.default_rng(1)
    product = rng.standard_normal((400, rank)) @ rng.standard_normal((rank, 300)) / rank**0.5
    spec = rmtspec.spectrum(product.astype(dtype))
    fit = rmtspec.bema(spec)
    assert fit.reason == "no bulk"
    assert np.isnan([fit.variance, fit.bulk_edge, fit.threshold, fit.n_spikes]).all()
    assert (fit.law, fit.spikes.size) == (None, 0)
    test = rmtspec.fit_test(spec, fit)
    assert (np.isnan(test.statistic), test.accepted, test.reason) == (True, False, "no bulk")
    assert fit.to_dict()["variance"] is None


def test_truncated_layer_analysed_again():
    W = ensembles.spiked(300, 200, [4.0, 8.0], rng=0).astype(np.float32)
    parts = rmtspec.split(W, 40)
    assert fit_of(parts.outer @ parts.inner).reason == "no bulk"


@pytest.mark.parametrize("W", [np.zeros((50, 40)), np.ones((50, 40)), np.ones((1, 40))])
def test_no_bulk_in_constant_matrices_and_vectors(W):
    assert fit_of(W).reason == "no bulk"


@pytest.mark.parametrize("p", range(2, 16))
def test_tiny_matrices_do_not_crash(p):
    fit = fit_of(ensembles.wishart(40, p, rng=p))
    assert fit.reason == "" or np.isnan(fit.variance)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 0.5}, "share of the spectrum"),
        ({"alpha": "x"}, "real number"),
        ({"beta": 1.0}, "false spike"),
        ({"beta": float("nan")}, "beta"),
        ({"quantiles": "upper"}, "midpoint, paper"),
    ],
)
def test_bad_options(options, words):
    spec = rmtspec.Spectrum(np.arange(1.0, 30.0), n=40)
    with pytest.raises(rmtspec.RmtspecError, match=words):
        rmtspec.bema(spec, **options)


def test_a_matrix_instead_of_a_spectrum():
    with pytest.raises(TypeError, match=r"rmtspec.spectrum\(W\)"):
        rmtspec.bema(np.ones((30, 20)))


def test_repr_and_dict():
    fit = fit_of(ensembles.spiked(200, 100, [5.0], rng=0), beta=0.01)
    assert "refined, 1 spike removed" in repr(fit)
    row = fit.to_dict()
    assert row["n_spikes"] == 1
    assert row["spikes"] == fit.spikes.tolist()
