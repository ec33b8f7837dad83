"""The screen of entries: what it passes, what it refuses, and the moments that it reads."""

import numpy as np
import pytest
from known_noise import KINDS
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles
from rmtspec.matrix.screen import screen
from rmtspec.terms import Why

UNEQUAL = ["rank-one profile", "gamma rows", "gamma rows and columns", "blocks"]
TAILS = ["Student t(3)", "Student t(5)", "skewed", "90 % zeros"]


def screened(W):
    spec = rmtspec.spectrum(W)
    return screen(spec, rmtspec.bema(spec))


def naive_moments(W):
    """Rows of the longer side, columns, and the fourth moment of the live entries."""
    W = W[W.any(axis=1)][:, W.any(axis=0)]
    W = W if W.shape[0] >= W.shape[1] else W.T
    squares = np.square(W)
    rows, columns = squares.mean(axis=1), squares.mean(axis=0)
    mean = squares.mean()
    return rows.var() / mean**2, columns.var() / mean**2, np.mean(squares**2) / mean**2


def test_passes_gaussian_noise():
    shapes = [(300, 200), (200, 200), (400, 30), (100, 90)]
    passed = [
        not screened(ensembles.wishart(*shape, rng=seed)) for seed in range(25) for shape in shapes
    ]
    assert np.mean(passed) >= 0.98


def test_passes_components_of_any_strength():
    """Also one of twenty times the noise, and thirty of many strengths."""
    cases = [[3.0], [20.0], [100.0], np.linspace(1.5, 10, 30), [1.2] * 5, np.geomspace(2, 300, 8)]
    passed = [
        not screened(ensembles.spiked(300, 200, strengths, rng=seed))
        for seed in range(17)
        for strengths in cases
    ]
    assert np.mean(passed) >= 0.95


@pytest.mark.parametrize("entries", ["uniform", "rademacher"])
def test_passes_light_tails(entries):
    W = ensembles.wishart(200, 150, entries=entries, rng=0)
    assert screened(W) == ""


@pytest.mark.parametrize("kind", [*UNEQUAL, *TAILS])
def test_fails_other_noise(kind):
    reasons = [screened(KINDS[kind](300, 200, np.random.default_rng(seed))) for seed in range(10)]
    assert all(reasons)
    if kind in TAILS:
        assert {Why.of(reason) for reason in reasons} == {(Why.HEAVY_TAILS,)}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dead", [0, 150])
def test_names_the_side_that_differs(wide, dead):
    """150 zero rows make the rows the shorter side; they are the rows all the same."""
    rng = np.random.default_rng(0)
    W = np.sqrt(rng.uniform(0.6, 1.4, (250, 1))) * rng.standard_normal((250, 200))
    W = np.vstack([W[: 250 - dead], np.zeros((dead, 200))])
    reason = screened(W.T if wide else W)
    assert Why.of(reason) == (Why.UNEQUAL,)
    assert reason.startswith("columns" if wide else "rows")


def test_says_when_entries_are_not_known():
    spec = rmtspec.Spectrum(rmtspec.spectrum(ensembles.wishart(60, 40, rng=0)).eigenvalues, n=60)
    assert spec.moments is None
    assert screen(spec, rmtspec.bema(spec)) == Why.ENTRIES_UNKNOWN.words()
    zeros = rmtspec.spectrum(np.zeros((30, 20)))
    assert screen(zeros, rmtspec.bema(zeros))


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
def test_moments_against_the_definition(shape):
    W = np.random.default_rng(0).standard_t(5, shape)
    padded = np.insert(np.insert(W, [3, 9], 0.0, axis=0), [5], 0.0, axis=1)
    expected = naive_moments(W)
    for given in (W, np.asfortranarray(W), padded, 1e-3 * W, 1e120 * W, 1e-120 * W):
        assert_allclose(rmtspec.spectrum(given).moments, expected, rtol=1e-9)
    turned = rmtspec.spectrum(W.T).moments
    swapped = (1, 0, 2) if shape[0] == shape[1] else (0, 1, 2)
    assert_allclose(turned, np.array(expected)[list(swapped)], rtol=1e-9)


def test_moments_in_blocks(monkeypatch):
    W = np.random.default_rng(0).standard_t(5, (90, 40))
    monkeypatch.setattr("rmtspec.matrix.eigenvalues._BLOCK_BYTES", 8 * 40 * 7)
    for given in (W, np.asfortranarray(W), W.astype(np.float32)):
        assert_allclose(rmtspec.spectrum(given).moments, naive_moments(W), rtol=1e-5)


def test_zero_rows_that_turn_the_matrix():
    inner = np.random.default_rng(0).standard_normal((60, 90))
    padded = np.zeros((300, 120))
    padded[40:100, 10:100] = inner
    for W in (padded, padded.T):
        assert_allclose(rmtspec.spectrum(W).moments, naive_moments(inner), rtol=1e-9)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gamma rows", "rows differ in scale"),
        ("six large rows", "rows differ in scale"),
        ("Student t(3)", "heavy tails"),
        ("Student t(5)", "heavy tails"),
        ("90 % zeros", "heavy tails"),
    ],
)
def test_the_reason_names_the_cause(kind, words):
    """Unequal rows make tails heavy too; they are named, not the tails."""
    W = KINDS[kind](300, 200, np.random.default_rng(3))
    assert rmtspec.fit_noise(W, "mp").reason.startswith(words)
    other = words.replace("rows", "columns")
    assert rmtspec.fit_noise(W.T, "mp").reason.startswith(other)
