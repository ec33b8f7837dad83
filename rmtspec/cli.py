"""The command line: `rmtspec analyze`, `rmtspec reproduce`, `rmtspec demo`.

Exit status: 0 done; 1 the input could not be used, or nothing in it could be analysed; 2 wrong
usage; 130 interrupted.
"""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rmtspec import __version__
from rmtspec.errors import RmtspecError

if TYPE_CHECKING:
    from rmtspec.report import Report

_FIGURES = ("example-3.3", "fig-2", "fig-3a", "fig-3b")


class _Group(click.Group):
    """A group whose commands show our errors as one message, without traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command named on the line."""
        try:
            return super().invoke(ctx)
        except RmtspecError as error:
            raise click.ClickException(_one_line(str(error))) from None
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rmtspec")
def main() -> None:
    """Random-matrix spectra of weight matrices: where the noise ends, what is signal."""


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the report here too; the suffix says how: .html, .csv or .json.",
)
@click.option("--jobs", type=int, default=1, show_default=True, help="Processes; -1: all cores.")
@click.option(
    "--alpha", type=float, default=0.2, show_default=True, help="Share left out on each side."
)
@click.option(
    "--beta", type=float, default=0.1, show_default=True, help="Chance of a spike in pure noise."
)
@click.option(
    "--bulk-keep", type=float, default=0.0, show_default=True, help="Share of the bulk to keep."
)
@click.option(
    "--quantiles",
    type=click.Choice(["midpoint", "paper"]),
    default="midpoint",
    show_default=True,
    help="Levels matched with the eigenvalues: (k - 1/2) / p, or k / p.",
)
@click.option("--no-refine", is_flag=True, help="Fit once, spikes included.")
@click.option("--fit-cutoff", type=float, help="Accept a fit by the paper's gamma instead.")
@click.option(
    "--level", type=float, default=0.05, show_default=True, help="Accept a fit at this p-value."
)
@click.option("--include", metavar="RE", help="Only names in which this expression is found.")
@click.option("--exclude", metavar="RE", help="No names in which this expression is found.")
def analyze(
    path: Path,
    out: Path | None,
    jobs: int,
    no_refine: bool,
    fit_cutoff: float | None,
    include: str | None,
    exclude: str | None,
    **numbers: Any,
) -> None:
    """Analyse the matrices in PATH, a .safetensors, .npz or .npy file."""
    patterns = _pattern(include, "--include"), _pattern(exclude, "--exclude")
    options = {**numbers, "refine": not no_refine, "cutoff": fit_cutoff}
    from rmtspec import checkpoint, report

    with _usage():
        report.check_options(options)
        report.check_jobs(jobs)
        if out is not None:
            from rmtspec._files import check_writable

            report.check_suffix(out)
            check_writable(out)
    listed = checkpoint.matrices_in(path)
    chosen, left_out = _choose(listed.matrices, *patterns)
    skipped = [*listed.skipped, *left_out]
    if not chosen:
        raise click.ClickException(_nothing(path, skipped))
    with _progress_bar(len(chosen)) as progress:
        found = report.analyze_many(chosen, n_jobs=jobs, progress=progress, **options)
    found = dataclasses.replace(found, skipped=[*found.skipped, *skipped])
    if not found.rows:
        raise click.ClickException(_nothing(path, found.skipped))
    if out is not None:
        found.save(out)
    _show(found)
    if out is not None:
        click.echo(f"Report written to {out}")


@main.command()
@click.argument("figure", type=click.Choice(_FIGURES))
@click.option("--n", type=int, default=1000, show_default=True, help="Side of the matrix.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default="this folder",
    help="Folder to write into; made if the one above it exists.",
)
@click.option("--seeds", type=int, help="Repeat over this many seeds: mean and spread.")
@click.option("--seed", type=int, default=0, show_default=True, help="First seed of the noise.")
def reproduce(figure: str, n: int, out: Path, seeds: int | None, seed: int) -> None:
    """Draw a figure of the paper, with its numbers beside it."""
    from rmtspec.reproduce import reproduce_figure as draw

    with _usage():
        written = draw(figure, n=n, out=out, seed=seed, seeds=seeds)
    for file in written:
        click.echo(str(file))


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("rmtspec-demo"),
    show_default=True,
    help="Folder to write into; made if the one above it exists.",
)
def demo(out: Path) -> None:
    """Show on two matrices what this package does, in under a minute."""
    from rmtspec.demo import run_demo

    with _usage():
        run_demo(out, say=click.echo)


@contextlib.contextmanager
def _usage() -> Iterator[None]:
    """Turn our errors into those of wrong usage, exit status 2; a missing package is none."""
    from rmtspec.errors import MissingDependencyError

    try:
        yield
    except MissingDependencyError:
        raise
    except RmtspecError as error:
        raise click.UsageError(_one_line(str(error))) from None


def _pattern(expression: str | None, option: str) -> re.Pattern[str] | None:
    if expression is None:
        return None
    try:
        return re.compile(expression)
    except re.error as error:
        raise click.BadParameter(
            f"{expression!r} is no regular expression: {error}.", param_hint=option
        ) from None


def _choose(
    matrices: dict[str, Any], include: re.Pattern[str] | None, exclude: re.Pattern[str] | None
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return the matrices whose names pass, and the others as skipped."""
    chosen, left_out = {}, []
    for name, matrix in matrices.items():
        if include is not None and not include.search(name):
            left_out.append({"name": name, "reason": f"not in --include {include.pattern}"})
        elif exclude is not None and exclude.search(name):
            left_out.append({"name": name, "reason": f"in --exclude {exclude.pattern}"})
        else:
            chosen[name] = matrix
    return chosen, left_out


@contextlib.contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int, int | None, str], None] | None]:
    """Give a callback that moves a bar on stderr, or None where there is nobody to see it."""
    if total < 2 or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("analysing", total=total)

        def step(done: int, _: int | None, name: str) -> None:
            bar.update(task, completed=done)

        yield step


def _show(found: "Report") -> None:
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
    before, after = found.parameters_before, found.parameters_after
    click.echo(
        f"{len(found.rows)} analysed, {len(found.skipped)} skipped; "
        f"{after:,} of {before:,} parameters kept ({after / before:.1%})"
    )
    for reason, names in grouped(found.skipped):
        click.echo(f"skipped {names}: {reason}")


def _nothing(path: Path, skipped: list[dict[str, str]]) -> str:
    from rmtspec._sources import grouped

    lines = [f"  skipped {names}: {reason}" for reason, names in grouped(skipped)]
    if not lines:
        return f"{path} holds no tensors; expected at least one matrix."
    return "\n".join([f"Nothing in {path} could be analysed.", *lines])


def _one_line(message: str) -> str:
    """Return the message with control characters, which a terminal would obey, spelled out."""
    from rmtspec._sources import printable

    return printable(message)


if __name__ == "__main__":
    main(prog_name="rmtspec")
