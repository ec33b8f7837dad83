"""The flip test of a bulk: its level, its power, and what it cannot judge."""

import numpy as np
import pytest
from known_noise import KINDS
from numpy.testing import assert_allclose
from scipy.linalg import svdvals

from rmtspec._kernels.bulk import pool_distances
from rmtspec.matrix.flip_test import N_FLIPS, flip_test
from rmtspec.matrix.sign_flips import flipped_spectra


def result_of(entries, k=0, seed=0):
    n = max(entries.shape)
    bulk = np.sort(svdvals(entries) ** 2)[: min(entries.shape) - k] / n
    return flip_test(bulk, entries.astype(np.float32), n, seed)


@pytest.mark.parametrize("kind", ["Gaussian", "Student t(3)", "90 % zeros", "skewed", "blocks"])
def test_level_on_noise(kind):
    """40 draws at .05: more than 7 rejections have a chance below .001."""
    pvalues = [
        result_of(KINDS[kind](60, 40, np.random.default_rng(seed)), seed=seed).pvalue
        for seed in range(40)
    ]
    assert sum(pvalue <= 0.05 for pvalue in pvalues) <= 7
    assert {round(20 * pvalue) for pvalue in pvalues} <= set(range(1, N_FLIPS + 2))
    assert len(set(pvalues)) > 8  # spread over its values


def test_a_bulk_of_zeros_tells_nothing():
    result = flip_test(np.zeros(20), np.zeros((30, 20), dtype=np.float32), 30, 0)
    assert (result.pvalue, result.informative) == (1.0, False)


def test_rejects_what_is_no_noise():
    rng = np.random.default_rng(0)
    orthogonal = np.linalg.qr(rng.standard_normal((100, 60)))[0]
    smooth = rng.standard_normal((100, 60)) @ np.linalg.qr(rng.standard_normal((60, 60)))[0]
    correlated = smooth * np.linspace(0.1, 1, 60) @ np.linalg.qr(rng.standard_normal((60, 60)))[0]
    for entries in (orthogonal, correlated):
        result = result_of(entries)
        assert result.pvalue == 1 / (N_FLIPS + 1)
        assert result.distance > 0.05


def test_only_shape_counts():
    entries = np.random.default_rng(0).standard_normal((80, 50))
    bulk = np.sort(svdvals(entries) ** 2) / 80
    results = [flip_test(scale * bulk, entries.astype(np.float32), 80, 0) for scale in (1.0, 7.0)]
    assert results[0].pvalue == results[1].pvalue
    assert results[0].distance == pytest.approx(results[1].distance, rel=1e-12)


def test_distance_against_the_slow_reference():
    """The largest gap at midpoints between the bulk and its flips, scaled by least squares."""
    entries = np.random.default_rng(3).standard_normal((70, 45)).astype(np.float32)
    generator = np.random.default_rng([0, 0, N_FLIPS])
    others = flipped_spectra(entries, 0, N_FLIPS, generator) / 70
    own = np.sort(svdvals(entries.astype(float)) ** 2) / 70
    ranks = np.arange(9, 37)  # .2 and .8 of 45
    shapes = others / np.linalg.norm(others[:, ranks - 1], axis=1)[:, None]
    own, middle = own[ranks - 1], shapes.mean(axis=0)[ranks - 1]
    scale = (middle @ own) / (middle @ middle)
    gaps = [
        abs(np.mean(shapes <= value / scale) - (rank - 0.5) / 45)
        for value, rank in zip(own, ranks, strict=True)
    ]
    result = flip_test(np.sort(svdvals(entries.astype(float)) ** 2) / 70, entries, 70, 0)
    assert result.distance == pytest.approx(max(gaps), abs=1e-9)
    assert_allclose(result.quantiles, others.mean(axis=0), rtol=1e-12)


def test_the_same_seed_gives_the_same():
    entries = np.random.default_rng(0).standard_normal((60, 40))
    first, again, other = (
        result_of(entries, 2, 5),
        result_of(entries, 2, 5),
        result_of(entries, 2, 6),
    )
    assert (first.pvalue, first.distance) == (again.pvalue, again.distance)
    assert first.distance != other.distance
    assert first.quantiles.shape == (38,)


def test_flips_that_change_nothing_tell_nothing():
    permutation = np.eye(60)[np.random.default_rng(0).permutation(60)]
    for entries in (np.eye(60), permutation, np.diag(np.arange(1.0, 61.0))):
        assert not result_of(entries).informative
    assert result_of(np.random.default_rng(0).standard_normal((60, 40))).informative


@pytest.mark.parametrize("p", [1, 2, 3])
def test_tiny_bulks_give_no_error(p):
    result = result_of(np.random.default_rng(0).standard_normal((30, p)))
    assert np.isnan(result.pvalue) or 0 < result.pvalue <= 1
    assert result.informative == (not np.isnan(result.pvalue))


def test_columns_that_flips_lose_are_zeros_of_the_spectrum():
    """A column with a single entry is gone in every flip that drops its row."""
    entries = np.random.default_rng(0).standard_normal((40, 30))
    entries[1:, :12] = 0.0
    entries[0, 12:] = 0.0
    result = result_of(entries, k=15)
    assert result.quantiles.shape == (15,)
    assert np.isfinite(result.distance)


@pytest.mark.kernels
def test_distances_from_the_pool_against_counting():
    generator = np.random.default_rng(3)
    spectra = np.sort(generator.random((5, 9)) * generator.random((5, 1)), axis=1)
    spectra[1], spectra[3] = 0.0, spectra[2]
    first, levels = 2, (np.arange(3, 8) - 0.5) / 9
    found = np.empty(5)
    pool_distances(spectra, np.sort(spectra, axis=None), first, levels, found)
    for k, own in enumerate(spectra):
        others = np.delete(spectra, k, axis=0)
        mean = others[:, first:7].mean(axis=0)
        scale = (mean @ own[first:7]) / (mean @ mean)
        expected = 1.0
        if scale > 0.0:
            shares = [(others <= point).mean() for point in own[first:7] / scale]
            expected = np.abs(shares - levels).max()
        assert found[k] == pytest.approx(expected, rel=1e-12)
