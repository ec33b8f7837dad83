"""fit_noise: counts against a slow reference, and what changes none of them."""

import naive
import numpy as np
import pytest
from known_noise import KINDS, clear, planted, same
from numpy.testing import assert_allclose, assert_array_equal

import rmtspec
from rmtspec import ensembles
from rmtspec.matrix.sign_flips import flips
from rmtspec.terms import Verdict

T10 = 0.450143289058251  # the .9 quantile of the Tracy-Widom law


def scaled(W, seed=0, sigma=1.0):
    """W with rows and columns multiplied by log-normal numbers."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.exp(sigma * rng.normal(size=side)) for side in W.shape)
    return W * np.outer(rows, columns)


def law_edge(left_over, k):
    n, p = left_over.shape
    return naive.edge_of_noise(n - k, p - k, T10)


# Against the definition


@pytest.mark.kernels
@pytest.mark.parametrize("kind", ["Gaussian", "rank-one profile", "blocks", "Student t(5)"])
def test_equalized_against_the_slow_reference(kind):
    """Where no component exceeds the bound on all noise, the path is that of the reference."""
    for seed, shape in enumerate([(70, 50), (60, 60), (120, 40)]):
        rng = np.random.default_rng(seed)
        W = planted(KINDS[kind](*shape, rng), np.array([1.9, 2.0, 2.2]), rng)
        fit = rmtspec.fit_noise(W, "equalized")
        k, threshold, Z = naive.separated(W, law_edge)
        assert fit.n_components == k
        assert_allclose(fit.threshold, threshold / shape[0], rtol=1e-6)
        values = np.sort(np.linalg.svd(Z, compute_uv=False) ** 2) / shape[0]
        assert_allclose(fit.spectrum.eigenvalues, values, rtol=1e-5, atol=1e-8)
        scales = np.outer(fit.row_scales, fit.column_scales)
        assert_allclose(W / scales, Z, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strengths", [[], [3.0] * 6, np.geomspace(2, 300, 12)])
def test_equalized_counts_what_the_slow_reference_counts(strengths):
    for seed, kind in enumerate(KINDS):
        rng = np.random.default_rng(seed)
        W = planted(KINDS[kind](80, 60, rng), np.array(strengths), rng)
        expected = naive.separated(W, law_edge)[0]
        assert rmtspec.fit_noise(W, "equalized").n_components == expected, kind


@pytest.mark.parametrize("shape", [(70, 50), (150, 40)])
def test_signflip_against_the_slow_reference(shape):
    """The same draws, each decomposed by the SVD."""

    def edge(left_over, k):
        made = flips(left_over.astype(np.float32), k, 9, np.random.default_rng([3, k]))
        tops = [np.linalg.svd(flip.astype(float), compute_uv=False)[0] ** 2 for flip in made]
        return max(tops)

    for seed in range(3):
        rng = np.random.default_rng(seed)
        W = planted(KINDS["gamma rows"](*shape, rng), np.array([2.0, 2.2]), rng)
        fit = rmtspec.fit_noise(W, "signflip", rng=3)
        k, threshold, _ = naive.separated(W, edge)
        assert fit.n_components == k
        assert_allclose(fit.threshold, threshold / shape[0], rtol=1e-4)


def test_share_is_that_of_the_matrix_as_given():
    W = clear()
    fit = rmtspec.fit_noise(W, "equalized")
    scales = np.outer(fit.row_scales, fit.column_scales)
    left, singular, right = np.linalg.svd(W / scales, full_matrices=False)
    k = fit.n_components
    rest = W - scales * ((left[:, :k] * singular[:k]) @ right[:k])
    assert fit.energy_share == pytest.approx(1 - np.square(rest).sum() / np.square(W).sum())


# Invariance


@pytest.mark.parametrize("model", ["mp", "equalized"])
def test_what_changes_nothing(model):
    rng = np.random.default_rng(9)
    rows, columns = rng.permutation(120), rng.permutation(80)
    signs = np.outer(rng.choice([-1, 1], 120), rng.choice([-1, 1], 80))
    for W in (clear(), ensembles.spiked(120, 80, [2.0, 3.0], rng=1)):
        fit = rmtspec.fit_noise(W, model)
        for changed in (W.T, W[rows], W[:, columns], W[rows][:, columns].T, signs * W, -W):
            same(rmtspec.fit_noise(changed, model), fit)
        if model == "equalized":
            assert_allclose(rmtspec.fit_noise(W[rows], model).row_scales, fit.row_scales[rows])


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_equalized_does_not_see_scales_of_rows_and_columns(sigma):
    W = clear()
    same(rmtspec.fit_noise(scaled(W, 1, sigma), "equalized"), rmtspec.fit_noise(W, "equalized"))


def test_signflip_does_not_see_signs_and_scales():
    for W in (clear(), KINDS["Student t(3)"](90, 70, np.random.default_rng(0))):
        fit = rmtspec.fit_noise(W, "signflip")
        negative = rmtspec.fit_noise(-W, "signflip")
        assert negative.threshold == fit.threshold
        assert_array_equal(negative.spectrum.eigenvalues, fit.spectrum.eigenvalues)
        for factor in (1e-3, 7.0, 1e140, 1e-140):
            same(rmtspec.fit_noise(factor * W, "signflip"), fit, 1e-6)
        same(rmtspec.fit_noise(scaled(W), "signflip"), fit, 1e-6)


@pytest.mark.parametrize("shape", [(120, 80), (80, 120)])
@pytest.mark.parametrize("model", ["equalized", "signflip"])
def test_transposition_and_layout_give_the_same_bits(shape, model):
    W = clear(shape)
    fit = rmtspec.fit_noise(W, model)
    for turned in (W, W.T):
        for given in (turned, np.asfortranarray(turned), np.repeat(turned, 2, axis=0)[::2]):
            other = rmtspec.fit_noise(given, model)
            assert other.threshold == fit.threshold
            assert_array_equal(other.spectrum.eigenvalues, fit.spectrum.eigenvalues)
            assert (other.bulk_pvalue, other.bulk_ks) == (fit.bulk_pvalue, fit.bulk_ks)
    assert_array_equal(rmtspec.fit_noise(W.T, model).row_scales, fit.column_scales)


@pytest.mark.parametrize("kind", ["Gaussian", "blocks"])
def test_signflip_counts_clear_components_in_any_order(kind):
    rng = np.random.default_rng(0)
    W = planted(KINDS[kind](90, 90, rng), np.linspace(3, 8, 6), rng)
    for changed in (W, W.T, W[rng.permutation(90)], W[:, rng.permutation(90)]):
        assert rmtspec.fit_noise(changed, "signflip", 0.01).n_components == 6


def test_the_seed_decides():
    W = KINDS["Student t(3)"](90, 70, np.random.default_rng(0))
    fits = [rmtspec.fit_noise(W, "signflip", rng=seed) for seed in (0, 0, 1, 2**70)]
    generators = [np.random.default_rng(5) for _ in range(2)]
    fits += [rmtspec.fit_noise(W, "signflip", rng=generator) for generator in generators]
    for first, second in (fits[:2], fits[4:]):
        assert (first.threshold, first.rng) == (second.threshold, second.rng)
        assert first.bulk_ks == second.bulk_ks
    assert len({fit.threshold for fit in fits}) == 4
    assert_allclose([fit.threshold for fit in fits], fits[0].threshold, rtol=0.05)
    assert rmtspec.fit_noise(W).rng == 0


# The truth


@pytest.mark.parametrize("model", ["auto", "equalized", "signflip"])
def test_planted_components_are_counted(model):
    W = ensembles.spiked(250, 200, np.linspace(3, 10, 25), rng=0)
    for given in (W, scaled(W)):
        fit = rmtspec.fit_noise(given, model, 0.01)
        assert fit.n_components == 25
        assert fit.at_least <= fit.n_components
        assert fit.components_low == fit.n_components <= fit.components_high
        assert fit.verdict == Verdict.NOISE_LIKE


@pytest.mark.parametrize("strengths", [[], [1.5] * 5])
def test_the_lower_end_is_the_count_at_its_level(strengths):
    """Also where a component of the count itself is noise that was taken for one."""
    differ = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        W = planted(KINDS["Student t(5)"](80, 60, rng), np.array(strengths), rng)
        fit = rmtspec.fit_noise(W, "equalized", 0.4)
        low = rmtspec.fit_noise(W, "equalized", 0.01)
        assert fit.components_low == low.n_components == low.components_low
        assert fit.components_low <= fit.n_components <= fit.components_high
        differ += fit.components_low < fit.n_components
    assert differ > 2


@pytest.mark.parametrize("kind", [*KINDS])
def test_few_components_on_noise(kind):
    """40 draws at .1: "auto" raises any in at most .15 of them, hence 12 with chance .001."""
    raised = [
        rmtspec.fit_noise(KINDS[kind](100, 60, np.random.default_rng(seed))).n_components > 0
        for seed in range(40)
    ]
    assert sum(raised) <= 12


@pytest.mark.parametrize("kind", ["Gaussian", "rank-one profile", "Student t(3)", "90 % zeros"])
def test_noise_is_noise_like(kind):
    verdicts = [
        rmtspec.fit_noise(KINDS[kind](160, 120, np.random.default_rng(seed))).verdict
        for seed in range(100, 120)
    ]
    assert verdicts.count(Verdict.NOISE_LIKE) >= 17
    assert Verdict.NO_BULK_LEFT not in verdicts
