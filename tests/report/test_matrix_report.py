"""One call over one matrix."""

import dataclasses
import json
import re

import numpy as np
import pytest

import rmtspec
from rmtspec import ensembles

KEYS = {
    "name", "kind", "rows", "columns", "n", "p", "ratio", "variance", "lower_edge", "bulk_edge",
    "threshold", "n_spikes", "fit_statistic", "fit_pvalue", "accepted", "rank", "break_even",
    "parameters_before", "parameters_after", "reason", "seconds",
}  # fmt: skip


def test_holds_what_the_four_functions_say():
    W = ensembles.spiked(500, 300, [3.0, 20.0], rng=0).astype(np.float32)
    report = rmtspec.analyze(W, name="W1", beta=0.01, bulk_keep=0.1)
    spec = rmtspec.spectrum(W)
    fit = rmtspec.bema(spec, beta=0.01)
    assert report.fit.to_dict() == fit.to_dict()
    assert report.test == rmtspec.fit_test(spec, fit)
    noise = rmtspec.fit_noise(W, beta=0.01)
    assert report.noise.to_dict() == noise.to_dict()
    chosen = rmtspec.choose_rank(spec, noise, bulk_keep=0.1)
    assert report.rank == dataclasses.replace(chosen, n_spikes=2)
    plain = rmtspec.analyze(W, noise="mp", beta=0.01, bulk_keep=0.1)
    assert plain.rank == rmtspec.choose_rank(spec, fit, bulk_keep=0.1)
    row = report.to_dict()
    assert set(row) >= KEYS
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert (row["name"], row["dtype"], row["n_spikes"], row["rank"]) == ("W1", "float32", 2, 31)
    assert (row["parameters_before"], row["parameters_after"]) == (150_000, 31 * 800)
    assert "31 (a split saves below 187.5)" in repr(report)


def test_takes_a_spectrum():
    spec = rmtspec.spectrum(ensembles.wishart(90, 60, rng=0))
    assert rmtspec.analyze(spec).spectrum is spec


def test_same_report_for_the_transpose():
    W = ensembles.spiked(500, 300, [3.0, 20.0], rng=0)
    here, there = (rmtspec.analyze(X).to_dict() for X in (W, W.T))
    for key in set(here) - {"seconds", "rows", "columns"}:
        if isinstance(here[key], float):
            assert here[key] == pytest.approx(there[key], rel=1e-9)
        else:
            assert here[key] == there[key]


def test_no_bulk_is_nan_with_a_reason():
    row = rmtspec.analyze(np.ones((80, 40))).to_dict()
    assert row["reason"] == "no bulk; only rounding is left beyond rank 1"
    assert rmtspec.analyze(np.ones((80, 40)), noise="mp").reason == "no bulk"
    for key in ("variance", "threshold", "n_spikes", "fit_statistic", "fit_pvalue"):
        assert row[key] is None
    assert (row["accepted"], row["rank"], row["parameters_after"]) == (False, 0, 3200)
    assert "no bulk" in repr(rmtspec.analyze(np.ones((80, 40))))


def test_a_rule_without_a_law_shows_its_rank_without_a_fit():
    report = rmtspec.analyze(np.ones((80, 40)), rule="energy", keep=0.9)
    row = report.to_dict()
    assert (row["rank"], row["rule"], row["keep"], row["saves"]) == (1, "energy", 0.9, True)
    assert (row["reason"], row["parameters_after"]) == ("no bulk", 120)
    assert re.search(r"\n  rank +1 \(a split saves below 26\.7\)", repr(report))
    assert re.search(r"numerical rank +1 of 40; rule='exact' keeps it whole", repr(report))
    assert "spikes" not in repr(report)
    row = rmtspec.analyze(np.zeros((80, 40)), rule="energy", keep=0.9).to_dict()
    assert (row["rank"], row["reason"]) == (0, "no bulk; no signal found")
    row = rmtspec.analyze(np.ones((80, 40))).to_dict()
    assert (row["rule"], row["keep"]) == ("noise", None)


@pytest.mark.parametrize("p", [1, 2, 15])
def test_small_side_is_unreliable(p):
    report = rmtspec.analyze(ensembles.wishart(100, p, rng=0))
    assert not report.reliable
    assert f"unreliable: smaller side {p} is below 16" in report.reason
    assert rmtspec.analyze(ensembles.wishart(100, 16, rng=0)).reliable


def test_bad_arguments():
    with pytest.raises(TypeError, match="expected text"):
        rmtspec.analyze(np.ones((20, 20)), name=3)
    with pytest.raises(ValueError, match="alpha"):
        rmtspec.analyze(np.ones((20, 20)), alpha=2)


def test_plot_is_titled():
    import matplotlib.figure

    ax = matplotlib.figure.Figure().subplots()
    assert rmtspec.analyze(ensembles.wishart(60, 40, rng=0), name="W7").plot(ax) is ax
    assert ax.get_title() == "W7"


def test_what_was_absorbed_and_other_remarks_are_not_kept_quiet():
    W = np.random.default_rng(0).standard_normal((100, 80))
    assert rmtspec.analyze(W).noise.remarks == ""
    assert "remarks" not in repr(rmtspec.analyze(W))
    W[3] *= 100
    W[:, [5, 7]] *= 50
    large = rmtspec.analyze(W)
    words = "large rows taken as noise, by index: 3; large columns taken as noise, by index: 5, 7"
    assert large.to_dict()["noise_remarks"] == words
    assert f"remarks         {words}\n" in repr(large)
    skewed = rmtspec.analyze(np.random.default_rng(0).exponential(size=(100, 80)) - 1, beta=0.01)
    assert "the entries are skewed" in skewed.to_dict()["noise_remarks"]
    assert "the entries are skewed" in repr(skewed)
    known = rmtspec.analyze(rmtspec.spectrum(W), noise="auto")
    assert known.noise.remarks == "mp used: the entries are not known, only eigenvalues"
