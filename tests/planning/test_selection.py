"""Which names `include` and `exclude` mean, and which patterns meant none."""

import re
from fractions import Fraction
from typing import NamedTuple

import pytest

from rmtspec.checkpoint.stored import layer_of
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.planning.selection import Selection


def refused(selection, *names):
    return [selection.refusal([name]) for name in names]


def test_no_pattern_admits_all_and_names_none():
    selection = Selection()
    assert refused(selection, "a", "b") == ["", ""]
    assert not selection.named(["a"])
    assert selection.unmet == []


def test_include_then_exclude():
    selection = Selection("fc", "fc2$")
    assert refused(selection, "fc1", "fc2", "conv") == ["", "in `exclude`", "not in `include`"]
    assert selection.named(["net.fc1"])
    assert not selection.named(["conv"])
    assert refused(Selection(None, "a"), "a", "b") == ["in `exclude`", ""]


def test_a_name_counts_under_each_of_its_names():
    selection = Selection("^fc$", "^fc.bias$")
    assert selection.refusal(["fc.weight", "fc"]) == ""
    assert selection.refusal(["fc.bias", "fc"]) == "in `exclude`"


def test_several_patterns_and_predicates():
    def small(name, value):
        return value is not None and value < 3

    selection = Selection(["a", re.compile("B", re.I), small])
    assert [selection.refusal([n], v) for n, v in (("a", 9), ("b", 9), ("c", 1), ("c", 9))] == [
        "",
        "",
        "",
        "not in `include`",
    ]
    assert selection.unmet == []
    assert refused(Selection([]), "a") == ["not in `include`"]


def test_unmet_patterns_as_they_were_written():
    def never(name, value):
        return False

    selection = Selection(["a", "nowhere"], [re.compile("x+"), never, "c"])
    # "c" meets a name that `include` has refused already, and all patterns are asked of "a".
    assert refused(selection, "a", "c") == ["", "not in `include`"]
    shown = f"exclude={never.__qualname__}"
    assert selection.unmet == ["include='nowhere'", "exclude='x+'", shown]


class Weight(NamedTuple):
    name: str
    size: int

    @property
    def names(self):
        return (self.name, layer_of(self.name))


def test_choose_knows_matrices_under_all_their_names():
    sizes = {"fc.weight": 1, "fc.bias": 2, "head.weight": 3, "weight": 4}
    weights = {name: Weight(name, size) for name, size in sizes.items()}
    chosen = Selection("^fc$|^weight$").choose(weights)
    assert set(chosen.matrices) == chosen.named == {"fc.weight", "weight"}
    assert chosen.left_out == [
        {"name": "fc.bias", "reason": "not in `include`"},
        {"name": "head.weight", "reason": "not in `include`"},
    ]
    by_size = Selection(exclude=lambda name, value: value == 3)
    chosen = by_size.choose(weights, lambda weight: weight.size, lambda weight: weight.name[:4])
    assert chosen.matrices == {}
    assert chosen.named == set()
    assert [entry["reason"] for entry in chosen.left_out] == [
        "fc.w",
        "fc.b",
        "in `exclude`",
        "weig",
    ]
    assert [layer_of(name) for name in ("a.b.weight", "weight", "a.bias", "in_proj_weight")] == [
        "a.b",
        "",
        "a.bias",
        "in_proj_weight",
    ]


def test_what_is_no_pattern():
    with pytest.raises(
        InvalidValueError, match=r"`include` '\(' is not a regular expression: .*Esc"
    ):
        Selection("(")
    with pytest.raises(InvalidValueError, match="`exclude`"):
        Selection(None, ["a", "["])
    with pytest.raises(InvalidTypeError, match=r"`exclude` is 3 \(int\); expected a regular"):
        Selection(None, 3)
    with pytest.raises(InvalidTypeError, match=r"is the class Fraction;.*isinstance\(module, Fra"):
        Selection(Fraction)
