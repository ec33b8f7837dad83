"""What may be done to a matrix, and the ranks that a user gives by name."""

import dataclasses

import pytest
from planted import target

from rmtspec._text import nearest
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.planning.options import PlanOptions
from rmtspec.planning.target import Target, given_ranks

TARGETS = {
    "encoder.q": target("encoder", (40, 30), aliases=("encoder.in_proj",)),
    "encoder.k": target("encoder", (40, 20), aliases=("encoder.in_proj",)),
    "head": target("head", (10, 40), aliases=("head.weight",)),
}


def ranks(given, targets=TARGETS, mode="split", skipped=None):
    return given_ranks(PlanOptions(ranks=given, mode=mode), targets, skipped)


def test_no_ranks_are_no_ranks():
    assert ranks(None) == ranks({}) == {}


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("head", ["head"]),
        ("head.weight", ["head"]),
        ("encoder.k", ["encoder.k"]),
        ("encoder", ["encoder.q", "encoder.k"]),
        ("encoder.in_proj", ["encoder.q", "encoder.k"]),
    ],
)
def test_a_matrix_goes_by_its_name_its_layers_and_its_aliases(key, names):
    assert ranks({key: 7}) == dict.fromkeys(names, 7)


def test_a_later_name_wins():
    assert ranks({"encoder": 5, "encoder.k": 6}) == {"encoder.q": 5, "encoder.k": 6}


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, InvalidValueError, "is 0; expected a whole number from 1 to 10"),
        (11, InvalidValueError, "is 11; expected a whole number from 1 to 10"),
        (2.0, InvalidTypeError, "is 2.0"),
        ("2", InvalidTypeError, "is '2'"),
        (True, InvalidTypeError, "is True"),
        (None, InvalidTypeError, "is None"),
    ],
)
def test_a_rank_that_does_not_fit_is_refused(rank, error, message):
    assert ranks({"head": 10}) == {"head": 10}
    with pytest.raises(error, match=rf"`ranks\['head'\]` {message}"):
        ranks({"head": rank})


def test_a_rank_for_a_layer_must_fit_all_its_matrices():
    with pytest.raises(InvalidValueError, match=r"`ranks\['encoder'\]` is 25.* from 1 to 20"):
        ranks({"encoder": 25})


@pytest.mark.parametrize("key", ["haed", "encoder.v", 3])
def test_a_name_that_is_not_known_is_refused_with_what_comes_close(key):
    with pytest.raises(InvalidValueError) as caught:
        ranks({key: 3})
    assert f"`ranks` names {key!r}" in str(caught.value)
    assert "among the 3 chosen" in str(caught.value)
    assert ("Did you mean" in str(caught.value)) == (key != 3)


def test_nearest():
    assert nearest("haed", TARGETS) == " Did you mean 'head'?"
    assert nearest("encoder.z", TARGETS) == " Did you mean 'encoder.q', 'encoder.k'?"
    assert nearest("xyz", TARGETS) == nearest("head", []) == ""


def test_what_was_skipped_has_no_rank():
    unread = {**TARGETS, "head": target("head", (10, 40), reason="sparse")}
    with pytest.raises(InvalidValueError, match="'head', which was skipped: sparse"):
        ranks({"head": 3}, unread)
    with pytest.raises(InvalidValueError, match="'encoder', which was skipped: nan entries"):
        ranks({"encoder": 3}, skipped={"encoder.k": "nan entries"})
    assert ranks({"head": 3}, skipped={"encoder.k": "nan entries"}) == {"head": 3}


@pytest.mark.parametrize(
    ("more", "split", "truncate"),
    [
        ({}, "", ""),
        ({"unsplittable": "attention"}, "attention", ""),
        ({"fixed": "tied"}, "tied", "tied"),
        ({"reason": "sparse"}, "sparse", "sparse"),
        ({"on_request": "an embedding"}, "", ""),
        ({"unsplittable": "attention", "fixed": "tied"}, "tied", "tied"),
        ({"unsplittable": "attention", "fixed": "tied", "reason": "sparse"}, "sparse", "sparse"),
    ],
)
def test_refusals(more, split, truncate):
    one = target("a", (40, 30), **more)
    assert (one.refusal("split"), one.refusal("truncate")) == (split, truncate)
    for mode, refusal in (("split", split), ("truncate", truncate)):
        if refusal:
            with pytest.raises(InvalidValueError, match=refusal):
                ranks({"a": 3}, {"a": one}, mode)
        else:
            assert ranks({"a": 3}, {"a": one}, mode) == {"a": 3}


def test_names_are_the_layers_and_the_aliases():
    assert target("fc", (4, 3)).names == ("fc",)
    assert TARGETS["head"].names == ("head", "head.weight")


def test_a_target_is_a_value():
    assert target("a", (4, 3)) == target("a", (4, 3)) != target("a", (4, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        target("a", (4, 3)).layer = "b"
    with pytest.raises(TypeError):
        Target("a", "linear", (4, 3), 4)
