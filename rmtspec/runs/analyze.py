"""Analysing a checkpoint of any size: one matrix in memory, a journal to go on from."""

import base64
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec import _checks
from rmtspec._files import PathLike
from rmtspec._frameworks import eigensolver_on
from rmtspec._records import versions
from rmtspec.checkpoint.listing import Checkpoint, matrices_in
from rmtspec.checkpoint.stored import StoredMatrix
from rmtspec.errors import FileError, InvalidOptionError, InvalidValueError
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.planning.selection import Pattern, Selection, nothing_in
from rmtspec.report.many import Outcome, Skipped, outcome_of, report_of
from rmtspec.report.matrix_report import report_on
from rmtspec.report.options import AnalysisOptions, Progress, check_jobs, check_progress
from rmtspec.report.parallel import each
from rmtspec.report.report import Report
from rmtspec.runs.costs import cost
from rmtspec.runs.fingerprint import fingerprint
from rmtspec.runs.journal import Journal, open_journal
from rmtspec.runs.read_ahead import read_ahead

if TYPE_CHECKING:
    from rmtspec.matrix.eigenvalues import Eigensolver


def analyze_checkpoint(
    path: PathLike | Checkpoint,
    *,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    journal: PathLike | None = None,
    n_jobs: int | None = 1,
    threads: int | None = None,
    device: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Analyse the matrices of a weight file or folder, larger than memory or not.

    Each matrix is read when its turn comes, the costliest first, and let go before the next: the
    memory needed is that of the largest smaller side squared, in float64, for each process.

    Parameters
    ----------
    path : path or Checkpoint
        Of `rmtspec.checkpoint.matrices_in`, which lists what is read.
    include, exclude : pattern, predicate or several, optional
        On the names of tensor ("fc.weight") and layer ("fc").
    journal : path, optional
        A file to which each matrix is added as soon as it is done. Where it is there already,
        what it holds is not done again: a run that was killed goes on when called the same way,
        and ends with the same report.
    n_jobs : int or None
        Processes, through joblib: 1 works in this one, -1 takes all cores, None asks
        ``joblib.parallel_config``, whose backend (Dask, Ray, Spark) is used for all but 1. They
        open the files themselves, under the same path.
    threads : int, optional
        BLAS threads of each process; the cores divided by the processes by default. The last
        digits of a result depend on it.
    device : optional
        A device of torch that has float64, as "cuda": products and eigenvalues are computed
        there while the next matrix is read. Not with more than one process.
    progress : callable, optional
        Called after each matrix with (done, total, name).
    **options
        Of `analyze`, all but `name`.

    Returns
    -------
    Report
        Rows in the order of the files.

    Raises
    ------
    FileError
        Files that cannot be read, or a journal of another checkpoint, other options, or in use.
    InvalidValueError, InvalidTypeError
        A wrong option, or nothing to analyse.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import rmtspec
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a", "b"):
    ...         np.save(f"{folder}/{name}.npy", rmtspec.ensembles.wishart(80, 40, rng=0))
    ...     report = rmtspec.analyze_checkpoint(folder)
    >>> [(row["name"], row["n"], row["p"]) for row in report.rows]
    [('a', 80, 40), ('b', 80, 40)]
    """
    n_jobs = check_jobs(n_jobs)
    check_progress(progress)
    if threads is not None:
        threads = _checks.integer(threads, "threads", 1)
    if device is not None:
        options = {**options, "eigensolver": _on_device(device, n_jobs)}
    analysis = AnalysisOptions.of(options)
    settings = analysis.settings
    if device is not None:
        settings["device"] = str(device)
    selection = Selection(include, exclude)
    listed = path if isinstance(path, Checkpoint) else matrices_in(path)
    chosen, left_out, _ = selection.choose(listed.matrices)
    skipped = [*listed.skipped, *left_out]
    if not chosen:
        raise InvalidValueError(nothing_in(listed.path, skipped, selection.unmet))
    settings |= selection.settings
    run = functools.partial(
        outcomes, chosen, analysis, n_jobs=n_jobs, threads=threads, progress=progress
    )
    if journal is None:
        return report_of(run(), settings, skipped)
    header = {
        "command": "analyze",
        "checkpoint": fingerprint(listed),
        "settings": settings,
        "versions": versions(),
    }
    with open_journal(journal, header) as written:
        return report_of(run(journal=written), settings, skipped)


def outcomes(
    matrices: Mapping[str, StoredMatrix],
    options: AnalysisOptions,
    *,
    n_jobs: int | None,
    threads: int | None = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[tuple[str, Outcome]]:
    """Return what came of each matrix, in their order; what the journal holds is not done again.

    A matrix that could not be read is not in the journal: its disk may be back the next time.
    """
    found: dict[str, Outcome] = {}
    for entry in journal.entries if journal is not None else ():
        if entry.get("name") in matrices and ("spectrum" in entry or "skipped" in entry):
            found[entry["name"]] = _from_entry(entry, matrices[entry["name"]], options)
            if progress is not None:
                progress(len(found), len(matrices), entry["name"])
    missing = [(name, matrix) for name, matrix in matrices.items() if name not in found]
    # The costliest first, so that processes end together.
    missing.sort(key=lambda item: -cost(*item[1].sides).operations)
    work = functools.partial(outcome_of, options)
    # On a device the next matrix is read meanwhile; elsewhere reading is not what takes time.
    items: Iterable[Any] = missing
    if options.eigensolver is not None and n_jobs == 1:
        items = read_ahead(missing)
    for index, outcome in each(work, items, n_jobs=n_jobs, threads=threads):
        name = missing[index][0]
        found[name] = outcome
        if journal is not None and not (isinstance(outcome, Skipped) and outcome.unread):
            journal.add(_entry(name, outcome))
        if progress is not None:
            progress(len(found), len(matrices), name)
    return [(name, found[name]) for name in matrices]


def _entry(name: str, outcome: Outcome) -> dict[str, Any]:
    """Return the line of a matrix: its row to read, and the spectrum, from which all follows."""
    if isinstance(outcome, Skipped):
        return {"name": name, "skipped": outcome.reason}
    values = np.ascontiguousarray(outcome.spectrum.eigenvalues, dtype="<f8")
    spectrum = outcome.spectrum.to_dict()
    spectrum["eigenvalues"] = base64.b64encode(values.tobytes()).decode("ascii")
    return {"name": name, "row": outcome.to_dict(), "spectrum": spectrum}


def _from_entry(
    entry: Mapping[str, Any], matrix: StoredMatrix, options: AnalysisOptions
) -> Outcome:
    """Return what an earlier run found, to the last digit."""
    if "skipped" in entry:
        return Skipped(str(entry["skipped"]))
    try:
        kept, seconds = entry["spectrum"], float(entry["row"]["seconds"])
        values = np.frombuffer(base64.b64decode(kept["eigenvalues"]), dtype="<f8")
        spectrum = Spectrum.from_dict({**kept, "eigenvalues": values})
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"The journal's line of {entry['name']!r} is damaged ({error}). Delete that line, or "
            "the journal, and run again."
        ) from None
    report = report_on(spectrum, entry["name"], options.kind or matrix.kind, options)
    return dataclasses.replace(report, seconds=seconds)


def _on_device(device: Any, n_jobs: int | None) -> "Eigensolver":
    if n_jobs != 1:
        raise InvalidOptionError(
            f"`device` {str(device)!r} and `n_jobs` {n_jobs} are both given",
            "one process for a device",
            "Leave `n_jobs` at 1.",
        )
    solver: Eigensolver = eigensolver_on(device)
    return solver
