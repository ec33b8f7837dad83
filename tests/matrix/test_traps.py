"""Correlation traps: the level, single huge entries, what shuffling removes."""

import json
import math

import numpy as np
import pytest
from scipy.stats import binom

import rmtspec
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.matrix import traps


def test_level_on_gaussian_noise():
    """150 draws at level .2: three standard errors are .1; any of five shuffles would be .67."""
    rng = np.random.default_rng(0)
    found = [
        rmtspec.correlation_traps(rng.standard_normal((60, 40)), 0.2, rng=seed).n_traps > 0
        for seed in range(150)
    ]
    assert 0.1 < np.mean(found) < 0.3


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_levels_of_the_shuffles_give_the_level_of_all(draws, monkeypatch):
    seen = []
    real = rmtspec.bema
    monkeypatch.setattr(
        traps, "bema", lambda spec, beta: seen.append(beta) or real(spec, beta=beta)
    )
    rmtspec.correlation_traps(np.random.default_rng(0).standard_normal((40, 30)), 0.1, draws)
    assert len(seen) == draws
    assert binom.sf(draws // 2, draws, seen[0]) == pytest.approx(0.1)


def test_huge_entries_are_found_and_named():
    W = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)
    W[:, 3] = 0.0  # a dead column moves no index
    W[7, 11], W[200, 150] = -40.0, 60.0
    for matrix, order in ((W, slice(None)), (W.T, slice(None, None, -1))):
        found = rmtspec.correlation_traps(matrix)
        places = [(200, 150), (7, 11)]
        assert list(zip(found.rows, found.columns, strict=True)) == [p[order] for p in places]
        assert found.sizes.tolist() == [60.0, -40.0]
        assert found.n_traps == 2
        assert found.limit == pytest.approx((300 * 200) ** 0.25, rel=0.1)


def test_structure_and_mean_are_no_traps():
    W = rmtspec.ensembles.spiked(300, 200, [5.0, 9.0], rng=0)
    assert rmtspec.bema(rmtspec.spectrum(W)).n_spikes == 2
    assert rmtspec.correlation_traps(W, 0.01).n_traps == 0
    assert rmtspec.correlation_traps(W + 3.0, 0.01).n_traps == 0


def test_the_limit_is_where_a_lone_entry_reaches_the_threshold():
    fit = rmtspec.bema(rmtspec.spectrum(rmtspec.ensembles.wishart(300, 200, rng=0)), beta=1e-3)
    size = traps._lone_entry(fit)
    u = size**2 / (fit.n * fit.variance)
    eigenvalue = fit.variance * (1.0 + u) * (2.0 / 3.0 + u) / u
    assert eigenvalue == pytest.approx(fit.threshold)
    assert u > math.sqrt(2.0 / 3.0)


def test_deterministic_and_leaves_its_input_alone():
    W = np.random.default_rng(0).standard_normal((40, 30))
    before = W.copy()
    assert rmtspec.correlation_traps(W).thresholds == rmtspec.correlation_traps(W).thresholds
    assert rmtspec.correlation_traps(W).thresholds != rmtspec.correlation_traps(W, rng=1).thresholds
    assert (before == W).all()


@pytest.mark.parametrize("W", [np.zeros((20, 10)), np.full((20, 10), 0.1), np.eye(20, 3)])
def test_no_bulk(W):
    found = rmtspec.correlation_traps(W)
    assert found.reason == "no bulk"
    assert math.isnan(found.n_traps)
    assert "no bulk" in repr(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_words_of_many():
    W = np.random.default_rng(0).standard_normal((60, 40))
    W.flat[:8] = 100.0 + np.arange(8)
    found = rmtspec.correlation_traps(W)
    assert "and 3 more" in repr(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_bad_input():
    W = np.ones((4, 4))
    W[1, 2] = np.nan
    with pytest.raises(InvalidValueError, match=r"\[1, 2\]"):
        rmtspec.correlation_traps(W)
    for options in ({"beta": 0.0}, {"draws": 0}, {"rng": -3}):
        with pytest.raises(InvalidValueError):
            rmtspec.correlation_traps(np.ones((4, 4)), **options)
    with pytest.raises(InvalidTypeError, match="complex"):
        rmtspec.correlation_traps(W * 1j)
