"""What the commands show: tables and messages."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from rmtspec._text import counted, grouped, printable
from rmtspec.cli.display import display
from rmtspec.cli.output import say, say_styled
from rmtspec.cli.progress import duration
from rmtspec.cli.terminal import fitted_lines, report_lines
from rmtspec.cli.wording import spoken

if TYPE_CHECKING:
    from rmtspec.report.report import Report
    from rmtspec.runs.dry_run import DryRun


def show(report: "Report") -> None:
    """Print the table of a report, the share of parameters kept, and what was skipped.

    Rows and columns are those that `Display` asks for; the totals are those of the whole report.
    """
    asked = display()
    if not asked.quiet:
        shown = asked.of(report)
        _show_rows(shown, all_columns=asked.verbose or not sys.stdout.isatty())
        if len(shown) < len(report):
            say(f"{len(shown)} of {len(report)} shown (--filter {asked.filter})")
    say(f"{len(report.rows)} analysed, {len(report.skipped)} skipped; {report.kept()}")
    for words in filter(None, (report.unsafe(), report.estimated())):
        say(spoken(words))
    if asked.quiet:
        return
    for reason, names in grouped(report.skipped):
        say(f"skipped {names}: {spoken(reason)}")


def _show_rows(report: "Report", *, all_columns: bool) -> None:
    if not report.rows:
        return
    if all_columns:
        header, lines = report.cells()
        lines = [[*line[:-1], spoken(line[-1])] for line in lines]  # the last cell is the reason
        table(header, lines, numeric=("spikes", "components", "rank", "kept"), whole=True)
        return
    say_styled(report_lines(report))
    say()
    reasons = [{"name": r["name"], "reason": r["reason"]} for r in report.rows if r["reason"]]
    for reason, names in grouped(reasons):
        say(f"{spoken(reason)}: {names}")


def table(
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    numeric: Sequence[str] = (),
    dropped: Sequence[str] = (),
    whole: bool = False,
) -> None:
    """Print a table: on a terminal as wide as this is, unless `whole`; elsewhere as its cells are.

    `dropped` are the titles of columns that are left out where there is no room, the first first.
    """
    cells = [[printable(cell) for cell in line] for line in lines]
    if sys.stdout.isatty() and cells and not whole:
        columns = dict(zip(header, zip(*cells, strict=True), strict=True))
        say_styled(fitted_lines(columns, numeric=numeric, dropped=dropped))
        say()
        return
    say_styled(_whole_lines(header, cells, numeric))


def _whole_lines(
    header: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[str]
) -> Iterator[str]:
    """Yield the lines of a table as wide as its cells are.

    They are those of rich's table in the box SIMPLE_HEAD, which takes 2 ms for each row.
    """
    from rich.cells import cell_len

    shown = [[(cell, cell_len(cell)) for cell in line] for line in (header, *cells)]
    widths = [max(length for _, length in column) for column in zip(*shown, strict=True)]
    right = [title in numeric for title in header]
    whole = sum(widths) + 3 * (len(widths) - 1)
    rule = "─" if (sys.stdout.encoding or "").lower().startswith("utf") else "-"
    yield " " * (whole + 2)
    for number, line in enumerate(shown):
        padded = [
            " " * (width - length) + cell if to_right else cell + " " * (width - length)
            for (cell, length), width, to_right in zip(line, widths, right, strict=True)
        ]
        text = f" {'   '.join(padded)} "
        yield text if number else click.style(text, bold=True)
        if not number:
            yield f" {rule * whole} "
    yield " " * (whole + 2)


def show_costs(costs: "DryRun", other: "DryRun") -> None:
    """Print what a scan would cost: a line for the matrices of each size, and the sums.

    `other` is the same scan with the other noise model.
    """
    header = ("matrices", "kind", "size", "dtype", "break-even", "operations", "time")
    lines = [
        (
            str(group["matrices"]), group["kind"], f"{group['rows']} x {group['columns']}",
            group["dtype"], f"{group['break_even']:.1f}", f"{group['operations']:.2g}",
            duration(group["seconds"]),
        )
        for group in costs.groups()
    ]  # fmt: skip
    numbers = ("matrices", "break-even", "operations", "time")
    table(header, lines, numeric=numbers, dropped=("operations", "break-even", "dtype"))
    several = f" with {costs.n_jobs} processes" if costs.n_jobs > 1 else ""
    say(
        f"{counted(len(costs.rows), 'matrix', 'matrices')}, {costs.parameters:,} parameters, "
        f"{costs.operations:.3g} floating-point operations"
    )
    say(
        f"Estimated for this machine{several}: {duration(costs.seconds)}, "
        f"{costs.memory / 1e9:.1f} GB of memory; with --noise {other.noise} "
        f"{duration(other.seconds)}, {other.memory / 1e9:.1f} GB"
    )
    for reason, names in grouped(costs.skipped):
        say(f"to be skipped: {names}: {spoken(reason)}")
