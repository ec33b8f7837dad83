"""Plans from spectra whose bulk and spikes are known: what is done to each matrix, and why."""

import json
import math

import numpy as np
import pytest
from planted import planned, planted, targets_of

from rmtspec import Spectrum
from rmtspec.errors import InvalidValueError
from rmtspec.planning.curves import Curves
from rmtspec.planning.options import PlanOptions
from rmtspec.planning.plan import Plan, candidates, make_plan, plan_of, settle
from rmtspec.report.many import report_on_many

SIGNAL = planted(100, 60, 20.0, 50.0)
NOISE = planted(80, 40)
SMALL = planted(40, 10, 30.0)
ZERO = Spectrum(np.zeros(20), n=40)
#: Far from the law: eigenvalues in even steps.
EVEN = Spectrum(np.linspace(0.1, 10.0, 30), n=60)
#: Two eigenvalues and rounding: no bulk is left to fit.
LOW = Spectrum(np.append(np.zeros(28), [3.0, 5.0]), n=60)


def only(plan):
    (row,) = plan.rows
    return row


def done(plan):
    return {row["name"]: (row["action"], row["rank"], row["reason"]) for row in plan.rows}


def test_a_matrix_with_a_signal_is_split_at_the_rank_of_its_rule():
    row = only(planned({"a": SIGNAL}, bulk_keep=0.0))
    assert (row["action"], row["rank"], row["rule"], row["reason"]) == ("split", 2, "bema", "")
    assert row["layer"] == "a"
    assert row["saves"]
    assert (row["parameters_before"], row["parameters_after"]) == (6000, 2 * 160)
    assert (row["bytes_before"], row["bytes_after"]) == (24000, 2 * 160 * 4)
    assert (row["multiply_adds_before"], row["multiply_adds_after"]) == (6000, 320)
    values = SIGNAL.eigenvalues
    assert row["weight_error"] == pytest.approx(math.sqrt(values[:58].sum() / values.sum()))
    assert row["output_error"] is None


def test_the_papers_share_of_the_bulk_is_kept_by_default():
    plan = planned({"a": SIGNAL, "b": NOISE})
    assert done(plan) == {"a": ("split", 2 + 26, ""), "b": ("split", 18, "")}


# Why a matrix is left alone.


@pytest.mark.parametrize(
    ("matrix", "reason", "more", "options"),
    [
        (NOISE, "no signal found", {}, {"bulk_keep": 0.0}),
        (LOW, "no bulk", {}, {"mode": "truncate"}),
        (ZERO, "all zeros: two factors of zeros would not train", {}, {}),
        (ZERO, "all zeros: two factors of zeros would not train", {}, {"mode": "truncate"}),
        (SMALL, "smaller side 10 is below 16", {}, {}),
        (SMALL, "smaller side 10 is below 16", {}, {"budget": 0.5}),
        (EVEN, "fit rejected: statistic 0.05004 above 0.05", {}, {"fit_cutoff": 0.05}),
        (LOW, "no bulk", {}, {"fit_cutoff": 0.05, "mode": "truncate"}),
        (EVEN, "cannot tell: let data decide with calibration= and budget=, or gate=None", {},
         {"gate": "noise"}),
        (SIGNAL, "rank 60 is not below break-even 37.5", {}, {"bulk_keep": 1.0}),
        (SIGNAL, "saves 94.7%, less than min_saving 95.0%", {},
         {"bulk_keep": 0.0, "min_saving": 0.95}),
        (SIGNAL, "rank 60 is full", {}, {"mode": "truncate", "rule": "fraction", "keep": 1.0}),
        (SIGNAL, "an embedding", {"on_request": "an embedding"}, {}),
        (SIGNAL, "tied to b", {"fixed": "tied to b"}, {}),
        (SIGNAL, "tied to b", {"fixed": "tied to b"}, {"mode": "truncate"}),
        (SIGNAL, "attention reads it", {"unsplittable": "attention reads it"}, {}),
        (SIGNAL, "attention reads it", {"unsplittable": "attention reads it"}, {"budget": 0.5}),
    ],
)  # fmt: skip
def test_it_says_why_a_matrix_is_left_alone(matrix, reason, more, options):
    row = only(planned({"a": matrix}, {"a": more}, **options))
    assert (row["action"], row["reason"]) == ("keep", reason)
    assert not row["saves"]
    assert row["parameters_after"] == row["parameters_before"]
    assert row["weight_error"] is None


@pytest.mark.parametrize("mode", ["split", "truncate"])
def test_a_matrix_that_is_named_is_cut_even_if_small_or_on_request(mode):
    more = {"a": {"named": True}, "b": {"named": True, "on_request": "an embedding"}}
    plan = planned({"a": SMALL, "b": SIGNAL}, more, mode=mode)
    assert [row["action"] for row in plan.rows] == [mode] * 2


def test_a_named_matrix_must_still_pass_the_gate_and_be_possible():
    more = {name: {"named": True} for name in "abc"}
    more["b"]["fixed"] = "tied to c"
    plan = planned({"a": EVEN, "b": SIGNAL, "c": ZERO}, more, fit_cutoff=0.05)
    assert [row["action"] for row in plan.rows] == ["keep"] * 3


def test_what_cannot_be_split_may_be_truncated():
    row = only(planned({"a": SIGNAL}, {"a": {"unsplittable": "attention"}}, mode="truncate"))
    assert (row["action"], row["rank"]) == ("truncate", 28)
    assert not row["saves"]
    assert row["parameters_after"] == row["multiply_adds_after"] == 6000
    assert row["weight_error"] > 0.0


def test_a_fit_at_the_cutoff_passes():
    assert only(planned({"a": EVEN}, fit_cutoff=0.051))["action"] == "split"
    assert only(planned({"a": EVEN}))["action"] == "split"


def test_min_saving_counts_the_whole_layer():
    matrices = {"a": SIGNAL, "b": NOISE}
    more = {name: {"layer": "rnn"} for name in "ab"}
    saving = 1.0 - 2 * (160 + 120) / (6000 + 3200)
    for least, action in ((saving - 0.001, "split"), (saving + 0.001, "keep")):
        plan = planned(matrices, more, bulk_keep=0.0, min_saving=least)
        assert {row["action"] for row in plan.rows} == {action}


# Several matrices of one layer.


def test_the_matrices_of_a_layer_are_split_at_the_largest_of_their_ranks():
    more = {name: {"layer": "rnn"} for name in "ab"}
    plan = planned({"a": SIGNAL, "b": NOISE, "c": SIGNAL}, more, bulk_keep=0.0)
    assert done(plan) == {"a": ("split", 2, ""), "b": ("split", 2, ""), "c": ("split", 2, "")}
    assert [row["layer"] for row in plan.rows] == ["rnn", "rnn", "c"]


def test_one_matrix_that_must_stay_keeps_its_layer():
    more = {"a": {"layer": "conv"}, "b": {"layer": "conv", "fixed": "tied to c"}}
    plan = planned({"a": SIGNAL, "b": SIGNAL}, more)
    assert {row["action"] for row in plan.rows} == {"keep"}
    reasons = [row["reason"] for row in plan.rows]
    assert reasons == ["b of the same layer: tied to c", "tied to c"]


def test_truncated_matrices_of_a_layer_have_ranks_of_their_own():
    more = {name: {"layer": "rnn", "unsplittable": "gates"} for name in "ab"}
    plan = planned({"a": SIGNAL, "b": NOISE}, more, bulk_keep=0.0, mode="truncate")
    assert done(plan) == {"a": ("truncate", 2, ""), "b": ("keep", 0, "no signal found")}


@pytest.mark.parametrize("options", [{}, {"budget": 0.5}])
def test_what_cannot_be_split_does_not_hold_its_layer_up(options):
    more = {"a": {"layer": "attn"}, "b": {"layer": "attn", "unsplittable": "read elsewhere"}}
    plan = planned({"a": SIGNAL, "b": SIGNAL}, more, **options)
    assert plan.row("a")["action"] == "split"
    assert (plan.row("b")["action"], plan.row("b")["reason"]) == ("keep", "read elsewhere")


def test_a_layer_of_which_a_matrix_was_skipped_stays():
    broken = np.full((40, 30), np.nan)
    more = {"a": {"layer": "conv"}, "b": {"layer": "conv"}}
    plan = planned({"a": SIGNAL, "b": broken, "c": SIGNAL}, more)
    assert [entry["name"] for entry in plan.skipped] == ["b"]
    assert plan.row("a")["reason"] == "b of the same layer was skipped"
    assert plan.row("c")["action"] == "split"
    truncated = planned({"a": SIGNAL, "b": broken}, more, mode="truncate")
    assert truncated.row("a")["action"] == "truncate"
    with pytest.raises(InvalidValueError, match="'a', which stays as it is: b of the same layer"):
        planned({"a": SIGNAL, "b": broken}, more, ranks={"a": 3})
    with pytest.raises(InvalidValueError, match=r"'b', which was skipped.*nan"):
        planned({"a": SIGNAL, "b": broken}, more, ranks={"b": 3})


# Ranks that are given.


def test_a_given_rank_passes_every_soft_reason():
    more = {"c": {"on_request": "an embedding"}}
    matrices = {"a": SMALL, "b": EVEN, "c": SIGNAL, "d": ZERO, "e": NOISE}
    ranks = {"a": 9, "b": 29, "c": 60, "d": 1, "e": 3}
    plan = planned(matrices, more, ranks=ranks, fit_cutoff=0.01, bulk_keep=0.0, min_saving=0.99)
    assert {name: (action, rank) for name, (action, rank, _) in done(plan).items()} == {
        name: ("split", rank) for name, rank in ranks.items()
    }
    assert {row["rule"] for row in plan.rows} == {"given"}
    assert {row["keep"] for row in plan.rows} == {None}
    assert not plan.row("c")["saves"]
    assert plan.row("c")["weight_error"] == pytest.approx(0.0, abs=1e-9)
    assert plan.row("d")["weight_error"] is None  # of nothing, nothing can be lost
    assert plan.settings["ranks"] == ranks


def test_a_share_is_not_shown_where_it_did_not_decide():
    plan = planned({"a": SIGNAL, "b": SIGNAL}, rule="energy", keep=0.5, ranks={"b": 3})
    assert [row["rule"] for row in plan.rows] == ["energy", "given"]
    assert [row["keep"] for row in plan.rows] == [0.5, None]


@pytest.mark.parametrize("more", [{"fixed": "tied to b"}, {"unsplittable": "attention"}])
def test_a_given_rank_does_not_pass_what_is_not_possible(more):
    with pytest.raises(InvalidValueError, match=f"`ranks` names 'a'.*{next(iter(more.values()))}"):
        planned({"a": SIGNAL}, {"a": more}, ranks={"a": 3})


def test_a_rank_given_for_a_layer_is_that_of_all_its_matrices():
    more = {name: {"layer": "rnn"} for name in "ab"}
    plan = planned({"a": SIGNAL, "b": SMALL}, more, ranks={"rnn": 4})
    assert done(plan) == {"a": ("split", 4, ""), "b": ("split", 4, "")}
    one = planned({"a": SIGNAL, "b": NOISE}, more, ranks={"a": 5})
    assert done(one) == {"a": ("split", 5, ""), "b": ("split", 5, "")}
    both = planned({"a": SIGNAL, "b": NOISE}, more, ranks={"a": 5, "b": 6})
    assert done(both) == {"a": ("split", 6, ""), "b": ("split", 6, "")}
    soft = planned({"a": SIGNAL, "b": SMALL}, more, ranks={"a": 5})
    assert done(soft) == {"a": ("split", 5, ""), "b": ("split", 5, "")}
    alone = planned({"a": SIGNAL, "b": NOISE}, more, ranks={"a": 5}, mode="truncate", bulk_keep=0.0)
    assert done(alone) == {"a": ("truncate", 5, ""), "b": ("keep", 0, "no signal found")}


# A budget.


def test_a_budget_goes_where_it_removes_the_most_error():
    same = {"a": planted(100, 60), "b": planted(100, 60)}
    plan = planned(same, budget=0.4)
    assert {row["rank"] for row in plan.rows} == {int(0.4 * 6000 // 160)}
    assert plan.parameters_after <= 0.4 * 12000
    assert {row["rule"] for row in plan.rows} == {"budget"}
    # With energies of its outputs, `a` holds nothing after its third rank.
    curves = Curves(energies={"a": np.r_[5.0, 3.0, 1.0, np.zeros(57)]})
    moved = planned(same, curves=curves, budget=0.4)
    assert moved.row("a")["rank"] <= 3
    assert moved.row("b")["rank"] > plan.row("b")["rank"]
    assert moved.parameters_after <= 0.4 * 12000


def test_outputs_that_are_all_zero_need_one_rank():
    same = {"a": planted(100, 60), "b": planted(100, 60)}
    plan = planned(same, curves=Curves(energies={"a": np.zeros(60)}), budget=0.2)
    assert plan.row("a")["rank"] == 1
    assert plan.row("b")["rank"] == int(0.2 * 12000 // 160) - 1


def test_a_layer_that_is_better_left_dense_says_so():
    low = np.random.default_rng(0).standard_normal((100, 3))
    even = Spectrum(np.ones(60), n=100)
    plan = planned({"a": low @ low.T, "b": even}, budget=0.7)
    assert plan.row("a")["action"] == "split"
    row = plan.row("b")
    assert (row["action"], row["rank"]) == ("keep", 60)
    assert row["reason"] == "stays dense: so the budget buys the most"


def test_a_budget_counts_neither_what_stays_nor_what_has_a_rank():
    matrices = {"a": SIGNAL, "b": SIGNAL, "c": SMALL, "d": NOISE}
    more = {"b": {"fixed": "tied"}}
    plan = planned(matrices, more, budget=0.5, ranks={"d": 39})
    assert plan.row("a")["parameters_after"] <= 3000
    assert plan.row("a")["parameters_after"] > 3000 - 160
    assert plan.row("b")["reason"] == "tied"
    assert (plan.row("d")["rank"], plan.row("d")["rule"]) == (39, "given")
    assert plan.row("c")["rule"] == "budget"


def test_a_budget_with_nothing_to_cut_changes_nothing():
    assert only(planned({"a": SMALL}, budget=0.5))["action"] == "keep"


def test_a_budget_for_less_than_rank_1_is_refused():
    with pytest.raises(InvalidValueError, match=r"`budget` is 0.01.*rank 1 everywhere needs 160"):
        planned({"a": SIGNAL}, budget=0.01)


def test_matrices_of_a_layer_buy_one_rank():
    more = {name: {"layer": "rnn"} for name in "ab"}
    plan = planned({"a": SIGNAL, "b": NOISE}, more, budget=0.5)
    assert len({row["rank"] for row in plan.rows}) == 1
    assert 0.5 * 9200 - 280 < plan.parameters_after <= 0.5 * 9200


# Low rank, exactly.


@pytest.mark.parametrize("options", [{}, {"gate": "noise"}, {"gate": 0.001}, {"bulk_keep": 0.0}])
def test_a_matrix_of_low_rank_passes_every_gate_and_is_split_at_its_rank(options):
    row = only(planned({"a": LOW}, **options))
    assert (row["action"], row["rank"], row["rule"], row["reason"]) == ("split", 2, "exact", "")
    assert row["weight_error"] == 0.0
    assert row["saves"]


def test_another_rule_or_a_rank_that_saves_nothing_has_the_last_word():
    row = only(planned({"a": LOW}, rule="fraction", keep=0.5))
    assert (row["rank"], row["rule"]) == (15, "fraction")
    half = Spectrum(np.append(np.zeros(5), np.linspace(1.0, 9.0, 25)), n=60)
    assert only(planned({"a": half}))["rule"] == "bema"
    assert only(planned({"a": LOW}, ranks={"a": 1}))["rule"] == "given"


# The plan as a whole.


def test_settings_say_what_decided():
    plan = planned({"a": SIGNAL}, bulk_keep=0.1, fit_cutoff=0.2, min_saving=0.3, beta=0.05)
    for name, value in {
        "mode": "split", "bulk_keep": 0.1, "gate": 0.2, "cutoff": 0.2, "min_saving": 0.3,
        "beta": 0.05, "rule": "bema", "ranks": {}, "budget": None,
    }.items():  # fmt: skip
        assert plan.settings[name] == value, name
    bought = planned({"a": SIGNAL}, budget=0.5).settings
    assert bought["budget"] == 0.5
    assert not {"rule", "bulk_keep", "keep"} & bought.keys()


def test_the_report_is_not_changed():
    options = PlanOptions()
    report = report_on_many({"a": SIGNAL, "b": NOISE}, options.analysis, 1, None)
    before = json.dumps(report.to_dict())
    plan = make_plan(report, targets_of({"a": SIGNAL, "b": NOISE}, {}), options)
    plan.row("a")["rank"] = 1
    assert json.dumps(report.to_dict()) == before
    assert plan.matrices is report.matrices


def test_candidates_are_what_a_plan_may_cut():
    matrices = {"a": SIGNAL, "b": SMALL, "c": EVEN, "d": SIGNAL}
    options = PlanOptions(fit_cutoff=0.05, bulk_keep=0.0, ranks={"b": 3})
    report = report_on_many(matrices, options.analysis, 1, None)
    targets = targets_of(matrices, {"d": {"fixed": "tied"}})
    assert candidates(report, targets, options) == ["a", "b"]


def test_cut_is_what_is_split_or_truncated():
    plan = planned({"a": SIGNAL, "b": NOISE, "c": SIGNAL}, bulk_keep=0.0)
    plan.row("c")["action"] = "truncate"
    assert [row["name"] for row in plan.cut] == ["a", "c"]
    assert plan.cut[0] is plan.row("a")
    plan.row("a")["action"] = "keep"
    assert [row["name"] for row in plan.cut] == ["c"]


def test_a_plan_goes_through_a_file(tmp_path):
    plan = planned({"a": SIGNAL, "b": NOISE, "c": SMALL}, bulk_keep=0.0)
    text = plan.to_json(tmp_path / "plan.json")
    read = Plan.from_json(tmp_path / "plan.json")
    assert type(read) is Plan
    assert read.rows == json.loads(text)["rows"]
    assert [row["name"] for row in read.cut] == ["a"]
    assert read.settings == json.loads(text)["settings"]
    assert read.to_json() == text


def test_a_report_becomes_a_plan_with_some_of_its_fields_changed():
    plan = planned({"a": SIGNAL})
    other = plan_of(plan, totals={"parameters_before": 1, "parameters_after": 1})
    assert type(other) is Plan
    assert (other.rows, other.settings) == (plan.rows, plan.settings)
    assert other.totals != plan.totals
    with pytest.raises(TypeError):
        plan_of(plan, nothing=1)


def test_it_shows_actions_and_errors():
    header, cells = planned({"a": SIGNAL, "b": NOISE}, bulk_keep=0.0).cells()
    assert header[-3:] == ["action", "error", "reason"]
    assert [line[-3:] for line in cells] == [
        ["split", "0.673", ""],
        ["keep", "", "no signal found"],
    ]


@pytest.mark.parametrize(
    ("kind", "action", "rank", "after", "work"),
    [
        ("linear", "split", 3, 3 * 160, 3 * 160),
        ("linear", "truncate", 3, 6000, 6000),
        ("linear", "keep", 3, 6000, 6000),
        ("embedding", "split", 3, 3 * 160, 3 * 60),
        ("embedding", "keep", 3, 6000, 0),
    ],
)
def test_sizes_follow_from_action_and_rank(kind, action, rank, after, work):
    row = {"rows": 100, "columns": 60, "rank": rank, "action": action, "kind": kind}
    row |= {"bytes_before": 12000, "weight_error": 0.5, "output_error": 0.5}
    settle(row)
    assert (row["parameters_before"], row["parameters_after"]) == (6000, after)
    assert row["bytes_after"] == after * 2
    assert row["multiply_adds_before"] == (0 if kind == "embedding" else 6000)
    assert row["multiply_adds_after"] == work
    assert row["saves"] == (after < 6000)
    assert row["weight_error"] == row["output_error"] == (None if action == "keep" else 0.5)


def test_a_matrix_says_which_one_of_its_layer_is_in_the_way():
    rng = np.random.default_rng(0)
    orthogonal = np.linalg.qr(rng.standard_normal((200, 64)))[0]
    noise = {"conv[0]": rng.standard_normal((200, 64)), "conv[1]": orthogonal, "alone": orthogonal}
    more = {name: {"layer": "conv"} for name in ("conv[0]", "conv[1]")}
    plan = planned(noise, more, gate="noise")
    advice = "no noise-like bulk: let data decide with calibration= and budget=, or gate=None"
    assert {row["name"]: row["reason"] for row in plan.rows} == {
        "conv[0]": f"conv[1] of the same layer: {advice}", "conv[1]": advice, "alone": advice
    }  # fmt: skip
    assert {row["action"] for row in plan.rows} == {"keep"}
    forced = planned(noise, more, gate="noise", ranks={"conv[0]": 9})
    assert [(row["rank"], row["reason"]) for row in forced.rows[:2]] == [(9, ""), (9, "")]
