"""Sign flips: the kernels, the largest singular value, and thresholds from draws."""

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import svdvals

from rmtspec._kernels.equalize import flip_signs, power_sums, top_eigenvalue
from rmtspec.matrix import sign_flips
from rmtspec.matrix.sign_flips import (
    flipped_spectra,
    flipped_spectrum,
    flips,
    largest_square,
    n_draws,
    prediction_factor,
    simulated_factor,
    stacked_flips,
    threshold_of,
)
from rmtspec.matrix.thresholds import FlipThreshold, LawThreshold


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.kernels
@pytest.mark.parametrize("p", [1, 31, 32, 33, 70])
def test_bits_become_signs(p):
    entries = noise((6, p))
    rows, kept = np.array([0, 2, 5]), np.ones((3, p), dtype=np.float32)
    kept[1, p // 2] = kept[2, 0] = 0.0
    words = np.random.default_rng(1).integers(0, 1 << 32, 3 * -(-p // 32), dtype=np.uint32)
    out = np.empty((3, p), dtype=np.float32)
    flip_signs(entries, rows, kept, words, out)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little").reshape(3, -1)[:, :p]
    assert_array_equal(out, np.abs(entries[rows]) * kept * np.where(bits == 1, -1, 1))


@pytest.mark.kernels
def test_power_sums_against_numpy():
    entries = noise((7, 9))
    wide = entries.astype(float)
    assert_allclose(power_sums(entries), [(wide**power).sum() for power in (2, 3, 6)], rtol=1e-12)


@pytest.mark.kernels
@pytest.mark.parametrize("p", [1, 2, 5, 6, 40])
def test_top_eigenvalue_against_numpy(p):
    matrix = noise((2 * p, p))
    gram = matrix.T @ matrix
    start = np.random.default_rng(0).standard_normal(p)
    top = top_eigenvalue(gram, start / np.linalg.norm(start), 1e-6)
    assert_allclose(top, np.linalg.eigvalsh(gram.astype(float))[-1], rtol=1e-5)
    assert top_eigenvalue(np.zeros((p, p), np.float32), start / np.linalg.norm(start), 1e-6) == 0


SHAPES = [
    (1, 1), (50, 1), (1, 1000), (3, 2), (300, 16), (3000, 40), (257, 257), (300, 260), (400, 290),
    (900, 300), (600, 560),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_largest_square_against_the_svd(shape):
    rng = np.random.default_rng(0)
    matrix = noise(shape)
    rank_one = np.outer(*(rng.standard_normal(side) for side in shape)).astype(np.float32)
    sparse = np.where(rng.random(shape) < 0.05, matrix, 0).astype(np.float32)
    for case in (matrix, rank_one, sparse, np.zeros(shape, np.float32), np.ones(shape, np.float32)):
        expected = svdvals(case.astype(float))[0] ** 2
        assert_allclose(largest_square(case), expected, rtol=1e-5)


def test_largest_square_where_the_top_is_crowded():
    """A hundred equal values, and noise just below: Lanczos must not stop short of the top."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 300)))[0] for n in (500, 300))
    for values in (np.ones(300), np.linspace(1, 1.001, 300), np.linspace(0, 1, 300) ** 0.1):
        matrix = ((left * values) @ right.T).astype(np.float32)
        assert_allclose(largest_square(matrix), values.max() ** 2, rtol=2e-5)


def test_stored_factors_are_those_of_simulation():
    for (draws, beta), factor in sign_flips._FACTORS.items():
        assert simulated_factor(draws, beta) == pytest.approx(factor, abs=0.03)
        assert prediction_factor(draws, beta) == factor


def test_down_to_a_level_of_005_a_threshold_is_one_of_the_draws():
    tops = list(np.random.default_rng(0).permutation(np.arange(19.0)))
    assert threshold_of(tops, 0.05) == 18.0  # one more is the largest of 20
    assert threshold_of(tops, 0.1) == 17.0
    assert threshold_of(tops, 0.5) == 9.0
    assert threshold_of(tops, 0.075) == pytest.approx(17.5)
    assert threshold_of(tops, 0.999) == 0.0
    below = [threshold_of(tops, beta) for beta in (0.0499, 0.01, 1e-3, 1e-5)]
    assert below == sorted(below)
    assert below[0] >= 18.0
    longer = 9.0 + 1.08 * prediction_factor(19, 0.01) * np.std(tops, ddof=1)
    assert below[1] == pytest.approx(longer)


def test_a_draw_exceeds_the_threshold_of_the_others_with_the_chance_stated():
    rng = np.random.default_rng(1)
    for beta, draws in ((0.1, 9), (0.5, 9), (0.2, 9), (0.05, 19), (0.3, 19)):
        values = rng.pareto(2.0, (4000, draws + 1))  # whatever their law
        over = np.mean([row[-1] > threshold_of(list(row[:-1]), beta) for row in values])
        assert over == pytest.approx(beta, abs=4 * (beta / 4000) ** 0.5)


def test_the_number_of_draws():
    known = {0.5: 9, 0.1: 9, 0.2: 9, 0.25: 11, 0.05: 19, 0.07: 19, 0.049: 20, 0.01: 20}
    assert {beta: n_draws(beta) for beta in known} == known


def test_a_flip_keeps_sizes_and_drops_rows_and_columns():
    entries = noise((50, 40))
    entries[:, 5] = 0.0
    for flip in flips(entries, 3, 4, np.random.default_rng(0)):
        assert flip.shape == (47, 40)
        there = flip.any(axis=0)
        assert 40 - 3 - 1 <= there.sum() <= 40 - 3
        rows = [np.abs(row)[there].tolist() for row in flip]
        known = [np.abs(row)[there].tolist() for row in entries]
        positions = [known.index(row) for row in rows]
        assert positions == sorted(set(positions))
    assert [flip.shape for flip in flips(entries, 0, 2, np.random.default_rng(0))] == [(50, 40)] * 2


def test_signs_are_fair_and_independent():
    entries = np.ones((100, 70), dtype=np.float32)
    signs = np.array([flip.copy() for flip in flips(entries, 0, 100, np.random.default_rng(0))])
    assert abs(signs.mean()) < 4 / signs.size**0.5
    for axis in range(3):  # of neighbours
        pairs = np.moveaxis(signs, axis, 0)
        assert abs((pairs[1:] * pairs[:-1]).mean()) < 4 / signs.size**0.5


def test_signs_of_the_entries_do_not_matter():
    entries = noise((30, 20))
    ours, negative = (
        [flip.copy() for flip in flips(E, 2, 3, np.random.default_rng(5))]
        for E in (entries, -entries)
    )
    assert_array_equal(ours, negative)


@pytest.mark.parametrize("k", [0, 1, 7])
@pytest.mark.parametrize("shape", [(40, 30), (50, 33), (64, 64), (9, 8)])
def test_flips_in_one_call_are_those_one_by_one(shape, k):
    entries = noise(shape)
    together = stacked_flips(entries, k, 5, np.random.default_rng(3))
    for one, other in zip(together, flips(entries, k, 5, np.random.default_rng(3)), strict=True):
        assert_array_equal(one, other)


@pytest.mark.parametrize("k", [0, 4])
def test_spectra_of_flips_do_not_depend_on_the_way(monkeypatch, k):
    entries = noise((60, 45))
    together = flipped_spectra(entries, k, 4, np.random.default_rng(5))
    monkeypatch.setattr("rmtspec.matrix.sign_flips._STACKED", 0)
    alone = flipped_spectra(entries, k, 4, np.random.default_rng(5))
    assert together.shape == (4, 45 - k)
    assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [0, 4])
def test_spectrum_of_a_flip_against_the_svd(k):
    entries = noise((40, 30))
    entries[:, 7] = 0.0
    for flip in flips(entries, k, 2, np.random.default_rng(0)):
        expected = np.sort(svdvals(flip.astype(float)) ** 2)[k:]
        assert_allclose(flipped_spectrum(flip, 30 - k), expected, rtol=1e-4, atol=1e-4)


def failing_in_single(solve):
    def failing(gram, **options):
        if gram.dtype == np.float32:
            raise np.linalg.LinAlgError
        return solve(gram, **options)

    return failing


@pytest.mark.parametrize("stacked", [0, 128])
def test_spectrum_of_a_flip_where_the_single_precision_solver_fails(monkeypatch, stacked):
    import scipy.linalg

    for owner in (scipy.linalg, np.linalg):
        monkeypatch.setattr(owner, "eigvalsh", failing_in_single(owner.eigvalsh))
    monkeypatch.setattr("rmtspec.matrix.sign_flips._STACKED", stacked)
    matrix = noise((40, 30))
    found = flipped_spectra(matrix, 0, 3, np.random.default_rng(0))
    for flip, spectrum in zip(flips(matrix, 0, 3, np.random.default_rng(0)), found, strict=True):
        assert_allclose(spectrum, np.sort(svdvals(flip.astype(float)) ** 2), rtol=1e-5)


@pytest.mark.parametrize(("beta", "draws"), [(0.1, 9), (0.05, 19), (0.01, 20)])
@pytest.mark.parametrize("k", [0, 3])
def test_flip_threshold_is_that_of_the_draws(beta, draws, k):
    entries = noise((60, 40))
    at = FlipThreshold(beta, 7).threshold(np.sort(svdvals(entries) ** 2), 60, k, entries)
    made = flips(entries, k, draws, np.random.default_rng([7, k]))
    tops = [svdvals(flip.astype(float))[0] ** 2 for flip in made]
    expected = max(tops) if beta > 0.01 else np.mean(tops) + 1.08 * 2.869 * np.std(tops, ddof=1)
    assert_allclose(at(beta), expected, rtol=1e-5)


def test_draws_have_the_law_of_the_slow_reference():
    """Means within four standard errors, deviations within a fifth (its error is 6 %)."""
    entries, k, draws = noise((40, 30)), 2, 300
    expected = naive.flip_tops(entries.astype(float), k, draws, np.random.default_rng(1))
    ours = [largest_square(flip) for flip in flips(entries, k, draws, np.random.default_rng(2))]
    error = np.std(expected, ddof=1) * (2 / draws) ** 0.5
    assert abs(np.mean(ours) - np.mean(expected)) < 4 * error
    assert np.std(ours) == pytest.approx(np.std(expected), rel=0.2)


@pytest.mark.parametrize("beta", [0.5, 0.1, 0.01, 0.001, 1e-5])
def test_spared_draws_change_no_count(beta):
    """A value thirteen deviations beyond the noise, a gap below: three draws tell, at any level."""
    entries = noise((60, 40))
    made = flips(entries, 0, 3, np.random.default_rng([0, 0]))
    tops = [largest_square(flip) for flip in made]
    width = naive.edge_of_noise(60, 40, 1) - naive.edge_of_noise(60, 40, 0)
    deviation = max(width, np.std(tops, ddof=1))
    below = np.linspace(0, np.mean(tops) - 5 * deviation, 39)
    squares = np.append(below, np.mean(tops) + 13 * deviation)
    at = FlipThreshold(beta, 0).threshold(squares, 60, 0, entries)
    assert (squares > at(beta)).sum() == 1


def test_law_threshold_against_the_slow_reference():
    at = LawThreshold().threshold(np.ones(40), 60, 5, np.empty((0, 0), np.float32))
    assert_allclose(at(0.1), naive.edge_of_noise(55, 35, 0.450143289058251), rtol=1e-12)
    assert at(0.01) > at(0.1) > at(0.5)
