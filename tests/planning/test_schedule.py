"""After which epochs a cycle ends: fixed lengths, lists, functions, generators without end."""

import itertools

import numpy as np
import pytest

from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.planning.schedule import Schedule


def ends(every, epochs=20):
    """Return the epochs, counted from 1, after which a cycle ends."""
    schedule = Schedule(every)
    return [epoch for epoch in range(1, epochs + 1) if schedule.advance()]


@pytest.mark.parametrize("every", [3, 3.0, np.int64(3), np.float32(3)])
def test_a_fixed_length(every):
    assert ends(every) == [3, 6, 9, 12, 15, 18]


def test_every_epoch():
    assert ends(1, 4) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "every", [[2, 5, 1], (2, 5, 1), np.array([2, 5, 1]), iter([2, 5, 1]), (n for n in (2, 5, 1))]
)
def test_lengths_one_by_one(every):
    assert ends(every) == [2, 7, 8]


def test_a_function_of_the_cycle():
    asked = []

    def every(cycle):
        asked.append(cycle)
        return cycle + 1 if cycle < 3 else None

    assert ends(every) == [1, 3, 6]
    assert asked == [0, 1, 2, 3]


def test_a_generator_without_end_is_read_no_further_than_needed():
    lengths = itertools.count(1)
    assert ends(lengths, 6) == [1, 3, 6]
    assert next(lengths) == 5  # 4 was read for the cycle that began after epoch 6


def test_a_list_is_looked_at_before_the_first_epoch():
    with pytest.raises(InvalidValueError, match=r"`every\[2\]` is 0"):
        Schedule([1, 2, 0])
    assert ends([2], 5) == [2]


def test_it_tells_where_it_stands():
    schedule = Schedule([2, 3])
    assert (schedule.epoch, schedule.cycle, schedule.next) == (0, 0, 2)
    assert [schedule.advance() for _ in range(2)] == [False, True]
    assert (schedule.epoch, schedule.cycle, schedule.next) == (2, 1, 5)
    for _ in range(4):
        schedule.advance()
    assert (schedule.epoch, schedule.cycle, schedule.next) == (6, 2, None)


@pytest.mark.parametrize("given", [0, -1, 2.5, float("nan"), float("inf")])
def test_a_length_that_is_no_number_of_epochs(given):
    for every, name in ((given, "every"), ([3, given], r"every\[1\]")):
        with pytest.raises(InvalidValueError, match=f"`{name}` is .*every=3 splits after"):
            Schedule(every)
    with pytest.raises(InvalidValueError, match=r"`every\(0\)` is"):
        Schedule(lambda cycle: given)


@pytest.mark.parametrize("given", [None, "3", b"3", True, object(), 3j])
def test_a_length_of_another_type(given):
    with pytest.raises(InvalidTypeError, match="`every` is"):
        Schedule(given)
    with pytest.raises(InvalidTypeError, match=r"`every\[0\]` is"):
        Schedule([given])


def test_no_cycle_at_all():
    for every in ([], (), iter([]), lambda cycle: None):
        with pytest.raises(InvalidValueError, match=r"no cycles.*every=\[3\]"):
            Schedule(every)


def test_nothing_is_counted_where_the_next_length_is_nonsense():
    lengths = {0: 2, 1: 0}
    schedule = Schedule(lambda cycle: lengths[cycle])
    assert not schedule.advance()
    for _ in range(2):
        with pytest.raises(InvalidValueError, match=r"`every\(1\)` is 0"):
            schedule.advance()
        assert (schedule.epoch, schedule.cycle, schedule.next) == (1, 0, 2)
    lengths[1] = 4
    assert schedule.advance()
    assert schedule.next == 6


def test_nonsense_in_an_iterator_is_told_when_its_turn_comes():
    schedule = Schedule(iter([1, "x", 3]))
    with pytest.raises(InvalidTypeError, match=r"`every\[1\]` is 'x'"):
        schedule.advance()
    assert schedule.epoch == 0


@pytest.mark.parametrize("make", [lambda: 3, lambda: [2, 1, 4, 2], lambda: itertools.count(1)])
@pytest.mark.parametrize("stop", range(9))
def test_it_goes_on_from_its_state(make, stop):
    whole, first, second = Schedule(make()), Schedule(make()), Schedule(make())
    expected = [whole.advance() for _ in range(14)]
    found = [first.advance() for _ in range(stop)]
    state = first.state_dict()
    first.advance()
    second.load_state_dict(state)
    found += [second.advance() for _ in range(14 - stop)]
    assert found == expected
    assert second.state_dict() == whole.state_dict()
