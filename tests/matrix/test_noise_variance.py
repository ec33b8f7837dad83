"""Noise variance: the formula, its interval, profiles, and matrices without noise."""

import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.terms import Why


def by_definition(W, k):
    """Return the variance and the kurtosis; all components must stand beyond the edge."""
    n, p = max(W.shape), min(W.shape)
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    E = W - (U[:, :k] * s[:k]) @ Vt[:k]
    a, b = n - k, p - k
    v = (E**2).sum() / (a * b)
    for _ in range(200):
        lost = 0.0
        for y2 in (s[:k] ** 2 - k * v) / (a * v):
            c = y2 - 1 - b / a
            lost += b / ((c + math.sqrt(c * c - 4 * b / a)) / 2)
        v = ((E**2).sum() + v * lost) / (a * b)
    r = np.outer(1 - (U[:, :k] ** 2).sum(1), 1 - (Vt[:k] ** 2).sum(0))
    w = (E**2).sum() / r.sum()
    return v, 3 + ((E**4).sum() - 3 * w**2 * (r**2).sum()) / (w**2 * (r**4).sum())


@pytest.mark.parametrize("shape", [(120, 80), (80, 120), (90, 90)])
def test_against_the_definition(shape):
    W = 3.0 * ensembles.spiked(*shape, [2.0, 3.0, 7.0], rng=0)
    v, kurtosis = by_definition(W, 3)
    fit = rmtspec.noise_variance(W, 3, level=0.9)
    n, p = max(shape), min(shape)
    assert fit.variance == pytest.approx(v, rel=1e-9)
    assert fit.kurtosis == pytest.approx(kurtosis, rel=1e-9)
    assert fit.standard_error == pytest.approx(v * math.sqrt((kurtosis - 1) / ((n - 3) * (p - 3))))
    assert_allclose([fit.low, fit.high], v + 1.6448536 * fit.standard_error * np.array([-1, 1]))
    law = rmtspec.MarchenkoPastur(p / n, fit.variance)
    assert fit.edge == pytest.approx(law.bulk_edge)
    assert_allclose([fit.edge_low, fit.edge_high], fit.edge * np.array([fit.low, fit.high]) / v)


def test_many_components():
    W = ensembles.spiked(400, 300, np.linspace(3, 10, 100), rng=0)
    fit = rmtspec.noise_variance(W, 100)
    assert fit.low < 1.0 < fit.high  # without the lift of each other: 2 standard errors too high


def test_components_near_the_limit_count_though_they_do_not_stand_out():
    limit, gaps = (2 / 3) ** 0.25, []
    for seed in range(12):
        W = ensembles.spiked(300, 200, [1.1 * limit] * 6, rng=seed)
        fit = rmtspec.noise_variance(W, 6)
        gaps.append((fit.variance - 1.0) / fit.standard_error)
    assert abs(np.mean(gaps)) < 1.0  # s.e. .3; 2.9 if they counted as noise


def test_more_components_than_there_are_give_finite_numbers():
    W = ensembles.wishart(60, 40, rng=0)
    values = [rmtspec.noise_variance(W, k).variance for k in range(40)]
    assert all(np.diff(values) < 0.0)
    assert values[1] == pytest.approx(values[0], rel=0.05)


def test_without_components_it_is_the_mean_square():
    W = ensembles.wishart(50, 30, entries="student-t", rng=0)
    fit = rmtspec.noise_variance(W, 0)
    assert fit.variance == pytest.approx(np.mean(W**2))
    assert fit.kurtosis == pytest.approx(np.mean(W**4) / np.mean(W**2) ** 2)


def profile(shape, strengths, seed):
    """Return a matrix of rank-one profile, its scales and the mean variance of its noise."""
    rng = np.random.default_rng(seed)
    x, y = (np.exp(0.7 * rng.standard_normal(side)) for side in shape)
    v = x.mean() * y.mean()
    left, right = (np.linalg.qr(rng.standard_normal((s, len(strengths))))[0] for s in shape)
    signal = (left * np.array(strengths) * math.prod(shape) ** 0.25 * math.sqrt(v)) @ right.T
    noise = rng.standard_normal(shape) * np.sqrt(np.outer(x, y))
    return noise + signal, np.sqrt(x), np.sqrt(y), v


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "student-t", "profile"])
def test_covers(kind):
    """Nominal .95; with 300 draws a coverage of .95 is outside .91 to .98 once in 200 times."""
    covers = 0
    for seed in range(300):
        if kind == "profile":
            W, rows, columns, v = profile((300, 200), [2.0] * 5, seed)
            fit = rmtspec.noise_variance(W, 5, row_scales=rows, column_scales=columns)
        else:
            limit = (2 / 3) ** 0.25
            W, v = ensembles.spiked(300, 200, [2 * limit] * 5, entries=kind, rng=seed), 1.0
            fit = rmtspec.noise_variance(W, 5)
        covers += fit.low <= v <= fit.high
    assert 0.90 <= covers / 300 <= 0.98


def test_spread_under_a_profile_is_the_standard_error():
    gaps = []
    for seed in range(60):
        W, rows, columns, v = profile((90, 60), [2.5, 3.0], seed)
        fit = rmtspec.noise_variance(W, 2, row_scales=rows, column_scales=columns)
        gaps.append((fit.variance - v) / fit.standard_error)
    assert 0.8 < np.std(gaps) < 1.25  # s.e. .09
    assert abs(np.mean(gaps)) < 0.4  # s.e. .13


def test_profile_of_ones_changes_little_and_scales_are_free_in_their_unit():
    W, rows, columns, _ = profile((120, 80), [2.0, 4.0], 0)
    ones = rmtspec.noise_variance(W, 2, row_scales=np.ones(120), column_scales=np.ones(80))
    assert ones.variance == pytest.approx(rmtspec.noise_variance(W, 2).variance, rel=1e-12)
    fit = rmtspec.noise_variance(W, 2, row_scales=rows, column_scales=columns)
    other = rmtspec.noise_variance(W, 2, row_scales=5 * rows, column_scales=columns)
    assert other.variance == pytest.approx(fit.variance, rel=1e-10)
    assert other.standard_error == pytest.approx(fit.standard_error, rel=1e-10)
    assert other.edge == pytest.approx(fit.edge / 25, rel=1e-10)
    turned = rmtspec.noise_variance(W.T, 2, row_scales=columns, column_scales=rows)
    assert turned.variance == pytest.approx(fit.variance, rel=1e-10)


def test_zero_rows_are_left_out():
    W, rows, columns, _ = profile((120, 80), [2.0, 4.0], 0)
    padded = np.zeros((150, 90))
    padded[:120, :80] = W
    plain, wider = rmtspec.noise_variance(W, 2), rmtspec.noise_variance(padded, 2)
    assert (wider.n, wider.p) == (120, 80)
    assert_allclose([wider.variance, wider.high], [plain.variance, plain.high], rtol=1e-10)
    scaled = rmtspec.noise_variance(W, 2, row_scales=rows, column_scales=columns)
    more = rmtspec.noise_variance(
        padded,
        2,
        row_scales=np.append(rows, np.zeros(30)),
        column_scales=np.append(columns, [0] * 10),
    )
    assert_allclose([more.variance, more.high], [scaled.variance, scaled.high], rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_dtypes_and_layouts(dtype):
    W = ensembles.spiked(120, 80, [3.0, 4.0], rng=0).astype(dtype)
    expected = rmtspec.noise_variance(W.astype(float), 2)
    for each in (W, np.asfortranarray(W), W[::-1, ::-1]):
        assert rmtspec.noise_variance(each, 2).variance == pytest.approx(expected.variance)


def test_extreme_units_and_a_component_far_above_the_noise():
    W = ensembles.spiked(60, 40, [3.0], rng=0)
    plain = rmtspec.noise_variance(W, 1)
    for unit in (1e-140, 1e140):
        fit = rmtspec.noise_variance(unit * W, 1)
        assert fit.variance == pytest.approx(plain.variance * unit**2, rel=1e-10)
        assert fit.kurtosis == pytest.approx(plain.kurtosis)
    rng = np.random.default_rng(0)
    strong = 1e9 * np.outer(rng.standard_normal(60), rng.standard_normal(40)) + W
    assert rmtspec.noise_variance(strong, 2).variance == pytest.approx(1.0, abs=0.1)


def test_no_noise_is_no_number():
    rng = np.random.default_rng(0)
    low = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 40))
    for W, k in ((low, 3), (low, 5), (np.zeros((20, 20)), 0), (np.eye(30)[:, :20], 19)):
        fit = rmtspec.noise_variance(W, k)
        if W[0, 0] != 1.0:
            assert math.isnan(fit.variance)
            assert Why.of(fit.reason) == (Why.NO_BULK,)
            assert fit.to_dict()["low"] is None
            assert "no bulk" in repr(fit)
        else:
            assert Why.of(fit.reason) == (Why.UNRELIABLE,)


def test_memory_is_that_of_two_matrices():
    W = ensembles.spiked(700, 700, [3.0] * 40, rng=0).astype(np.float32)
    scales = np.ones(700)
    rmtspec.noise_variance(W[:50, :50], 1)
    tracemalloc.start()
    rmtspec.noise_variance(W, 40, row_scales=scales, column_scales=scales)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 8 * W.size + 2**20


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_components": 80}, InvalidValueError, "`n_components` is 80; expected a whole number"),
        ({"n_components": 1.5}, InvalidTypeError, "`n_components` is 1.5"),
        ({"level": 1.0}, InvalidValueError, "`level` is 1.0"),
        (
            {"row_scales": np.ones(80)},
            InvalidValueError,
            "`row_scales` has shape .80,.; expected 1",
        ),
        ({"column_scales": -np.ones(80)}, InvalidValueError, "`column_scales` has negative"),
        ({"row_scales": np.full(120, 1e-300)}, InvalidValueError, "equalized matrix overflows"),
        ({"W": np.full((9, 9), np.nan)}, InvalidValueError, "nan"),
        ({"W": np.full((9, 9), np.inf), "row_scales": np.ones(9)}, InvalidValueError, "infinite"),
        ({"W": "W"}, InvalidTypeError, "expected a matrix"),
    ],
)
def test_bad_input(options, error, words):
    options = {"W": ensembles.spiked(120, 80, [4.0], rng=0), "n_components": 1, **options}
    with pytest.raises(error, match=words):
        rmtspec.noise_variance(options.pop("W"), options.pop("n_components"), **options)
