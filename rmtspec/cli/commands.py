"""The command line: `rmtspec analyze`, `prune`, `merge`, `reproduce` and `demo`.

Exit status: 0 done; 1 the input could not be used, or nothing in it could be analysed; 2 wrong
usage; 130 interrupted.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from rmtspec import __version__
from rmtspec.cli.progress import progress_bar
from rmtspec.cli.tables import one_line, show, show_costs
from rmtspec.cli.wording import Command, in_flags
from rmtspec.errors import FileError, InvalidValueError, OptionError

_RULES = ("bema", "energy", "fraction")
_FIGURES = ("example-3.3", "fig-2", "fig-3a", "fig-3b")

_RULE_HELP = "What decides the rank: the noise's edge, a share of the squares, a share of the rank."
_BULK_KEEP_HELP = "Share of the bulk to keep, of rule bema."

#: Options that two commands have alike.
_keep = click.option("--keep", type=float, help="Share to keep, of rules energy and fraction.")
_include = click.option(
    "--include", metavar="RE", help="Only names in which this expression is found."
)
_exclude = click.option(
    "--exclude", metavar="RE", help="No names in which this expression is found."
)
_jobs = click.option(
    "--jobs", "n_jobs", type=int, default=1, show_default=True, help="Processes; -1: all cores."
)
_threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="BLAS threads of each; the cores divided by default.",
)


class _Group(click.Group):
    command_class = Command


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
@click.option(
    "--resume",
    "journal",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Keep a journal here; where it is there already, go on with it.",
)
@click.option("--dry-run", is_flag=True, help="Say what it would cost, from the headers alone.")
@_jobs
@_threads
@click.option("--device", help="Compute on this device of torch, as cuda.")
@click.option(
    "--alpha", type=float, default=0.2, show_default=True, help="Share left out on each side."
)
@click.option(
    "--beta", type=float, default=0.1, show_default=True, help="Chance of a spike in pure noise."
)
@click.option(
    "--rule", type=click.Choice(_RULES), default="bema", show_default=True, help=_RULE_HELP
)
@click.option("--bulk-keep", type=float, default=0.0, show_default=True, help=_BULK_KEEP_HELP)
@_keep
@click.option(
    "--quantiles",
    type=click.Choice(["midpoint", "paper"]),
    default="midpoint",
    show_default=True,
    help="Levels matched with the eigenvalues: (k - 1/2) / p, or k / p.",
)
@click.option("--no-refine", is_flag=True, help="Fit once, spikes included.")
@click.option(
    "--fit-cutoff", "cutoff", type=float, help="Accept a fit by the paper's gamma instead."
)
@click.option(
    "--level", type=float, default=0.05, show_default=True, help="Accept a fit at this p-value."
)
@_include
@_exclude
def analyze(
    path: Path,
    out: Path | None,
    journal: Path | None,
    dry_run: bool,
    n_jobs: int,
    threads: int | None,
    device: str | None,
    no_refine: bool,
    include: str | None,
    exclude: str | None,
    **numbers: Any,
) -> None:
    """Analyse the matrices in PATH: a weight file, or a folder of them of any size.

    PATH is a .safetensors, .npz, .npy, .pt, .pth or .bin file, or a folder with an index and its
    shards, a single file, or .npy files. One matrix is in memory at a time.
    """
    options = {**numbers, "refine": not no_refine}
    from joblib import effective_n_jobs

    from rmtspec import checkpoint
    from rmtspec.planning.selection import Selection, nothing_in
    from rmtspec.report.options import AnalysisOptions, check_jobs
    from rmtspec.runs import dry_run as costs
    from rmtspec.runs.analyze import analyze_checkpoint

    AnalysisOptions.of(options)
    check_jobs(n_jobs)
    selection = Selection(include, exclude)
    _check_report(out, "--out")
    if out is not None and journal is not None and out.resolve() == journal.resolve():
        raise click.UsageError(f"--out and --resume are both {out}; expected two files.")
    if dry_run and out is not None:
        raise click.UsageError("--out is of the analysis, which --dry-run leaves undone.")
    if device is not None and n_jobs != 1:
        raise click.UsageError("--device works in one process; leave --jobs out.")
    listed = checkpoint.matrices_in(path)
    chosen, left_out, _ = selection.choose(listed.matrices)
    if not chosen:
        skipped = [*listed.skipped, *left_out]
        raise click.ClickException(nothing_in(path, skipped, selection.unmet))
    if dry_run:
        processes = effective_n_jobs(n_jobs)
        show_costs(costs.dry_run(listed, selection, n_jobs=processes, threads=threads))
        return
    device = _usable(device)
    operations = costs.operations_of(chosen.values())
    hint = (
        f"What was done is in {journal}: the same command goes on with it."
        if journal is not None
        else "With --resume FILE a scan goes on where it was."
    )
    with _hint(hint), progress_bar(operations) as progress:
        found = analyze_checkpoint(
            listed, include=include, exclude=exclude, journal=journal, n_jobs=n_jobs,
            threads=threads, device=device, progress=progress, **options,
        )  # fmt: skip
    if not found.rows:
        raise click.ClickException(nothing_in(path, found.skipped, selection.unmet))
    if out is not None:
        found.save(out)
    show(found)
    if out is not None:
        click.echo(f"Report written to {out}")


@main.command()
@click.argument("path", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "--as",
    "mode",
    type=click.Choice(["factors", "dense"]),
    default="factors",
    show_default=True,
    help="Write two factors for each matrix, or their product in its place.",
)
@click.option("--rule", type=click.Choice(_RULES), show_default="bema", help=_RULE_HELP)
@click.option("--bulk-keep", type=float, show_default="0.45", help=_BULK_KEEP_HELP)
@_keep
@click.option("--fit-cutoff", type=float, help="Leave matrices alone whose statistic is above it.")
@_include
@_exclude
@click.option(
    "--min-saving",
    type=float,
    default=0.0,
    show_default=True,
    help="Leave matrices alone that save a smaller share of parameters.",
)
@click.option("--budget", type=float, help="Share of parameters to keep, in place of a rule.")
@click.option("--rank", "ranks", metavar="NAME=K", multiple=True, help="This rank for this name.")
@click.option("--plan", type=click.Path(path_type=Path), help="Carry out a plan, from a .json.")
@click.option(
    "--dry-run", is_flag=True, help="Show the plan and write nothing; OUT may be left out."
)
@_jobs
@_threads
@click.option("--alpha", type=float, show_default="0.2", help="Share left out on each side.")
@click.option("--beta", type=float, show_default="0.1", help="Chance of a spike in pure noise.")
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path),
    help="Write the plan here too; the suffix says how: .html, .csv or .json.",
)
def prune(
    path: Path,
    out: Path | None,
    ranks: tuple[str, ...],
    plan: Path | None,
    dry_run: bool,
    threads: int | None,
    report_file: Path | None,
    **request: Any,
) -> None:
    """Prune the matrices of IN, a weight file or folder, into OUT, a new or empty folder.

    Killed at any point and run again in the same way, it goes on where it was.
    """
    if out is None and not dry_run:
        raise click.UsageError("Missing argument 'OUT'; only --dry-run goes without.")
    from rmtspec import checkpoint
    from rmtspec._files import empty_folder
    from rmtspec.checkpoint.companions import companions
    from rmtspec.planning.options import PlanOptions
    from rmtspec.report.report import Report
    from rmtspec.runs.dry_run import operations_of
    from rmtspec.runs.prune import prune_checkpoint
    from rmtspec.runs.work_folder import is_finished, work_path

    given = {name: value for name, value in request.items() if value is not None}
    given["ranks"] = _ranks(ranks)
    given["mode"] = {"factors": "split", "dense": "truncate"}[given["mode"]]
    if plan is not None:
        given["plan"] = Report.from_json(plan)
    more = {name: given[name] for name in given if name in ("alpha", "beta", "keep")}
    asked = {name: value for name, value in given.items() if name not in more}
    selection = PlanOptions(**asked, more=more).selection()
    if out is not None and not is_finished(out):
        with _target("OUT"):
            empty_folder(out)
    _check_report(report_file, "--report")
    listed = checkpoint.matrices_in(path, parts=given["mode"] == "truncate")
    operations = operations_of(selection.choose(listed.matrices)[0].values())
    hint = "" if dry_run or out is None else f"Kept in {work_path(out)}: the same command goes on."
    with _hint(hint), progress_bar(operations, ("analysing", "writing")) as progress:
        done = prune_checkpoint(
            listed, out, dry_run=dry_run, report=report_file, threads=threads, progress=progress,
            **given,
        )  # fmt: skip
    show(done)
    if report_file is not None:
        if dry_run:
            done.save(report_file)
        click.echo(f"Report written to {report_file}")
    before, after = done.totals["bytes_before"], done.totals["bytes_after"]
    click.echo(f"{before:,} bytes of tensors become {after:,} ({after / before:.1%})")
    left = companions(listed.path, listed.files)[1]
    if left:
        click.echo(f"Not copied: {', '.join(left)}")
    click.echo("Nothing written (--dry-run)" if dry_run else f"Written to {out}")


@main.command()
@click.argument("folder", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def merge(folder: Path, out: Path) -> None:
    """Multiply the factors in IN, written by prune, into dense weights in OUT, a new folder."""
    from rmtspec._files import empty_folder
    from rmtspec.runs.merge import merge_checkpoint

    with _target("OUT"):
        empty_folder(out)
    merged = merge_checkpoint(folder, out)
    count = "1 matrix" if len(merged) == 1 else f"{len(merged)} matrices"
    click.echo(f"{count} multiplied out. Written to {out}")


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

    with _target("--out"):
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
    from rmtspec.demo.tour import run_demo

    with _target("--out"):
        run_demo(out, say=click.echo)


@contextlib.contextmanager
def _target(argument: str) -> Iterator[None]:
    """Take a place that cannot be written to for wrong usage of the argument that names it."""
    try:
        yield
    except OptionError:
        raise
    except (FileError, InvalidValueError) as error:
        raise click.BadParameter(one_line(str(error)), param_hint=argument) from None


@contextlib.contextmanager
def _hint(words: str) -> Iterator[None]:
    """Say how to go on to who interrupts the work."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\n{one_line(words)}" if words else "", err=True)
        raise


def _check_report(file: Path | None, argument: str) -> None:
    """Raise now what writing the report would raise after all the work."""
    if file is not None:
        from rmtspec._files import check_writable
        from rmtspec.report.report import check_suffix

        with _target(argument):
            check_suffix(file)
            check_writable(file)


def _usable(device: str | None) -> str | None:
    """Return the device if it can be used; else say so and compute on the CPU."""
    if device is None:
        return None
    from rmtspec._frameworks import usable_device

    try:
        return usable_device(device)
    except OptionError as error:
        left = OptionError(f"{error.problem}.", hint="Computing on the CPU.")
        click.echo(in_flags(left, analyze), err=True)
        return None


def _ranks(given: tuple[str, ...]) -> dict[str, int]:
    """Return the ranks of `--rank NAME=K` by name."""
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
