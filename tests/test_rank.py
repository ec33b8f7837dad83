"""Rank rules."""

import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "energy"}, "expected one of bema"),
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
