"""The gate: which matrices may be cut where nothing else decides.

It is "noise" (cut only a matrix whose bulk is noise-like), a number (the paper's gamma: cut only
where the fit statistic is at most that), or None (cut any).
"""

from enum import Enum
from typing import Any

from rmtspec import _checks
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError

Gate = str | float | None


class Unset(Enum):
    """The value of an option that was not given, where None means something else."""

    UNSET = "not given"

    def __repr__(self) -> str:
        return "<by what else is given>"


UNSET = Unset.UNSET


def gate_of(gate: Any, fit_cutoff: Any, *, decided: bool) -> Gate:
    """Return the gate from its two spellings; `decided` if something else decides what is cut.

    Raises
    ------
    InvalidOptionError
        Both are given, or one is neither "noise", a number in (0, 1), nor None.
    """
    if gate is not UNSET and fit_cutoff is not UNSET:
        raise InvalidOptionError(
            f"`gate` is {gate!r} and `fit_cutoff` {fit_cutoff!r}",
            "one of them, two spellings of the same option",
            "Pass `gate`.",
        )
    if fit_cutoff is not UNSET:
        return None if fit_cutoff is None else _checks.cutoff(fit_cutoff, "fit_cutoff")
    if gate is UNSET:
        return None if decided else "noise"
    if gate is None or (isinstance(gate, str) and gate == "noise"):
        return gate
    expected = "'noise', None, or a number in (0, 1), the paper's gamma"
    try:
        return _checks.cutoff(gate, "gate")
    except (InvalidOptionError, InvalidOptionTypeError) as error:
        kind = InvalidOptionError if isinstance(gate, str) else type(error)
        raise kind(f"`gate` is {gate!r}", expected) from None
