"""What `rmtspec analyze` does with one of its paths: the report on it, or what it would cost."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rmtspec._text import counted, printable
from rmtspec.cli import graph_files
from rmtspec.cli.progress import interruptible, progress_bar
from rmtspec.cli.tables import show_costs
from rmtspec.cli.wording import spoken

if TYPE_CHECKING:
    from rmtspec.report.options import AnalysisOptions
    from rmtspec.report.report import Report


def scan(path: Path, how: Mapping[str, Any], options: Mapping[str, Any]) -> Callable[[], "Report"]:
    """List the matrices in a file or folder, and return what gives the report on them.

    In two steps, so that what is wrong with one of several paths is said before any work. `how` are
    "include", "exclude", "key", "journal", "n_jobs", "threads" and "device", `options` those of
    `rmtspec.analyze`.
    """
    names = {name: how[name] for name in ("include", "exclude", "n_jobs")}
    if graph_files.takes(path):
        unfit = {f"--{name}": how[name] for name in ("device", "threads", "key")}
        unfit["--resume"] = how["journal"]
        graph_files.refuse(path, unfit)
        return functools.partial(graph_files.analyze, path, **names, **options)
    from rmtspec.runs.analyze import analyze_checkpoint
    from rmtspec.runs.dry_run import operations_of

    listed, chosen, selection = _chosen(path, how)
    journal = how["journal"]
    hint = (
        f"The results so far are in {journal}: the same command resumes from them."
        if journal is not None
        else "With --resume FILE a scan can be resumed."
    )

    def run() -> "Report":
        with interruptible(hint), progress_bar(operations_of(chosen)) as progress:
            report = analyze_checkpoint(
                listed, journal=journal, threads=how["threads"], device=how["device"],
                progress=progress, **names, **options,
            )  # fmt: skip
        if not report.rows:
            raise click.ClickException(_nothing(path, report.skipped, selection))
        return report

    return run


def show_cost(path: Path, how: Mapping[str, Any], options: "AnalysisOptions") -> None:
    """Show what scanning a file or folder would cost, from its headers alone."""
    from joblib import effective_n_jobs

    from rmtspec.runs.dry_run import dry_run

    if graph_files.takes(path):
        graph_files.refuse(path, {"--dry-run": True})
    listed, _, selection = _chosen(path, how)
    spread: dict[str, Any] = {
        "n_jobs": effective_n_jobs(how["n_jobs"]), "threads": how["threads"],
    }  # fmt: skip
    spread["method"] = options.method
    models = (options.noise, "auto" if options.noise == "mp" else "mp")
    show_costs(*(dry_run(listed, selection, noise=noise, **spread) for noise in models))


def labels_of(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each of several paths, no two alike.

    Raises `click.UsageError` for a path given twice.
    """
    twice = next((path for i, path in enumerate(paths) if path in paths[:i]), None)
    if twice is not None:
        raise click.UsageError(f"{printable(str(twice))} is given twice; expected each path once.")
    full = [path.absolute() for path in paths]
    for labels in ([path.stem for path in full], [path.name for path in full]):
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]


def refuse_unread(report: "Report") -> None:
    """End the command with an error if matrices that were asked for could not be read."""
    from rmtspec.terms import Why

    failed = {Why.UNREAD, Why.MEMORY}
    unread = [entry for entry in report.skipped if failed.intersection(Why.of(entry["reason"]))]
    if unread:
        count = len(report.rows) + len(unread)
        raise click.ClickException(
            f"{len(unread)} of {counted(count, 'matrix', 'matrices')} could not be read, the "
            f"first of them {printable(unread[0]['name'])}: the report lacks them. Their reasons "
            "are above; bring the files back, or copy them again, and run the same command."
        )


def _chosen(path: Path, how: Mapping[str, Any]) -> tuple[Any, list[Any], Any]:
    """Return what is in a file or folder, the matrices of it that were asked for, and by what."""
    from rmtspec.checkpoint import matrices_in
    from rmtspec.planning.selection import Selection

    listed = matrices_in(path, key=how["key"])
    selection = Selection(how["include"], how["exclude"])
    chosen, left_out, _ = selection.choose(listed.matrices)
    if not chosen:
        raise click.ClickException(_nothing(path, [*listed.skipped, *left_out], selection))
    return listed, list(chosen.values()), selection


def _nothing(path: Path, skipped: list[dict[str, str]], selection: Any) -> str:
    from rmtspec.planning.selection import nothing_in

    return spoken(nothing_in(printable(str(path)), skipped, selection.unmet))
