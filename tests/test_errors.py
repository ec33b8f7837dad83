"""The errors: their tree, and options that are wrong apart from data that cannot be used."""

import copy
import inspect
import pickle
import re

import numpy as np
import pytest

import rmtspec
from rmtspec import _checks, errors
from rmtspec.errors import (
    InvalidOptionError,
    InvalidOptionTypeError,
    InvalidTypeError,
    InvalidValueError,
    OptionError,
    RmtspecError,
)


def test_the_tree_that_is_drawn_is_the_one_there_is():
    drawn = {}
    for indent, name, others in re.findall(
        r"^    ([│├└─ ]*)(\w+(?:Error|Warning))(?: \((\w+)\))?$", errors.__doc__, re.MULTILINE
    ):
        level = len(indent) // 4
        above = [each for each, (depth, _) in drawn.items() if depth == level - 1]
        drawn[name] = level, {*above[-1:], *filter(None, [others])}
    classes = dict(inspect.getmembers(errors, inspect.isclass))
    assert set(drawn) == set(classes)
    roots = {"RmtspecError": {"Exception"}, "RmtspecWarning": {"UserWarning"}}
    for name, (_, bases) in drawn.items():
        expected = roots.get(name, bases)
        assert {base.__name__ for base in classes[name].__bases__} == expected, name
        assert name == "RmtspecWarning" or issubclass(classes[name], RmtspecError)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("`x` is 0",), "`x` is 0"),
        (("`x` is 0", "1"), "`x` is 0; expected 1."),
        (("`x` is 0", "1", "Pass it."), "`x` is 0; expected 1. Pass it."),
        (("`x` is 0.", "", "Pass it."), "`x` is 0. Pass it."),
    ],
)
def test_the_parts_of_a_message_are_kept(parts, words):
    error = InvalidOptionError(*parts, command_hint="Type it.")
    for same in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(same) is InvalidOptionError
        assert str(same) == words
        found = (same.problem, same.expected, same.hint)
        assert found == (*parts, "", "")[:3]
        assert same.command_hint == "Type it."
    assert InvalidOptionError(*parts).command_hint == error.hint


def test_wrong_options_and_bad_data_are_told_apart():
    noise = rmtspec.ensembles.wishart(40, 30, rng=0)
    for options in ({"alpha": 2}, {"rule": "magic"}, {"keep": 0.5}, {"cutoff": 1.0}):
        with pytest.raises(InvalidOptionError):
            rmtspec.analyze(noise, **options)
    with pytest.raises(InvalidOptionTypeError, match=r"`alpha` is 'x' \(str\); expected a real"):
        rmtspec.analyze(noise, alpha="x")
    noise[0, 0] = np.nan
    for data, kind in ((noise, InvalidValueError), ("a.npy", InvalidTypeError)):
        with pytest.raises(kind) as caught:
            rmtspec.analyze(data)
        assert not isinstance(caught.value, OptionError)


@pytest.mark.parametrize("value", [0, 1, -0.1, 7, np.nan])
def test_a_cutoff_is_between_0_and_1(value):
    """The largest distance of two distribution functions: both ends would gate nothing, or all."""
    with pytest.raises(InvalidOptionError, match=r"`fit_cutoff` is .*; expected a number in \(0"):
        _checks.cutoff(value, "fit_cutoff")
    assert _checks.cutoff(0.1, "cutoff") == 0.1
