"""The command `rmtspec compare`: what changed between two checkpoints."""

from pathlib import Path
from typing import Any

import click

from rmtspec._text import grouped
from rmtspec.cli import graph_files
from rmtspec.cli.output import after, say
from rmtspec.cli.parameters import FilePath
from rmtspec.cli.places import check_report, force_option
from rmtspec.cli.progress import progress_bar
from rmtspec.cli.tables import table
from rmtspec.cli.wording import Command, spoken

_PATH = FilePath(path_type=Path)
_NOISE = click.Choice(["screened", "mp", "auto", "equalized", "signflip"])


@click.command(cls=Command)
@click.argument("a", type=_PATH)
@click.argument("b", required=False, type=_PATH)
@click.option(
    "--out", type=_PATH, help="Write the comparison to this .html, .csv or .json file too."
)
@force_option
@click.option("--include", metavar="RE", help="Only names that match this expression.")
@click.option("--exclude", metavar="RE", help="No names that match this expression.")
@click.option(
    "--components",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="The most leading singular vectors whose subspaces are compared.",
)
@click.option(
    "--noise",
    type=_NOISE,
    default="screened",
    show_default=True,
    help="Model of the noise in the difference; screened: mp where it is safe, else auto.",
)
@click.option(
    "--beta",
    type=float,
    default=0.1,
    show_default=True,
    help="Chance of a component in a change that is pure noise.",
)
@click.option("--rng", type=int, default=0, show_default=True, help="Seed of the sign flips.")
@click.option(
    "--key", help="Where in a training checkpoint the weights are (model, ema.state_dict)."
)
@click.option(
    "--jobs", "n_jobs", type=int, default=1, show_default=True, help="Processes; -1: all cores."
)
def compare(
    a: Path, b: Path | None, out: Path | None, force: bool, key: str | None, **options: Any
) -> None:
    """Say what changed from A to B, matrix by matrix: how much, of what rank, noise or not.

    A and B are weight files, or folders of them, as for analyze: a model and its fine-tuning, the
    first epoch and the last, a model before and after a prune. B may be an adapter of LoRA; an
    adapter may also be given alone, as A.
    """
    from rmtspec.comparison.compare import compare as run
    from rmtspec.report.options import check_jobs

    check_jobs(options["n_jobs"])
    check_report(out, "--out", (a, b), force=force)
    sides = [_source(path, key) for path in (a, b) if path is not None]
    unread = None if all(isinstance(side, dict) for side in sides) else key
    with progress_bar(steps=("comparing",)) as progress:
        done = run(*sides, key=unread, progress=progress, **options)
    if out is not None:
        done.save(out)
    with after("" if out is None else f"The comparison is in {out}."):
        header, lines = done.cells()
        reasons = header.index("reason") if "reason" in header else None
        if reasons is not None:
            for line in lines:
                line[reasons] = spoken(line[reasons])
        numbers = ("relative", "rank", "spikes", "edge", "overlap", "touched")
        table(
            header, lines, numeric=numbers, dropped=("touched", "edge", "spikes", "size", "overlap")
        )
        say(done.summary())
        for words in done.remarks():
            say(words)
        for reason, names in grouped(done.skipped):
            say(f"skipped {names}: {spoken(reason)}")
        if out is not None:
            say(f"Comparison written to {out}")


def _source(path: Path, key: str | None) -> Any:
    """Return what is compared of a path: itself, or the matrices that an adapter reads in it."""
    from rmtspec._frameworks import adapter_of

    if not graph_files.takes(path):
        return path
    graph_files.refuse(path, {"--key": key})
    adapter: Any = adapter_of(path)
    return dict(adapter.weight_matrices(path))
