"""After which epochs the pruner acts: every l epochs, with l fixed or varying (the paper, 4.4)."""

import math
import numbers
from collections.abc import Callable, Iterable, Sized
from typing import Any

from rmtspec.errors import InvalidTypeError, InvalidValueError

#: What `every` takes.
Every = int | Iterable[int] | Callable[[int], int | None]


class Schedule:
    """Counts epochs and tells after which of them a cycle ends.

    Parameters
    ----------
    every : int, iterable of int, or callable
        Number of epochs in every cycle; in the first, the second, ...; or a function of the cycle
        (0, 1, ...) that returns it, or None for no further cycle. An iterator may be endless.

    Attributes
    ----------
    epoch, cycle : int
        Numbers of epochs and cycles finished so far.
    next : int or None
        The epoch that ends the current cycle; None after the last cycle.
    """

    def __init__(self, every: Every) -> None:
        self._length = _lengths(every)
        self.epoch = self.cycle = 0
        self.next = self._length(0)
        if self.next is None:
            raise InvalidValueError(
                "`every` has no cycles; expected at least one length, such as every=[3]."
            )

    def advance(self) -> bool:
        """Count an epoch, and tell whether it ended a cycle.

        Raises
        ------
        InvalidValueError, InvalidTypeError
            The length of the next cycle is invalid; the epoch is not counted.
        """
        if self.next is None or self.epoch + 1 < self.next:
            self.epoch += 1
            return False
        length = self._length(self.cycle + 1)
        self.epoch += 1
        self.cycle += 1
        self.next = None if length is None else self.epoch + length
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the schedule."""
        return {"epoch": self.epoch, "cycle": self.cycle, "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the position in `state`."""
        self.epoch, self.cycle, self.next = state["epoch"], state["cycle"], state["next"]


def _lengths(every: Every) -> Callable[[int], int | None]:
    """Return the checked length of each cycle as a function of its number."""
    if callable(every):
        return lambda cycle: _length_or_none(every(cycle), f"every({cycle})")
    if isinstance(every, Iterable) and not isinstance(every, str | bytes):
        lengths = _Lengths(every)
        if isinstance(every, Sized):  # an iterator may be endless
            lengths(len(every))
        return lengths
    fixed = _length(every, "every")
    return lambda cycle: fixed


class _Lengths:
    """Checked lengths from an iterable, which is read no further than needed."""

    def __init__(self, values: Iterable[int]) -> None:
        self._coming = iter(values)
        self._read: list[int] = []

    def __call__(self, cycle: int) -> int | None:
        while len(self._read) <= cycle:
            try:
                value = next(self._coming)
            except StopIteration:
                return None
            self._read.append(_length(value, f"every[{len(self._read)}]"))
        return self._read[cycle]


def _length_or_none(value: Any, name: str) -> int | None:
    return None if value is None else _length(value, name)


def _length(value: Any, name: str) -> int:
    expected = "a whole number of epochs, 1 or more"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(
            f"`{name}` is {value!r} ({type(value).__name__}); expected {expected}, a sequence of "
            "them, or a function of the cycle that returns one (None for no further cycle)."
        )
    number = float(value)
    if not math.isfinite(number) or number != int(number) or number < 1:
        raise InvalidValueError(
            f"`{name}` is {value!r}; expected {expected}. every=3 splits after epochs 3, 6, 9, "
            "...; every=[2, 5] after epochs 2 and 7."
        )
    return int(number)
