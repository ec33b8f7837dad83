"""Kinds of values that options of the command take."""

import contextlib
from typing import Any

import click


class FilePath(click.Path):
    """A path; an empty one, as an unset variable leaves it, is not the current folder."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value, or fail."""
        if value == "":
            self.fail("the path is empty; expected the name of a file or folder.", param, ctx)
        return super().convert(value, param, ctx)


class Gate(click.ParamType[Any]):
    """noise, none or a number."""

    name = "[noise|none|NUMBER]"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value, or fail."""
        if value == "noise":
            return value
        if value == "none":
            return None
        with contextlib.suppress(ValueError):
            if 0.0 < float(value) < 1.0:
                return float(value)
        expected = "noise, none, or a number in (0, 1)"
        raise click.BadParameter(f"{value!r}; expected {expected}.", param=param, ctx=ctx)


class Multiple(click.ParamType[Any]):
    """A whole number from 1, or auto."""

    name = "[auto|NUMBER]"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value, or fail."""
        if value == "auto" or isinstance(value, int):
            return value
        with contextlib.suppress(ValueError):
            if int(value) >= 1:
                return int(value)
        expected = "auto, or a whole number from 1"
        raise click.BadParameter(f"{value!r}; expected {expected}.", param=param, ctx=ctx)


def ranks_of(given: tuple[str, ...]) -> dict[str, int]:
    """Return the ranks given as `--rank NAME=K` by name."""
    ranks: dict[str, int] = {}
    for words in given:
        name, equals, rank = words.rpartition("=")
        if not equals or not rank.strip().isdecimal():
            raise click.BadParameter(
                f"{words!r}; expected NAME=K, a name and a whole number.", param_hint="--rank"
            )
        if name in ranks:
            raise click.BadParameter(f"{name!r} has two ranks. Leave one out.", param_hint="--rank")
        ranks[name] = int(rank)
    return ranks
