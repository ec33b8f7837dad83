"""What the commands show: tables, messages, a progress bar for people."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from rmtspec.cli.progress import duration

if TYPE_CHECKING:
    from rmtspec.report.report import Report
    from rmtspec.runs.dry_run import DryRun


def show(found: "Report") -> None:
    """Print the table of a report, what was skipped, and what is kept."""
    from rmtspec._text import grouped

    header, lines = found.cells()
    table(header, lines, numeric=("spikes", "rank", "kept"))
    click.echo(f"{len(found.rows)} analysed, {len(found.skipped)} skipped; {found.kept()}")
    for reason, names in grouped(found.skipped):
        click.echo(f"skipped {names}: {reason}")


def table(
    header: Sequence[str], lines: Sequence[Sequence[str]], *, numeric: Sequence[str] = ()
) -> None:
    """Print a table, as wide as it needs to be where no terminal limits it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else 100_000, highlight=False)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in header:
        shown.add_column(title, justify="right" if title in numeric else "left", overflow="fold")
    for line in lines:
        shown.add_row(*map(Text, line))
    console.print(shown)


def show_costs(found: "DryRun") -> None:
    """Print what a scan would cost: a line for the matrices of each size, and the sums."""
    from rmtspec._text import grouped

    header = ("matrices", "kind", "size", "dtype", "break-even", "operations", "time")
    lines = [
        (
            str(group["matrices"]),
            group["kind"],
            f"{group['rows']} x {group['columns']}",
            group["dtype"],
            f"{group['break_even']:.1f}",
            f"{group['operations']:.2g}",
            duration(group["seconds"]),
        )
        for group in found.groups()
    ]
    table(header, lines, numeric=("matrices", "break-even", "operations", "time"))
    several = f" with {found.n_jobs} processes" if found.n_jobs > 1 else ""
    click.echo(
        f"{len(found.rows)} matrices, {found.parameters:,} parameters, "
        f"{found.operations:.3g} floating-point operations"
    )
    click.echo(
        f"Estimated for this machine{several}: {duration(found.seconds)}, "
        f"{found.memory / 1e9:.1f} GB of memory"
    )
    for reason, names in grouped(found.skipped):
        click.echo(f"will be skipped {names}: {reason}")


def one_line(message: str) -> str:
    """Return the message with control characters, which a terminal would obey, spelled out."""
    from rmtspec._text import printable

    return printable(message)
