"""Rules for the rank besides BEMA's: each against its paper, its authors' numbers, or a loop."""

import dataclasses
import math

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import InvalidOptionError, InvalidTypeError, InvalidValueError
from rmtspec.matrix.rank import ALL_RULES, RULES
from rmtspec.matrix.rules import fits
from rmtspec.matrix.rules.options import ASSUMES, ENTRY_RULES, check_shares
from rmtspec.matrix.rules.thresholds import pseudo_noise, screenot_function
from rmtspec.terms import Verdict

#: rows, columns, signals, bound; and from the authors' package screenot 0.0.2 threshold, rank, sum
#: of the pseudo-noise, function at the threshold: made by tests/reference/make_screenot.py.
SCREENOT = (
    (60, 90, 5, 20, 3.810932347579394, 4, 79.30541868422588, -3.9999722869909706),
    (90, 60, 3, 10, 2.923941283238836, 2, 67.8107435283677, -4.000016991474626),
    (200, 200, 20, 40, 3.1225403969527443, 17, 248.2656575829313, -4.000021795288752),
    (40, 300, 0, 5, 2.6110866519871356, 0, 40.659462249766975, -4.0000156766925),
    (50, 80, 4, 0, 9.836921691894531, 0, 72.7586736275027, -3.9999758932515177),
)


def case_of(rows, columns, signals):
    """Return the spectrum of make_screenot.py, a soft edge and signals beyond it."""
    p = min(rows, columns)
    bulk = 1.0 + np.cos(np.pi * (np.arange(p - signals) + 0.5) / p)
    values = np.concatenate([np.linspace(9.0, 2.4, signals), bulk])
    n = max(rows, columns)
    return values, rmtspec.Spectrum(values**2 / n, n=n)


@pytest.fixture(scope="module")
def planted():
    return ensembles.spiked(120, 80, [2.0, 3.0, 6.0], rng=1)


def stand_in(spec, n_components, model="equalized", **others):
    """Return a NoiseFit of this spectrum with another count."""
    fit = rmtspec.fit_noise(spec)
    fields = {"threshold": 3.0, **others}
    return dataclasses.replace(fit, n_components=n_components, model=model, **fields)


# -- thresholds


@pytest.mark.parametrize("numbers", SCREENOT)
def test_screenot_gives_its_authors_numbers(numbers):
    rows, columns, signals, bound, threshold, rank, total, level = numbers
    values, spec = case_of(rows, columns, signals)
    noise = pseudo_noise(values, bound)
    assert noise.sum() == pytest.approx(total, rel=1e-14)
    assert screenot_function(threshold, noise, spec.ratio) == pytest.approx(level, rel=1e-11)
    decision = rmtspec.choose_rank(spec, rule="screenot", rank_bound=bound)
    ours = math.sqrt(spec.n * decision.threshold)
    assert ours == pytest.approx(threshold, abs=1e-5)  # where their bisection stops
    assert screenot_function(ours, noise, spec.ratio) == pytest.approx(-4.0, abs=1e-8)
    assert (decision.rank, decision.rank_bound) == (rank, bound)


def test_screenot_scales_with_the_matrix():
    _, spec = case_of(60, 90, 5)
    for scale in (1e-12, 1e12):
        scaled = rmtspec.Spectrum(spec.eigenvalues * scale, n=90)
        one = rmtspec.choose_rank(spec, rule="screenot")
        other = rmtspec.choose_rank(scaled, rule="screenot")
        assert other.rank == one.rank
        assert other.threshold == pytest.approx(one.threshold * scale, rel=1e-9)


@pytest.mark.parametrize(
    ("ratio", "known", "unknown"),
    # The paper's tables, to the digits that their quadrature has.
    [(1.0, 4 / math.sqrt(3), 2.8582), (0.5, 1.9786, 2.1711), (0.1, 1.5816, 1.6089)],
)
def test_gavish_donoho_has_the_coefficients_of_the_paper(ratio, known, unknown):
    p = 400
    spec = rmtspec.Spectrum(np.ones(p), n=round(p / ratio))
    estimated = rmtspec.choose_rank(spec, rule="gavish-donoho")
    assert math.sqrt(estimated.threshold) == pytest.approx(unknown, abs=3e-4)
    given = rmtspec.choose_rank(spec, rule="gavish-donoho", noise_variance=4.0)
    assert math.sqrt(given.threshold) == pytest.approx(2 * known, rel=1e-4)
    assert given.noise_variance == 4.0


def test_gavish_donoho_finds_the_variance_from_the_median():
    W = ensembles.spiked(400, 200, [3.0, 5.0], variance=9.0, rng=1)
    decision = rmtspec.choose_rank(W, rule="gavish-donoho")
    assert decision.noise_variance == pytest.approx(9.0, rel=0.05)
    middle = np.median(np.linalg.svd(W, compute_uv=False)) ** 2 / 400
    median = naive.mp_ppf(0.5, 0.5)
    assert decision.noise_variance == pytest.approx(middle / median, rel=1e-9)
    assert decision.rank == 2


# -- resampling


def test_bcv_is_the_sum_over_four_blocks(planted):
    for W in (planted, planted.T):
        generator = np.random.default_rng(5)
        rows, columns = generator.permutation(120), generator.permutation(80)
        expected = naive.bcv_rank(planted, rows, columns)
        assert rmtspec.choose_rank(W, rule="bcv", rng=5).rank == expected == 3


@pytest.mark.parametrize(("beta", "place"), [(0.1, 18), (0.5, 10), (0.9, 2)])
def test_parallel_compares_with_shuffled_columns(beta, place):
    ranks = set()
    for seed in range(12):
        W = ensembles.spiked(30, 20, [1.2, 1.5], rng=seed) * np.linspace(0.2, 3, 20)
        generator = np.random.default_rng(2)
        draws = [generator.permuted(W, axis=0) for _ in range(19)]
        expected = naive.parallel_rank(W, draws, place)  # of 20 places, the share above is beta
        for A in (W, W.T, W * 1e-9, np.asfortranarray(W)):
            assert rmtspec.choose_rank(A, rule="parallel", beta=beta, rng=2).rank == expected
        ranks.add(expected)
    assert len(ranks) > 1


def test_parallel_has_its_level_under_one_variance_and_none_under_several():
    """0.1 and nearly 1 in long runs; 40 draws of each, seeds fixed."""
    equal = unequal = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((60, 40))
        profile = np.exp(0.35 * rng.standard_normal((60, 1)) + 0.35 * rng.standard_normal(40))
        equal += rmtspec.choose_rank(noise, rule="parallel").rank > 0
        unequal += rmtspec.choose_rank(noise * profile, rule="parallel").rank > 0
    assert equal <= 9  # more with probability 0.005
    assert unequal >= 25


def test_more_draws_for_a_smaller_level(monkeypatch):
    W = ensembles.wishart(12, 8, rng=0)
    made = []
    from rmtspec.matrix.rules import resampling

    whole = resampling.spectrum
    monkeypatch.setattr(resampling, "spectrum", lambda W: made.append(1) or whole(W))
    for beta, draws in ((0.1, 19), (0.05, 19), (0.01, 99), (0.5, 19)):
        made.clear()
        rmtspec.choose_rank(W, rule="parallel", beta=beta)
        assert len(made) == draws


@pytest.mark.parametrize("rule", ["parallel", "bcv"])
def test_resampling_meets_zeros_and_small_matrices(rule):
    padded = np.zeros((90, 70))
    padded[5:65, 10:50] = ensembles.spiked(60, 40, [4.0], rng=0)
    assert rmtspec.choose_rank(padded, rule=rule).rank == 1
    zeros = rmtspec.choose_rank(np.zeros((9, 7)), rule=rule)
    assert (zeros.rank, zeros.reason) == (0, "no signal found")
    sparse = np.diag(np.arange(1.0, 9.0))
    assert 0 <= rmtspec.choose_rank(sparse, rule=rule).rank <= 8
    half = padded.astype(np.float16)
    before = half.copy()
    assert rmtspec.choose_rank(half, rule=rule).rank == 1
    assert (half == before).all()


def test_bcv_needs_two_rows():
    with pytest.raises(InvalidValueError, match="expected at least 2 x 2"):
        rmtspec.choose_rank(np.ones((5, 1)), rule="bcv")


def test_the_same_seed_gives_the_same_rank(planted):
    for rule in ("parallel", "bcv"):
        first = rmtspec.choose_rank(planted, rule=rule)
        assert first == rmtspec.choose_rank(planted, rule=rule, rng=0)


# -- the other rules, and the fits


def test_exact_and_fixed():
    product = np.outer(np.arange(1.0, 9.0), np.ones(5))
    assert rmtspec.choose_rank(product, rule="exact").rank == 1
    spec = rmtspec.spectrum(product)
    assert rmtspec.choose_rank(spec, rule="fixed", rank=2).rank == 2
    assert rmtspec.choose_rank(spec, rule="fixed", rank=0).reason == "no signal found"
    assert rmtspec.choose_rank(spec, rule="fixed", rank=1, min_rank=3).rank == 3


def test_a_matrix_gives_what_its_spectrum_gives(planted):
    spec = rmtspec.spectrum(planted)
    assert rmtspec.choose_rank(planted) == rmtspec.choose_rank(spec, rmtspec.bema(spec))
    strict = rmtspec.choose_rank(planted, beta=0.001)
    assert strict == rmtspec.choose_rank(spec, rmtspec.bema(spec, beta=0.001))


def test_a_noise_fit_counts(planted):
    spec = rmtspec.spectrum(planted)
    fit = stand_in(spec, 5)
    for W in (planted, spec):
        decision = rmtspec.choose_rank(W, fit, bulk_keep=0.5)
        assert (decision.rule, decision.rank) == ("noise", 5 + 37)
        assert (decision.n_components, math.isnan(decision.n_spikes)) == (5, True)
        assert math.isnan(decision.threshold)  # it is of another spectrum
    by_bema = rmtspec.choose_rank(spec, fit, rule="bema")
    assert (by_bema.rank, by_bema.n_spikes, by_bema.n_components) == (3, 3, 5)
    of_mp = rmtspec.choose_rank(spec, stand_in(spec, 4, "mp"))
    assert (of_mp.rule, of_mp.rank, of_mp.n_spikes, of_mp.threshold) == ("bema", 4, 4, 3.0)


def test_no_number_of_a_noise_fit_is_no_rank(planted):
    spec = rmtspec.spectrum(planted)
    decision = rmtspec.choose_rank(
        spec, stand_in(spec, math.nan, settled=(Verdict.NO_BULK_LEFT, "no bulk left"))
    )
    assert (decision.rank, decision.saves, decision.reason) == (0, False, "no bulk left")
    assert decision.to_dict()["n_components"] is None


def test_the_verdict_of_a_noise_fit_is_not_asked_for(planted):
    """It may take 19 more spectra."""

    fit = rmtspec.fit_noise(planted, "signflip")
    assert rmtspec.choose_rank(planted, fit).rank == 3
    assert fit.bulk._test is None


def test_noise_is_fitted_if_there_is_no_fit(planted, monkeypatch):
    asked = []

    def fit_noise(W, **options):
        asked.append(options)
        return stand_in(rmtspec.spectrum(W), 7)

    monkeypatch.setattr(fits, "fit_noise", fit_noise)
    assert rmtspec.choose_rank(planted, rule="noise", beta=0.01, rng=3).rank == 7
    fit = rmtspec.bema(rmtspec.spectrum(planted))
    assert rmtspec.choose_rank(planted, fit, rule="noise").n_spikes == 3
    assert asked == [{"beta": 0.01, "rng": 3}, {"beta": 0.1, "rng": 0}]


# -- options


def test_analyses_of_many_know_their_rules():
    assert set(ALL_RULES) - set(RULES) == {"parallel", "bcv", "fixed"}
    assert set(ASSUMES) == set(ALL_RULES)
    for rule in RULES:
        check_shares(rule, 0.0, 0.9 if rule in ("energy", "fraction") else None)
    with pytest.raises(InvalidOptionError, match="needs the entries and serves single matrices"):
        rmtspec.analyze(np.ones((20, 20)), rule="bcv")
    with pytest.raises(InvalidOptionError, match="to a plan"):
        check_shares("fixed", 0.0, None)


@pytest.mark.parametrize("rule", ENTRY_RULES)
def test_rules_that_need_entries_say_so(planted, rule):
    with pytest.raises(InvalidTypeError, match=f"'{rule}' needs the entries of the matrix"):
        rmtspec.choose_rank(rmtspec.spectrum(planted), rule=rule)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "fixed"}, "`rule` is 'fixed' and `rank` is not given; expected a whole number"),
        ({"rule": "fixed", "rank": 81}, "`rank` is 81; expected a whole number from 0 to 80"),
        ({"rank": 3}, "`rank` belongs to rule 'fixed'. Leave it out, or pass rule='fixed'"),
        ({"rule": "screenot", "rank_bound": 40}, "from 0 to 39"),
        ({"rule": "bcv", "rank_bound": 4}, "`rank_bound` belongs to rule 'screenot'"),
        ({"rule": "gavish-donoho", "noise_variance": 0}, "`noise_variance` is 0; expected a pos"),
        ({"rule": "exact", "noise_variance": 1.0}, "belongs to rule 'gavish-donoho'"),
        ({"rule": "exact", "keep": 0.5}, "`keep` belongs to the rules 'energy' and 'fraction'"),
        ({"rule": "bcv", "bulk_keep": 0.5}, "`bulk_keep` belongs to the rules 'bema' and 'noise'"),
        ({"rule": "parallel", "beta": 1.0}, "`beta` is 1.0; expected a number in"),
        ({"rule": "parallel", "rng": -1}, "`rng` is -1; expected a whole number"),
        ({"rule": "bcv", "rng": "x"}, "`rng` is 'x'"),
    ],
)
def test_bad_options(planted, options, words):
    with pytest.raises(rmtspec.RmtspecError, match=words):
        rmtspec.choose_rank(planted, **options)


def test_bad_fits(planted):
    spec = rmtspec.spectrum(planted)
    with pytest.raises(InvalidTypeError, match="`fit` is a str; expected a BulkFit or a NoiseFit"):
        rmtspec.choose_rank(spec, "fit")
    other = rmtspec.spectrum(planted[:100])
    with pytest.raises(InvalidValueError, match="expected the fit of this matrix"):
        rmtspec.choose_rank(spec, stand_in(other, 3))
    with pytest.raises(InvalidOptionError, match="`fit` is given, which has its own level"):
        rmtspec.choose_rank(spec, rmtspec.bema(spec), beta=0.01)


def test_every_decision_is_json_ready(planted):
    for rule in set(ALL_RULES) - {"noise"}:
        options = {"energy": {"keep": 0.5}, "fraction": {"keep": 0.5}, "fixed": {"rank": 3}}
        decision = rmtspec.choose_rank(planted, rule=rule, **options.get(rule, {}))
        values = decision.to_dict()
        assert type(values["rank"]) is int
        assert all(v is None or isinstance(v, int | float | str) for v in values.values())
        assert rule in repr(decision)
        assert_allclose(values["break_even"], 48.0)
