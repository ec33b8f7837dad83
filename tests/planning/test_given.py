"""A plan that is given: what is refused, and what is settled anew."""

import copy

import pytest
from planted import planned, planted, target

from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.planning.given import adopt
from rmtspec.planning.plan import Plan
from rmtspec.report.many import analyze_many
from rmtspec.report.report import Report

MATRICES = {"a": planted(100, 60, 20.0, 50.0), "b": planted(80, 40), "c": planted(60, 60, 30.0)}
OWNER = "model.safetensors"


@pytest.fixture(scope="module")
def made():
    return planned(MATRICES, bulk_keep=0.2)


@pytest.fixture
def plan(made):
    return copy.deepcopy(made)


def targets(**more):
    return {name: target(name, m.shape, **more.get(name, {})) for name, m in MATRICES.items()}


def adopted(plan, dense=False, **more):
    return adopt(plan, targets(**more), owner=OWNER, dense=dense)


# What is refused.


@pytest.mark.parametrize("given", [None, {}, [], "plan.json"])
def test_what_is_not_a_plan(given):
    with pytest.raises(InvalidTypeError, match=f"`plan` is a {type(given).__name__}.*from_json"):
        adopted(given)


def test_a_report_is_not_a_plan():
    report = analyze_many(MATRICES)
    with pytest.raises(InvalidValueError, match=r"row 'a' has no '\w+': this is a report"):
        adopted(report)


@pytest.mark.parametrize("key", ["action", "rank"])
def test_a_row_in_which_something_is_missing(plan, key):
    del plan.row("b")[key]
    with pytest.raises(InvalidValueError, match=f"row 'b' has no '{key}'"):
        adopted(plan)


@pytest.mark.parametrize("key", ["name", "rows", "columns"])
def test_a_row_that_does_not_tell_its_matrix(plan, key):
    del plan.rows[1][key]
    with pytest.raises(InvalidValueError, match="made for"):
        adopted(plan)


def test_a_name_that_is_not_there(plan):
    plan.row("b")["name"] = "bb"
    with pytest.raises(InvalidValueError, match=f"names 'bb'.* of {OWNER}.*Did you mean 'b'"):
        adopted(plan)


def test_two_rows_of_one_name(plan):
    plan.rows.append(dict(plan.rows[0]))
    with pytest.raises(InvalidValueError, match=r"two rows named 'a'. Leave one out"):
        adopted(plan)


def test_a_matrix_of_another_size(plan):
    plan.row("b").update(rows=40, columns=80)
    with pytest.raises(InvalidValueError, match=f"'b' as 40 x 80; in {OWNER} it is 80 x 40"):
        adopted(plan)


@pytest.mark.parametrize("action", ["cut", "leave it", "", None, 1, "Split"])
def test_an_action_that_is_not_one(plan, action):
    plan.row("b")["action"] = action
    with pytest.raises(InvalidValueError, match=r"'b' is .*expected one of split, narrow, tr"):
        adopted(plan)


def test_leave_is_another_word_for_keep(plan):
    plan.row("b")["action"] = "leave"
    assert "b" not in [row["name"] for row in plan.cut]
    assert adopted(plan).row("b")["action"] == "keep"


@pytest.mark.parametrize("action", ["split", "truncate"])
@pytest.mark.parametrize(
    ("rank", "error"),
    [
        (0, InvalidValueError),
        (-3, InvalidValueError),
        (41, InvalidValueError),
        (2.5, InvalidTypeError),
        ("8", InvalidTypeError),
        (True, InvalidTypeError),
        (None, InvalidTypeError),
    ],
)
def test_a_rank_that_is_not_possible(plan, action, rank, error):
    plan.row("b").update(action=action, rank=rank)
    with pytest.raises(error, match=r"The rank of b in the plan is .*whole number"):
        adopted(plan)


@pytest.mark.parametrize("key", ["reason", "fixed", "unsplittable"])
def test_an_action_that_the_matrix_does_not_allow(plan, key):
    more = {"b": {key: "tied to c"}}
    with pytest.raises(InvalidValueError, match=r"'b' is 'split'.*must stay as it is: tied to c"):
        adopted(plan, **more)
    plan.row("b")["action"] = "truncate"
    if key == "unsplittable":
        assert adopted(plan, **more).row("b")["action"] == "truncate"
    else:
        with pytest.raises(InvalidValueError, match=r"'b' is 'truncate'.*tied to c"):
            adopted(plan, **more)
    plan.row("b")["action"] = "keep"
    assert adopted(plan, **more).row("b")["action"] == "keep"


@pytest.mark.parametrize("form", ["diagonal", "", None, 3, ["plain"]])
def test_a_form_that_is_not_one(plan, form):
    plan.row("a")["form"] = form
    with pytest.raises(InvalidValueError, match=r"The form of 'a' is .*expected one of plain, piv"):
        adopted(plan)
    plan.row("a")["action"] = "keep"
    assert adopted(plan).row("a")["action"] == "keep"


def test_pivot_rows_of_what_has_none(plan):
    plan.row("a")["form"] = "pivoted"
    assert adopted(plan).row("a")["form"] == "pivoted"
    with pytest.raises(InvalidValueError, match=r"'a' as pivot rows.*conv2d.*form to \"plain\""):
        adopted(plan, a={"kind": "conv2d"})
    del plan.row("a")["form"]
    assert adopted(plan, a={"kind": "conv2d"}).row("a")["parameters_after"]


def test_matrices_of_one_layer_at_two_ranks(plan):
    more = {"a": {"layer": "rnn"}, "b": {"layer": "rnn"}}
    plan.row("a").update(action="split", rank=5)
    plan.row("b").update(action="split", rank=6)
    with pytest.raises(InvalidValueError, match=r"rank 5 and 'b' has 6;.* at the same rank"):
        adopted(plan, **more)
    assert [row["rank"] for row in adopted(plan, dense=True, **more).rows][:2] == [5, 6]
    plan.row("b")["rank"] = 5
    assert [row["rank"] for row in adopted(plan, **more).rows][:2] == [5, 5]
    plan.row("b").update(action="keep", rank=7)
    assert adopted(plan, **more).row("a")["action"] == "split"


# What is settled.


def test_an_unedited_plan_stays_but_for_its_errors(plan):
    result = adopted(plan)
    assert type(result) is Plan
    for row, old in zip(result.rows, plan.rows, strict=True):
        assert old["weight_error"] is not None
        assert row == {**old, "kind": "linear", "weight_error": None, "output_error": None}
    assert (result.skipped, result.settings) == (plan.skipped, plan.settings)
    assert result.versions == plan.versions


def test_the_plan_that_is_given_is_not_changed(plan):
    plan.row("a")["rank"] = 3
    before = copy.deepcopy(plan.rows)
    adopted(plan, dense=True).row("b")["rank"] = 1
    assert plan.rows == before


def test_sizes_follow_the_edits(plan):
    plan.row("a")["rank"] = 3
    plan.row("b").update(action="keep", rank=7)
    plan.row("c").update(action="truncate", rank=9)
    a, b, c = adopted(plan).rows
    assert (a["parameters_after"], a["multiply_adds_after"], a["bytes_after"]) == (480, 480, 1920)
    assert [row["parameters_after"] for row in (b, c)] == [3200, 3600]
    assert [row["saves"] for row in (a, b, c)] == [True, False, False]


def test_what_the_target_knows_better_is_taken_from_it(plan):
    plan.row("a").update(layer="elsewhere", kind="conv2d", bytes_before=1)
    row = adopted(plan, a={"layer": "encoder.fc", "kind": "embedding", "itemsize": 2}).row("a")
    assert (row["layer"], row["kind"], row["bytes_before"]) == ("encoder.fc", "embedding", 12000)
    assert row["multiply_adds_before"] == 0


def test_reasons_are_those_of_what_is_left(plan):
    plan.row("a")["reason"] = "no longer so"
    plan.row("b").update(action="keep", reason="")
    plan.row("c").update(action="keep", reason="I know better")
    assert [row["reason"] for row in adopted(plan).rows] == [
        "",
        "kept by the plan",
        "I know better",
    ]
    del plan.row("b")["reason"]
    assert adopted(plan).row("b")["reason"] == "kept by the plan"


def test_dense_truncates_what_is_split(plan):
    plan.row("b")["action"] = "keep"
    result = adopted(plan, dense=True, a={"unsplittable": "attention reads it"})
    assert [row["action"] for row in result.rows] == ["truncate", "keep", "truncate"]
    assert result.parameters_after == result.parameters_before


def test_a_rank_of_what_is_kept_may_be_anything(plan):
    plan.row("b").update(action="keep", rank=0)
    assert adopted(plan).row("b")["rank"] == 0


def test_a_part_of_the_matrices_is_enough(plan):
    del plan.rows[1:]
    assert [row["name"] for row in adopted(plan).rows] == ["a"]


def test_a_plan_from_a_file_may_be_a_report_by_its_class(plan, tmp_path):
    plan.to_json(tmp_path / "plan.json")
    result = adopted(Report.from_json(tmp_path / "plan.json"))
    assert type(result) is Plan
    assert [row["name"] for row in result.cut] == ["a", "b", "c"]
