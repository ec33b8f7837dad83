"""What the commands show: tables, messages, a progress bar for people."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rmtspec.report import Report


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int | None, str], None] | None]:
    """Give a callback that moves a bar on stderr, or None where there is nobody to see it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("analysing", total=None)

        def step(done: int, total: int | None, name: str) -> None:
            bar.update(task, completed=done, total=total)

        yield step


def show(found: "Report") -> None:
    """Print the table, as wide as it needs to be where no terminal limits it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rmtspec._sources import grouped

    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else 100_000, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    header, lines = found.cells()
    for title in header:
        numeric = title in ("spikes", "rank", "kept")
        table.add_column(title, justify="right" if numeric else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(table)
    click.echo(f"{len(found.rows)} analysed, {len(found.skipped)} skipped; {found.kept()}")
    for reason, names in grouped(found.skipped):
        click.echo(f"skipped {names}: {reason}")


def nothing(path: Path, skipped: list[dict[str, str]], unmet: list[str]) -> str:
    """Return the message for a file in which nothing can be analysed.

    `unmet` are the patterns that met no name.
    """
    from rmtspec._sources import grouped

    lines = [f"  skipped {names}: {reason}" for reason, names in grouped(skipped)]
    if not lines:
        return f"{path} holds no tensors; expected at least one matrix."
    lines += [f"  no name meets {one_line(pattern)}" for pattern in unmet]
    return "\n".join([f"Nothing in {path} could be analysed.", *lines])


def one_line(message: str) -> str:
    """Return the message with control characters, which a terminal would obey, spelled out."""
    from rmtspec._sources import printable

    return printable(message)
