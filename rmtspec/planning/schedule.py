"""After which epochs the pruner acts: every l epochs, l fixed or changing (the paper, 4.4)."""

import math
import numbers
from collections.abc import Callable, Iterable, Sized
from typing import Any

from rmtspec.errors import InvalidTypeError, InvalidValueError

#: What `every` takes.
Every = int | Iterable[int] | Callable[[int], int | None]


class Schedule:
    """Counts epochs and tells those after which a cycle ends.

    Parameters
    ----------
    every : int, iterable of int, or callable
        Epochs in each cycle; those of the first, the second, ...; or a function of the cycle
        (0, 1, ...) that returns them, None for no further one. An iterator may have no end.

    Attributes
    ----------
    epoch, cycle : int
        Finished so far.
    next : int or None
        The epoch that ends the present cycle; None after the last cycle.
    """

    def __init__(self, every: Every) -> None:
        self._length = _lengths(every)
        self.epoch = 0
        self.cycle = 0
        self.next: int | None = None
        self._begin()

    def advance(self) -> bool:
        """Count an epoch, and tell whether a cycle ended with it.

        Raises
        ------
        InvalidValueError, InvalidTypeError
            The length of the next cycle is nonsense; nothing is counted then.
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
        """Return where the schedule stands."""
        return {"epoch": self.epoch, "cycle": self.cycle, "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` stood."""
        self.epoch, self.cycle, self.next = state["epoch"], state["cycle"], state["next"]

    def _begin(self) -> None:
        first = self._length(0)
        if first is None:
            raise InvalidValueError(
                "`every` has no cycle at all; expected at least one length, as every=[3]."
            )
        self.next = first


def _lengths(every: Every) -> Callable[[int], int | None]:
    """Return the checked length of each cycle as a function of its number."""
    if callable(every):
        return lambda cycle: _length_or_none(every(cycle), f"every({cycle})")
    if isinstance(every, Iterable) and not isinstance(every, str | bytes):
        lengths = _Lengths(every)
        if isinstance(every, Sized):  # an iterator may have no end
            lengths(len(every))
        return lengths
    fixed = _length(every, "every")
    return lambda cycle: fixed


class _Lengths:
    """Checked lengths from an iterable, which is read no further than asked for."""

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
