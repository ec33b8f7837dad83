"""Verdicts of fit_noise: what the bulk is, what was absorbed, what cannot be told."""

import ml_dtypes
import numpy as np
import pytest
from known_noise import KINDS, clear, orthogonal, product, same
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles
from rmtspec.terms import Verdict, Why

MODELS = ["mp", "equalized", "signflip"]


def permutation():
    return np.eye(60)[np.random.default_rng(0).permutation(60)]


def few_entries():
    rng = np.random.default_rng(0)
    return np.where(rng.random((300, 200)) < 0.01, rng.standard_normal((300, 200)), 0.0)


@pytest.mark.parametrize(
    ("W", "verdict", "why"),
    [
        (orthogonal(80, 80), Verdict.NOT_NOISE_LIKE, Why.FLIPS_DIFFER),
        (orthogonal(120, 60), Verdict.NOT_NOISE_LIKE, Why.FLIPS_DIFFER),
        (np.eye(60), Verdict.CANNOT_TELL, Why.FEW_ENTRIES),
        (permutation(), Verdict.CANNOT_TELL, Why.FEW_ENTRIES),
        (np.diag(np.arange(1.0, 61.0)), Verdict.CANNOT_TELL, Why.FEW_ENTRIES),
        (few_entries(), Verdict.CANNOT_TELL, Why.FEW_ENTRIES),
        (np.random.default_rng(0).standard_normal((90, 15)), Verdict.CANNOT_TELL, Why.UNRELIABLE),
        (np.ones((1, 1)), Verdict.CANNOT_TELL, Why.UNRELIABLE),
        (np.random.default_rng(0).standard_normal((40, 1)), Verdict.CANNOT_TELL, Why.UNRELIABLE),
        (np.zeros((40, 30)), Verdict.NO_BULK_LEFT, Why.NO_BULK),
    ],
)
@pytest.mark.parametrize("model", ["auto", "equalized", "signflip"])
def test_verdict(W, verdict, why, model):
    fit = rmtspec.fit_noise(W, model)
    assert fit.verdict == verdict
    assert Why.of(fit.reason)[0] in (why, Why.UNRELIABLE)
    assert fit.note == "" or verdict == Verdict.NO_BULK_LEFT


@pytest.mark.parametrize("model", ["auto", *MODELS])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("rank", [1, 7])
def test_exactly_low_rank_has_no_bulk(model, dtype, rank):
    fit = rmtspec.fit_noise(product(rank, dtype), model)
    assert (fit.verdict, fit.exact) == (Verdict.NO_BULK_LEFT, model != "mp")
    assert fit.reason == Why.ONLY_ROUNDING.words(count=rank)
    assert np.isnan([fit.n_components, fit.components_low, fit.components_high]).all()
    assert fit.law is None
    assert fit.absorbed_rows == fit.absorbed_columns == ()


@pytest.mark.parametrize("shape", [(120, 80), (80, 120), (60, 60)])
def test_rounding_absorbs_nothing(shape):
    """What is left of a constant is rounding in a few rows and columns."""
    fit = rmtspec.fit_noise(np.full(shape, 2.5))
    assert (fit.exact, fit.reason) == (True, Why.ONLY_ROUNDING.words(count=1))
    assert fit.absorbed_rows == fit.absorbed_columns == ()


@pytest.mark.parametrize("model", ["auto", "equalized", "signflip"])
def test_more_components_than_bulk(model):
    W = product(70) + 1e-4 * np.random.default_rng(1).standard_normal((120, 80))
    fit = rmtspec.fit_noise(W, model)
    assert fit.verdict == Verdict.NO_BULK_LEFT
    assert Why.of(fit.reason) == (Why.TOO_MANY_COMPONENTS,)
    assert np.isnan([fit.n_components, fit.bulk_pvalue, fit.bulk_ks, fit.energy_share]).all()
    assert fit.flip_quantiles is None
    assert "not known" in repr(fit)


def test_mostly_components_is_no_noise_like_bulk():
    W = ensembles.spiked(400, 90, np.geomspace(4, 400, 50), rng=1)
    fit = rmtspec.fit_noise(W)
    assert fit.n_components == 50
    assert (fit.verdict, Why.of(fit.reason)) == (
        Verdict.NOT_NOISE_LIKE, (Why.MOSTLY_COMPONENTS,)
    )  # fmt: skip


def test_large_rows_columns_and_entries_are_listed():
    W = np.random.default_rng(0).standard_normal((120, 80))
    row, column, entry = W.copy(), W.copy(), W.copy()
    row[3] *= 30
    column[:, 5] *= 30
    entry[7, 9] = 1e4
    for model in ("auto", "equalized", "signflip"):
        fits = [rmtspec.fit_noise(each, model) for each in (W, row, column, entry, row.T)]
        listed = [(fit.absorbed_rows, fit.absorbed_columns) for fit in fits]
        assert listed[:3] == [((), ()), ((3,), ()), ((), (5,))]
        assert listed[4] == ((), (3,))
        assert 7 in listed[3][0] or 9 in listed[3][1]
    assert "3" in repr(fits[1])


@pytest.mark.parametrize("model", MODELS)
def test_dead_rows_and_columns_are_left_out(model):
    W = clear()
    padded = np.insert(np.insert(W, [4, 50], 0.0, axis=0), [0, 70], 0.0, axis=1)
    fit, other = rmtspec.fit_noise(W, model), rmtspec.fit_noise(padded, model)
    same(fit, other, 1e-12)
    assert (other.n, other.p) == (120, 80)
    if model != "mp":
        assert_allclose(np.delete(other.row_scales, [4, 51]), fit.row_scales)
        assert other.row_scales[4] == other.column_scales[0] == 0


def test_padding_that_turns_the_matrix():
    inner = clear((60, 90))
    padded = np.zeros((300, 120))
    padded[40:100, 10:100] = inner
    for model in MODELS:
        same(rmtspec.fit_noise(padded, model), rmtspec.fit_noise(inner, model), 1e-9)


def test_skewed_entries_are_noted():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        assert "skewed" in rmtspec.fit_noise(KINDS["skewed"](100, 60, rng)).note
        for kind in ("Gaussian", "Student t(3)", "90 % zeros"):
            assert rmtspec.fit_noise(KINDS[kind](100, 60, rng)).note == ""
