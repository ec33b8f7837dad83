"""Rank rules."""

import copy
import math
import pickle
from fractions import Fraction

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rmtspec
from rmtspec import ensembles


@pytest.fixture(scope="module")
def case():
    spec = rmtspec.spectrum(ensembles.spiked(1000, 784, [5.0, 10.0, 20.0], rng=0))
    return spec, rmtspec.bema(spec, beta=0.01)


def test_removes_the_bulk_or_keeps_the_paper_s_share(case):
    assert rmtspec.choose_rank(*case).rank == 3
    decision = rmtspec.choose_rank(*case, bulk_keep=0.45)
    assert decision.rank == 354  # the paper's first layer: 3 + floor(.45 * 781)
    assert decision.saves
    assert decision.break_even == 1000 * 784 / 1784
    assert rmtspec.choose_rank(*case, bulk_keep=1.0).rank == 784


def test_no_saving_is_said(case):
    decision = rmtspec.choose_rank(*case, bulk_keep=0.6)
    assert (decision.saves, decision.rank) == (False, 3 + int(0.6 * 781))
    assert "break-even 439.5" in decision.reason


def test_min_rank(case):
    assert rmtspec.choose_rank(*case, min_rank=10).rank == 10
    assert rmtspec.choose_rank(*case, min_rank=2).rank == 3
    with pytest.raises(ValueError, match="from 0 to 784"):
        rmtspec.choose_rank(*case, min_rank=785)


def test_no_signal_and_no_bulk():
    noise = rmtspec.spectrum(ensembles.wishart(200, 100, rng=3))
    decision = rmtspec.choose_rank(noise, rmtspec.bema(noise, beta=0.01))
    assert (decision.rank, decision.saves, decision.reason) == (0, False, "no signal found")
    flat = rmtspec.spectrum(np.ones((200, 100)))
    decision = rmtspec.choose_rank(flat, rmtspec.bema(flat), bulk_keep=0.45)
    assert (decision.rank, decision.saves, decision.reason) == (0, False, "no bulk")
    assert np.isnan(decision.n_spikes)
    assert decision.to_dict()["n_spikes"] is None


def test_break_even_counts_the_matrix_as_given():
    padded = np.zeros((400, 100))
    padded[:200] = ensembles.spiked(200, 100, [5.0], rng=0)
    spec = rmtspec.spectrum(padded)
    assert rmtspec.choose_rank(spec, rmtspec.bema(spec)).break_even == 80.0


def test_decision_is_a_whole_number(case):
    W = ensembles.spiked(60, 50, [9.0], rng=0)
    spec = rmtspec.spectrum(W)
    decision = rmtspec.choose_rank(spec, rmtspec.bema(spec, beta=0.01))
    assert rmtspec.split(W, decision).rank == decision.rank == 1
    assert "break even" in repr(decision)


# -- the rules without a law


def by_rule(squares, rule, share, n=None):
    """Return the decision on a spectrum with these squares (in any unit)."""
    spec = rmtspec.Spectrum(squares, n=n or len(squares))
    return rmtspec.choose_rank(spec, rmtspec.bema(spec), rule=rule, keep=share)


@pytest.mark.parametrize("share", ["1", "0.99", "0.9", "0.5", "0.45", "0.1", "0.001", "1e-300"])
def test_energy_and_fraction_are_those_of_the_singular_values(case, share):
    W = ensembles.spiked(90, 60, [2.0, 5.0], rng=1).astype(np.float32)
    squares = np.linalg.svd(W.astype(np.float64), compute_uv=False) ** 2
    spec = rmtspec.spectrum(W)
    fit = rmtspec.bema(spec)
    share = float(share)
    energy = rmtspec.choose_rank(spec, fit, rule="energy", keep=share)
    assert energy.rank == naive.energy_rank(squares, share)
    fraction = rmtspec.choose_rank(spec, fit, rule="fraction", keep=share)
    assert fraction.rank == naive.fraction_rank(60, share)
    for decision in (energy, fraction):
        assert (decision.keep, decision.bulk_keep, decision.n_spikes) == (share, 0.0, fit.n_spikes)
        assert decision.saves == (decision.rank < 36)
        assert bool(decision.reason) == (not decision.saves)
        assert type(decision.rank) is int
    for options in ({"rule": "energy"}, {"rule": "fraction"}):
        least = rmtspec.choose_rank(spec, fit, **options, keep=1e-300, min_rank=7)
        assert (least.rank, least.min_rank) == (7, 7)


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=40).filter(any),
    st.integers(1, 1000).map(lambda k: Fraction(k, 1000)),
)
def test_energy_is_exact_for_whole_squares_and_decimal_shares(squares, share):
    """Ties, zeros and shares met exactly included: no last digit of a sum costs a rank."""
    assert by_rule(squares, "energy", float(share)).rank == naive.energy_rank(squares, share)


@given(st.integers(1, 300), st.integers(1, 1000).map(lambda k: Fraction(k, 1000)))
def test_fraction_is_the_floor_for_decimal_shares(p, share):
    assert by_rule([1.0] * p, "fraction", float(share)).rank == naive.fraction_rank(p, share)


def test_no_last_digit_of_a_share_costs_a_rank():
    """In floats 0.29 * 100 is below 29, and 0.07 * 100 above 7."""
    spec = rmtspec.Spectrum(np.ones(100), n=200)
    fit = rmtspec.bema(spec)
    for percent in range(1, 101):
        for rule in ("energy", "fraction"):
            assert rmtspec.choose_rank(spec, fit, rule=rule, keep=percent / 100).rank == percent


def test_energy_of_equal_and_of_missing_singular_values():
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((100, 100)))[0]
    spec = rmtspec.spectrum(3 * rotation)
    fit = rmtspec.bema(spec)
    for percent in (1, 29, 50, 57, 58, 99, 100):
        assert rmtspec.choose_rank(spec, fit, rule="energy", keep=percent / 100).rank == percent
    W = np.random.default_rng(0).standard_normal((300, 12)) @ rotation[:12]
    for method in ("svd", "gram"):  # 88 of its singular values are rounding
        spec = rmtspec.spectrum(W, method)
        fit = rmtspec.bema(spec)
        assert rmtspec.choose_rank(spec, fit, rule="energy", keep=1.0).rank == 12


@pytest.mark.parametrize("unit", [1e-190, 1e190])
def test_energy_has_no_unit(unit):
    assert by_rule(np.array([4.0, 3.0, 2.0, 1.0]) * unit, "energy", 0.7).rank == 2


def test_padding_is_no_singular_value():
    padded = np.zeros((400, 100))
    padded[:200, :50] = ensembles.spiked(200, 50, [5.0], rng=0)
    spec = rmtspec.spectrum(padded)
    fit = rmtspec.bema(spec)
    assert rmtspec.choose_rank(spec, fit, rule="fraction", keep=1.0).rank == 50
    assert rmtspec.choose_rank(spec, fit, rule="energy", keep=1.0).rank == 50


def test_rules_without_a_law_decide_where_nothing_can_be_fitted():
    for W, energy, fraction in ((np.zeros((90, 60)), 0, 15), (np.ones((90, 60)), 1, 15)):
        spec = rmtspec.spectrum(W)
        fit = rmtspec.bema(spec)
        assert fit.reason == "no bulk"
        found = rmtspec.choose_rank(spec, fit, rule="energy", keep=0.9)
        assert (found.rank, found.saves) == (energy, energy == 1)
        assert found.reason == ("" if energy else "no signal found")
        found = rmtspec.choose_rank(spec, fit, rule="fraction", keep=0.25)
        assert (found.rank, found.saves, found.reason) == (fraction, True, "")
        assert rmtspec.choose_rank(spec, fit, rule="energy", keep=0.9, min_rank=3).rank == 3


def test_energy_takes_half_of_pure_noise():
    """The share that docs/mathematics.md gives for square noise, 51 %."""
    values = rmtspec.MarchenkoPastur(1.0).ppf((np.arange(20_000) + 0.5) / 20_000)
    assert by_rule(values, "energy", 0.9).rank / 20_000 == pytest.approx(0.51, abs=0.001)
    spec = rmtspec.spectrum(ensembles.wishart(400, 400, rng=0))
    fit = rmtspec.bema(spec, beta=0.01)
    found = rmtspec.choose_rank(spec, fit, rule="energy", keep=0.9)
    assert found.rank == pytest.approx(0.51 * 400, abs=2)
    assert not found.saves
    assert rmtspec.choose_rank(spec, fit).rank == 0


def test_decision_shows_the_share_that_decided(case):
    energy = rmtspec.choose_rank(*case, rule="energy", keep=0.9)
    assert "  rule        energy, keep 0.9, min_rank 0\n" in repr(energy)
    bema = rmtspec.choose_rank(*case, bulk_keep=0.45)
    assert "  rule        bema, bulk_keep 0.45, min_rank 0\n" in repr(bema)
    assert math.isnan(bema.keep)
    assert (bema.to_dict()["keep"], energy.to_dict()["keep"]) == (None, 0.9)


def test_decisions_with_nan_are_equal_to_their_like(case):
    bema = rmtspec.choose_rank(*case)
    energy = rmtspec.choose_rank(*case, rule="energy", keep=0.9)
    for decision in (bema, energy):
        for other in (copy.copy(decision), pickle.loads(pickle.dumps(decision))):
            assert other == decision
            assert hash(other) == hash(decision)
    assert bema != energy
    assert energy != rmtspec.choose_rank(*case, rule="energy", keep=0.8999)
    assert bema != 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "magic"}, "`rule` is 'magic'; expected one of bema, noise, .*exact, fixed"),
        ({"rule": "energy"}, r"'energy' and `keep` is not given; .* in \(0, 1\]. Pass keep=0.9 to"),
        ({"rule": "fraction"}, "'fraction' and `keep` is not given; .* Pass keep=0.25 to keep a"),
        ({"rule": "energy", "keep": 0}, "`keep` is 0; expected a share above 0"),
        ({"rule": "energy", "keep": 90}, r"`keep` is 90; .* It is a share: keep=0.9"),
        ({"rule": "fraction", "keep": -0.1}, r"`keep` is -0.1; expected a number"),
        ({"rule": "energy", "keep": math.nan}, "`keep` is nan"),
        ({"rule": "energy", "keep": "0.9"}, r"`keep` is '0.9' \(str\); expected a real number"),
        ({"rule": "energy", "keep": True}, r"`keep` is True \(bool\)"),
        (
            {"keep": 0.9},
            "`keep` is 0.9 and `rule` 'bema'; `keep` belongs to the rules 'energy' and",
        ),
        (
            {"rule": "energy", "keep": 0.9, "bulk_keep": 0.45},
            "`bulk_keep` belongs to the rules 'bema' and",
        ),
        ({"rule": "energy", "keep": 0.9, "bulk_keep": 45}, "`bulk_keep` is 45; expected a number"),
        ({"rule": "energy", "keep": 0.9, "min_rank": 785}, "from 0 to 784"),
        ({"bulk_keep": -0.1}, "share"),
        ({"bulk_keep": 45}, "share"),
        ({"min_rank": -1}, "min_rank"),
        ({"min_rank": 1.5}, "whole number"),
        ({"min_rank": True}, "whole number"),
    ],
)
def test_bad_options(case, options, words):
    with pytest.raises(rmtspec.RmtspecError, match=words):
        rmtspec.choose_rank(*case, **options)
