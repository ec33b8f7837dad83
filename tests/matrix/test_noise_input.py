"""What fit_noise takes and gives: dtypes and layouts, bad input, pickles, dictionaries."""

import json
import pickle
import warnings

import ml_dtypes
import numpy as np
import pytest
from known_noise import KINDS, clear, orthogonal, product, same
from numpy.testing import assert_allclose, assert_array_equal

import rmtspec
from rmtspec import ensembles
from rmtspec.matrix import noise_fit, separation
from rmtspec.terms import Verdict, Why

MODELS = ["mp", "equalized", "signflip"]


@pytest.mark.parametrize("model", ["auto", *MODELS])
def test_any_layout_and_dtype(model, tmp_path):
    W = clear()
    W /= np.abs(W).max()
    path = tmp_path / "W.npy"
    np.save(path, W)
    read_only = W.copy()
    read_only.setflags(write=False)
    fit = rmtspec.fit_noise(W, model)
    for given in (np.load(path, mmap_mode="r"), read_only, W.tolist(), np.asfortranarray(W)):
        same(rmtspec.fit_noise(given, model), fit, 1e-12)
    for dtype in ("float32", "float16", ml_dtypes.bfloat16):
        low = W.astype(dtype)
        same(rmtspec.fit_noise(low, model), rmtspec.fit_noise(low.astype(float), model), 1e-12)
    integers = np.round(50 * W).astype(int)
    same(rmtspec.fit_noise(integers, model), rmtspec.fit_noise(integers.astype(float), model))


@pytest.mark.parametrize("factor", [1e-140, 1e140])
def test_extreme_entries(factor):
    W = clear()
    for model in ("auto", "equalized", "signflip"):
        same(rmtspec.fit_noise(factor * W, model), rmtspec.fit_noise(W, model), 1e-6)
    plain = rmtspec.fit_noise(factor * W, "mp"), rmtspec.fit_noise(W, "mp")
    assert plain[0].n_components == plain[1].n_components
    assert plain[0].threshold / factor**2 == pytest.approx(plain[1].threshold)


BAD = [
    np.zeros((0, 5)), np.float64(3.0), np.ones(5), np.ones((2, 3, 4)), np.ones((3, 3)) * 1j,
    np.ones((3, 3), dtype=bool), "weights.npy", None, [[1.0, 2.0], [3.0]], np.full((4, 3), 1e200),
    np.full((4, 3), 1e-200), np.array([[1.0, np.nan], [2.0, 3.0]]), np.full((30, 20), np.inf),
    np.array([[1.0, 2.0, np.inf], [4.0, 5.0, 6.0]], dtype=np.float32),
]  # fmt: skip


@pytest.mark.parametrize("model", ["auto", *MODELS])
@pytest.mark.parametrize("W", BAD, ids=range(len(BAD)))
def test_bad_matrices_are_refused_as_by_spectrum(W, model):
    with pytest.raises(rmtspec.RmtspecError) as expected:
        rmtspec.spectrum(W)
    with pytest.raises(type(expected.value)) as caught:
        rmtspec.fit_noise(W, model)
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "gamma"}, "auto, mp, equalized, signflip"),
        ({"model": None}, "auto, mp, equalized, signflip"),
        ({"model": np.array(["auto", "mp"])}, "auto, mp, equalized, signflip"),
        ({"beta": 0.0}, "beta"),
        ({"beta": 1.0}, "beta"),
        ({"beta": np.nan}, "beta"),
        ({"beta": "0.1"}, "beta"),
        ({"rng": -1}, "rng"),
        ({"rng": 0.5}, "rng"),
        ({"rng": None}, "rng"),
        ({"rng": "seed"}, "rng"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(rmtspec.RmtspecError, match=words):
        rmtspec.fit_noise(np.eye(20), **options)


def test_a_spectrum_has_no_entries():
    W = ensembles.spiked(90, 60, [4.0], rng=0)
    spec = rmtspec.spectrum(W)
    for model in ("auto", "mp"):
        fit = rmtspec.fit_noise(spec, model)
        assert (fit.model, fit.n_components) == ("mp", 1)
        assert fit.why_model == ("" if model == "mp" else Why.ENTRIES_UNKNOWN.words())
    with pytest.raises(rmtspec.RmtspecError, match="Pass the matrix"):
        rmtspec.fit_noise(spec, "signflip")
    bare = rmtspec.fit_noise(rmtspec.Spectrum(spec.eigenvalues, n=90))
    assert (bare.verdict, bare.reason) == (Verdict.CANNOT_TELL, Why.ENTRIES_UNKNOWN.words())


def test_mp_is_bema_and_doubts_other_noise():
    W = ensembles.spiked(120, 80, [3.0, 5.0], rng=0)
    fit, plain = rmtspec.fit_noise(W, "mp"), rmtspec.bema(rmtspec.spectrum(W))
    assert (fit.n_components, fit.threshold) == (plain.n_spikes, plain.threshold)
    assert fit.verdict == Verdict.NOISE_LIKE
    assert fit.components_low <= fit.n_components <= fit.components_high
    for seed in range(60):
        spec = rmtspec.spectrum(ensembles.wishart(60, 50, rng=seed))
        low = rmtspec.fit_noise(spec, "mp", 0.3).components_low
        assert low == rmtspec.bema(spec, beta=0.01).n_spikes
    tails = rmtspec.fit_noise(KINDS["Student t(3)"](300, 200, np.random.default_rng(0)), "mp")
    assert (tails.verdict, Why.of(tails.reason)) == (Verdict.CANNOT_TELL, (Why.HEAVY_TAILS,))


def test_auto_says_why_it_changed_the_model():
    fit = rmtspec.fit_noise(orthogonal(60, 60))
    assert fit.model == "signflip"
    assert Why.of(fit.why_model) == (Why.LAW_FAILS,)
    assert rmtspec.fit_noise(clear()).why_model == ""


def test_flips_of_the_verdict_are_made_once(monkeypatch):
    calls = []

    def counting(*arguments):
        calls.append(arguments)
        return test(*arguments)

    test = noise_fit.flip_test
    monkeypatch.setattr(noise_fit, "flip_test", counting)
    fit = rmtspec.fit_noise(orthogonal(60, 60))
    assert not calls
    first = fit.verdict, fit.reason, fit.bulk_pvalue, fit.bulk_ks
    repr(fit), fit.to_dict(), fit.flip_quantiles
    assert (fit.verdict, fit.reason, fit.bulk_pvalue, fit.bulk_ks) == first
    assert len(calls) == 1


@pytest.mark.parametrize("W", [clear(), orthogonal(60, 60), product(3), np.zeros((30, 20))])
@pytest.mark.parametrize("model", ["auto", *MODELS])
def test_pickles_before_and_after_the_verdict(W, model):
    fit = rmtspec.fit_noise(W, model)
    before = pickle.loads(pickle.dumps(fit))
    content = fit.to_dict()
    after = pickle.loads(pickle.dumps(fit))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    for other in (before, after):
        assert other.to_dict() == content
        assert repr(other) == repr(fit)
        assert_array_equal(other.row_scales, fit.row_scales)


def test_dictionary_has_all_that_is_no_array():
    content = rmtspec.fit_noise(clear()).to_dict()
    for name in (
        "n_components", "at_least", "components_low", "components_high", "verdict", "reason",
        "bulk_pvalue", "bulk_ks", "model", "why_model", "threshold", "energy_share", "beta", "rng",
        "rounds", "n", "p", "absorbed_rows", "absorbed_columns", "note",
    ):  # fmt: skip
        assert name in content
    assert (content["n"], content["p"], content["verdict"]) == (120, 80, "noise-like bulk")


@pytest.mark.parametrize("where", ["sinkhorn", "residual", "Eigensystem"])
def test_interrupted_the_matrix_is_as_it_was(monkeypatch, where):
    W = clear()
    before, calls = W.copy(), []
    work = getattr(separation, where)

    def interrupted(*arguments, **options):
        calls.append(where)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(*arguments, **options)

    monkeypatch.setattr(separation, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        rmtspec.fit_noise(W, "signflip")
    monkeypatch.undo()
    assert_array_equal(W, before)
    for model in ("auto", *MODELS):
        assert rmtspec.fit_noise(W, model).verdict
    assert_array_equal(W, before)


def test_scales_beyond_the_range_of_squares_are_equalized_all_the_same():
    """Entries from 1e-120 to 1e120: their squares leave the range of float64."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((200, 120))
    rows, columns = 10.0 ** rng.uniform(-60, 60, (200, 1)), 10.0 ** rng.uniform(-60, 60, (1, 120))
    for model in ("equalized", "signflip"):
        plain, wide = (rmtspec.fit_noise(W, model) for W in (noise, noise * rows * columns))
        assert (wide.n_components, wide.verdict) == (plain.n_components, plain.verdict)
        assert_allclose(wide.spectrum.eigenvalues, plain.spectrum.eigenvalues, rtol=1e-7)


@pytest.mark.parametrize("model", ["equalized", "signflip"])
def test_patterns_without_equalizing_scales_raise_no_warning(model):
    """A full row and column beside few other entries: the scales go apart without end."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(60):
            generator = np.random.default_rng(seed)
            n, p = generator.integers(20, 60, 2)
            W = generator.standard_normal((n, p)) * (generator.random((n, p)) < 0.06)
            W[0], W[:, 0] = generator.standard_normal(p), generator.standard_normal(n)
            found = rmtspec.fit_noise(W, model)
            assert not found.energy_share < -1.0
            assert "nan%" not in repr(found)
