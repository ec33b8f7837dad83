"""How a report is shown by the command: which rows in which order, and how much of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rmtspec.report.report import Report


@dataclass
class Display:
    """What `--sort`, `--filter`, `--quiet` and `--verbose` ask for.

    The report that is written with `--out` or `--report` has all rows, in the order of the files.
    """

    sort: str | None = None
    filter: str | None = None
    quiet: bool = False
    verbose: bool = False

    def of(self, report: "Report") -> "Report":
        """Return the report with the rows to be shown."""
        shown = report if self.filter is None else report.filter(self.filter)
        if self.sort is None:
            return shown
        return shown.sort(self.sort.removeprefix("-"), descending=self.sort.startswith("-"))


def display() -> Display:
    """Return what the running command was asked to show."""
    found: Display = click.get_current_context().meta.setdefault(__name__, Display())
    return found


def display_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `Display` to a command, which need not know of them."""

    def store(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        asked = ctx.meta.setdefault(__name__, Display())
        setattr(asked, str(parameter.name), value)
        _check(asked)
        return value

    how: dict[str, Any] = {"expose_value": False, "callback": store}
    for option in (
        click.option("--verbose", "-v", is_flag=True, help="Show all columns and reasons.", **how),
        click.option("--quiet", "-q", is_flag=True, help="Show the totals, no table.", **how),
        click.option(
            "--filter", metavar="RE",
            help="Show only matrices whose name, kind, verdict or action matches.", **how,
        ),
        click.option(
            "--sort", metavar="KEY",
            help="Sort the table by this column or key of a row; -KEY: the largest first.", **how,
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _check(asked: Display) -> None:
    """Fail before any work for what no report can be sorted or filtered by."""
    if asked.quiet and asked.verbose:
        raise click.UsageError("--quiet and --verbose are both given; expected one of them.")
    if asked.filter is None and asked.sort is None:
        return  # what follows imports half of the package
    from rmtspec.errors import OptionError
    from rmtspec.report.chosen import sort_key, test_of
    from rmtspec.report.rows import known_keys

    try:
        if asked.filter is not None:
            test_of(asked.filter)
    except OptionError as error:
        raise click.BadParameter(
            error.problem.replace("`where` is ", "") + f"; expected {error.expected}.",
            param_hint="--filter",
        ) from None
    try:
        if asked.sort is not None:
            sort_key([dict.fromkeys(known_keys())], asked.sort.removeprefix("-"))
    except OptionError as error:
        expected = "a column of the table, such as spikes, or -spikes for the largest first"
        raise click.BadParameter(
            f"{asked.sort!r}; expected {expected}. {error.hint}".strip(), param_hint="--sort"
        ) from None
