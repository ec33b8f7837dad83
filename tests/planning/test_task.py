"""Subjects and tasks over simple matrices: what is chosen, analysed, told and planned."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from planted import planted

from rmtspec.errors import InvalidValueError
from rmtspec.planning.calibration import Weights
from rmtspec.planning.options import PlanOptions
from rmtspec.planning.selection import Selection
from rmtspec.planning.target import Target
from rmtspec.planning.task import NothingToAnalyzeError, Subject, Task
from rmtspec.report.many import analyze_many
from rmtspec.report.options import AnalysisOptions


@dataclass(frozen=True, kw_only=True)
class Weight(Target):
    array: Any = None
    calls: list[str] = field(default_factory=list)

    def __call__(self):
        self.calls.append(self.layer)
        assert not self.reason
        return self.array


def weight(layer, array=None, **more):
    array = planted(60, 40, 20.0) if array is None else array
    return Weight(**{"layer": layer, "kind": "linear", "shape": array.shape, "itemsize": 4,
                     "array": array, **more})  # fmt: skip


def model(**more):
    """Two matrices of an attention layer, an embedding, a head, and one that cannot be read."""
    return {
        "attn.q": weight("attn", aliases=("attn.in_proj",)),
        "attn.k": weight("attn", planted(60, 30), aliases=("attn.in_proj",)),
        "table": weight("table", kind="embedding", on_request="an embedding"),
        "head": weight("head", planted(80, 50, 10.0), **more),
        "mask": weight("mask", reason="sparse"),
    }


def subject(matrices=None, include=None, exclude=None, **more):
    matrices = model() if matrices is None else matrices
    return Subject(matrices, Selection(include, exclude), "this model", **more)


def task(matrices=None, **options):
    asked = PlanOptions.of(options)
    return Task(Subject(matrices or model(), asked.selection(), "this model"), asked)


# What is chosen.


def test_all_are_chosen_by_default():
    one = subject()
    assert list(one.matrices) == list(model())
    assert one.left_out == []
    assert list(one.targets) == list(model())


def test_targets_say_what_the_matrices_say():
    matrices = {
        "a": weight("a", fixed="tied", aliases=("a.weight",)),
        "b": weight("b", reason="sparse", itemsize=2),
        "c": weight("c", unsplittable="attention", on_request="asked", kind="conv2d"),
    }
    for name, found in subject(matrices).targets.items():
        for key in (
            "layer",
            "kind",
            "shape",
            "itemsize",
            "reason",
            "fixed",
            "unsplittable",
            "on_request",
        ):
            assert getattr(found, key) == getattr(matrices[name], key)
        assert not found.named
        assert set(found.names) == set(matrices[name].names)
        assert not callable(found)  # no array is held by it


def test_a_pattern_meets_a_matrix_under_all_its_names():
    assert list(subject(include="in_proj").matrices) == ["attn.q", "attn.k"]
    assert list(subject(include="^attn$").matrices) == ["attn.q", "attn.k"]
    assert list(subject(include=r"head|table").matrices) == ["table", "head"]


def test_what_include_names_is_named_in_its_target():
    named = subject(include="table|head").targets
    assert [target.named for target in named.values()] == [True, True]
    assert not any(target.named for target in subject(exclude="mask").targets.values())


def test_what_is_left_out_is_told_with_its_reason():
    one = subject(include=["attn", "nothing"], exclude="k|never")
    assert list(one.matrices) == ["attn.q"]
    reasons = {entry["name"]: entry["reason"] for entry in one.left_out}
    assert reasons == {
        "attn.k": "in `exclude`",
        "table": "not in `include`",
        "head": "not in `include`",
        "mask": "not in `include`",
        "include='nothing'": "this pattern meets no matrix",
    }


def test_a_layer_of_which_a_matrix_is_left_out_cannot_be_split():
    one = subject(exclude=r"attn\.k|head")
    assert one.targets["attn.q"].unsplittable == "attn.k of the same layer is in `exclude`"
    assert one.targets["table"].unsplittable == ""
    vector = {"fc": weight("fc"), "fc.bias": weight("fc", kind="", reason="a vector")}
    assert subject(vector, exclude="bias").targets["fc"].unsplittable == ""
    assert list(subject(vector).targets) == ["fc"]  # nothing can be done to a vector


def test_predicates_are_given_what_the_matrix_belongs_to():
    seen = []

    def asked(name, owner):
        seen.append((name, owner))
        return owner == "HEAD"

    one = subject(include=asked, owner_of=lambda matrix: matrix.layer.upper())
    assert list(one.matrices) == ["head"]
    assert ("attn", "ATTN") in seen


def test_an_adapter_may_leave_a_matrix_that_passes():
    one = subject(leave=lambda matrix: "done before" if matrix.layer == "head" else "")
    assert one.left_out == [{"name": "head", "reason": "done before"}]
    assert "head" not in one.targets


# Where nothing is left.


def test_nothing_is_met():
    with pytest.raises(NothingToAnalyzeError) as caught:
        subject(include="decoder", hint="Names are those of layers.")
    assert str(caught.value) == (
        "No weight matrix of this model is left to analyse; no name matches "
        "include='decoder'. Names are those of layers.\n"
        "  5 (attn.q, attn.k, table and 2 more): not in `include`"
    )
    assert len(caught.value.skipped) == 6


def test_nothing_can_be_read():
    with pytest.raises(NothingToAnalyzeError) as caught:
        subject(include="mask")
    assert str(caught.value).splitlines() == [
        "No weight matrix of this model is left to analyse.",
        "  1 (mask): sparse",
        "  4 (attn.q, attn.k, table and 1 more): not in `include`",
    ]
    assert {"name": "mask", "reason": "sparse"} in caught.value.skipped


def test_a_model_without_parameters():
    with pytest.raises(NothingToAnalyzeError, match=r"left to analyse: it has no parameters.$"):
        subject({})


# The analysis.


def test_the_report_is_that_of_the_readable_matrices():
    matrices = model()
    report = subject(matrices).analyze(AnalysisOptions(beta=0.05))
    arrays = {name: m.array for name, m in matrices.items() if not m.reason}
    same = analyze_many(arrays, beta=0.05)
    assert [row["name"] for row in report.rows] == list(arrays)
    for row, other in zip(report.rows, same.rows, strict=True):
        assert row["kind"] == matrices[row["name"]].kind
        assert {**row, "kind": "matrix", "seconds": 0} == {**other, "seconds": 0}
    assert report.settings == same.settings
    assert report.matrices.keys() == arrays.keys()


def test_what_has_a_reason_is_never_called_and_keeps_its_place_among_the_skipped():
    matrices = {
        "mask": weight("mask", reason="sparse"),
        "good": weight("good"),
        "nan": weight("nan", np.full((30, 20), np.nan)),
        "meta": weight("meta", reason="on the meta device"),
        "other": weight("other"),
    }
    done = []
    report = subject(matrices, exclude="other").analyze(
        AnalysisOptions(), progress=lambda *state: done.append(state)
    )
    assert [entry["name"] for entry in report.skipped] == ["mask", "nan", "meta", "other"]
    assert [entry["reason"] for entry in report.skipped][::2] == ["sparse", "on the meta device"]
    assert [matrix.calls for matrix in matrices.values()] == [[], ["good"], ["nan"], [], []]
    assert done == [(1, 2, "good"), (2, 2, "nan")]


def test_the_patterns_are_among_the_settings():
    report = subject(include=["attn", "head"], exclude="k$").analyze(AnalysisOptions())
    assert report.settings["include"] == ["'attn'", "'head'"]
    assert report.settings["exclude"] == ["'k$'"]


def test_where_no_matrix_can_be_analysed_it_says_why():
    matrices = {"a": weight("a", np.full((30, 20), np.nan)), "b": weight("b", reason="sparse")}
    with pytest.raises(InvalidValueError) as caught:
        subject(matrices).analyze(AnalysisOptions())
    lines = str(caught.value).splitlines()
    assert lines[0] == "No weight matrix of this model could be analysed."
    assert "1 (a): " in lines[1]
    assert "nan" in lines[1]
    assert lines[2:] == ["  1 (b): sparse"]


# The task.


def test_a_task_plans_what_is_asked():
    one = task(bulk_keep=0.0, gate=None)
    plan = one.plan(one.analyze())
    assert {row["name"]: (row["action"], row["rank"]) for row in plan.rows} == {
        "attn.q": ("split", 1),
        "attn.k": ("split", 1),
        "table": ("keep", 1),
        "head": ("split", 1),
    }
    assert plan.row("table")["reason"] == "an embedding"
    assert plan.skipped == [{"name": "mask", "reason": "sparse"}]
    assert one.candidates(one.analyze()) == ["attn.q", "attn.k", "head"]


def test_ranks_that_are_not_possible_raise_before_all_the_work():
    matrices = model(fixed="tied to table")
    for ranks, message in (
        ({"haed": 3}, "Did you mean 'head'"),
        ({"head": 3}, "stays as it is: tied to table"),
        ({"mask": 3}, "was skipped: sparse"),
        ({"attn": 31}, "from 1 to 30"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            task(matrices, ranks=ranks)
    assert not any(matrix.calls for matrix in matrices.values())


def test_energies_are_handed_to_the_budget():
    same = np.random.default_rng(0).standard_normal((100, 60))
    one = task({name: weight(name, same) for name in "ab"}, budget=0.4, gate=None)
    report = one.analyze()
    assert [row["rank"] for row in one.plan(report).rows] == [15, 15]
    first = np.zeros((60, 60))
    first[0, 0] = 1.0  # only the first input of `a` ever comes
    moved = one.plan(report, one.curves(report, {"a": Weights(first, None, None, "", 1000)}))
    assert moved.row("a")["rank"] == 1
    assert moved.row("b")["rank"] > 15


def test_how_to_work_goes_to_the_analysis():
    done = []
    task(bulk_keep=0.0, progress=lambda *state: done.append(state)).analyze()
    assert done == [
        (k + 1, 4, name) for k, name in enumerate(["attn.q", "attn.k", "table", "head"])
    ]
