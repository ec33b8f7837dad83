"""The words of reports that a program may ask for."""

from enum import StrEnum


class Action(StrEnum):
    """What a plan does to a matrix."""

    SPLIT = "split"
    TRUNCATE = "truncate"
    LEAVE = "keep"


class Kind(StrEnum):
    """PLACEHOLDER."""


class Why(StrEnum):
    """PLACEHOLDER."""
