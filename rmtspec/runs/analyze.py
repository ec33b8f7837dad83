"""Analysing a checkpoint of any size: one matrix in memory, a journal to resume from."""

import base64
import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._files.writing import PathLike
from rmtspec._frameworks import eigensolver_on
from rmtspec._records import versions
from rmtspec.checkpoint.gguf_export import is_gguf
from rmtspec.checkpoint.listing import Checkpoint, matrices_in
from rmtspec.checkpoint.stored import StoredMatrix, check_unchanged
from rmtspec.errors import FileError, InvalidOptionError, InvalidValueError
from rmtspec.matrix.metrics import Metrics
from rmtspec.matrix.noise_fit import NoiseFit
from rmtspec.matrix.noise_record import fit_of, record_of
from rmtspec.matrix.noise_variance import NoiseVariance
from rmtspec.matrix.rounding_level import RoundingLevel
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate
from rmtspec.planning.selection import Pattern, Selection, nothing_in
from rmtspec.report.estimated import Estimated, row_of
from rmtspec.report.initial import InitialWeights
from rmtspec.report.many import Outcome, Skipped, each_outcome, report_of, with_init
from rmtspec.report.matrix_report import report_on
from rmtspec.report.options import AnalysisOptions, Progress, check_jobs, check_progress
from rmtspec.report.plain import marked
from rmtspec.report.report import Report
from rmtspec.runs.costs import cost
from rmtspec.runs.fingerprint import fingerprint, source_of
from rmtspec.runs.journal import Journal, open_journal
from rmtspec.runs.read_ahead import read_ahead


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
    """Analyse the matrices of a weight file or folder, which may be larger than memory.

    Each matrix is read for its analysis, the costliest first, and released before the next; small
    ones are read together, up to 16 MiB. Each process needs memory for the square of the largest
    smaller side, in float64.

    Parameters
    ----------
    path : path or Checkpoint
        A path that `rmtspec.checkpoint.matrices_in` takes, or what it returns.
    include, exclude : pattern, predicate or several, optional
        Applied to the names of tensors ("fc.weight") and layers ("fc").
    journal : path, optional
        A file to which each matrix is added as soon as it is done. If it exists, the matrices in
        it are not analysed again: a run that was killed resumes when it is called the same way,
        and gives the same report.
    n_jobs : int or None
        Number of processes, through joblib: 1 uses this process, -1 all cores, None the setting
        of ``joblib.parallel_config``, whose backend (Dask, Ray, Spark) is used unless it is 1.
        The processes open the files themselves, under the same path.
    threads : int, optional
        BLAS threads of each process; by default, the cores divided by the processes. The last
        digits of a result depend on it.
    device : optional
        A torch device that supports float64, such as "cuda": products and eigenvalues are computed
        there while the next matrix is read; a matrix for which it has too little memory, on the
        CPU, with a warning. Only with one process.
    progress : callable, optional
        Called after each matrix with (done, total, name).
    **options
        Options of `analyze`, except `name`.

    Returns
    -------
    Report
        Rows in the order of the files.

    Raises
    ------
    FileError
        The files cannot be read or were rewritten meanwhile, or the journal is in use or belongs
        to another checkpoint or to other options.
    InvalidValueError, InvalidTypeError
        An option is not valid, or there is nothing to analyse.

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
        AnalysisOptions.of(options).check_device(device)
        options = {**options, "eigensolver": _on_device(device, n_jobs)}
    analysis = AnalysisOptions.of(options)
    settings = analysis.settings
    if device is not None:
        settings["device"] = str(device)
    if analysis.init is not None and journal is not None:
        settings["init"] = _same_init(analysis.init)
    selection = Selection(include, exclude)
    listed = path if isinstance(path, Checkpoint) else matrices_in(path)
    chosen, left_out, _ = selection.choose(listed.matrices)
    skipped = [*listed.skipped, *left_out]
    if not chosen:
        raise InvalidValueError(nothing_in(listed.path, skipped, selection.unmet))
    settings |= selection.settings
    if is_gguf(listed):
        settings["metadata"] = listed.metadata
    run = functools.partial(
        outcomes, chosen, analysis, n_jobs=n_jobs, threads=threads, progress=progress
    )
    source = source_of(listed)
    if journal is None:
        return dataclasses.replace(report_of(run(), settings, skipped), source=source)
    header = {
        "command": "analyze", "checkpoint": source.get("fingerprint") or fingerprint(listed),
        "settings": settings,
        "versions": versions(),
    }  # fmt: skip
    with open_journal(journal, header) as opened:
        report = report_of(run(journal=opened), settings, skipped)
        return dataclasses.replace(report, source=source)


def outcomes(
    matrices: Mapping[str, StoredMatrix],
    options: AnalysisOptions,
    *,
    n_jobs: int | None,
    threads: int | None = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
    plain: Collection[str] = (),
) -> list[tuple[str, Outcome]]:
    """Return the outcome of each matrix, in order; those in the journal are not computed again.

    `plain` names matrices that need no other noise model than "mp". A matrix that could not be
    read is not added to the journal: the next run may be able to.
    """
    results: dict[str, Outcome] = {}
    again = _again(options)
    for entry in journal.entries if journal is not None else ():
        named = isinstance(entry.get("name"), str) and entry["name"] in matrices
        if named and ("spectrum" in entry or "estimate" in entry or "skipped" in entry):
            results[entry["name"]] = _from_entry(entry, matrices[entry["name"]], again)
            if progress is not None:
                progress(len(results), len(matrices), entry["name"])
    missing = [(name, matrix) for name, matrix in matrices.items() if name not in results]
    # The costliest first, so that all processes finish at about the same time.
    models = {name: "mp" if name in plain else options.noise for name in matrices}
    missing.sort(key=lambda item: -_cost(item[1], models[item[0]], options.method))
    # On a device, the next matrix is read in the meantime; elsewhere reading is not a bottleneck.
    items: Iterable[Any] = missing
    if options.eigensolver is not None and n_jobs == 1:
        items = read_ahead(missing)
    alone, found = with_init(options, marked(items, plain))
    for index, outcome in each_outcome(alone, found, n_jobs=n_jobs, threads=threads):
        name, matrix = missing[index]
        matrix.tensor.check_unchanged()  # before the journal takes what may come from another file
        results[name] = outcome
        if journal is not None and not (isinstance(outcome, Skipped) and outcome.unread):
            journal.add(_entry(name, outcome))
        if progress is not None:
            progress(len(results), len(matrices), name)
    check_unchanged(matrix.tensor for matrix in matrices.values())
    return [(name, results[name]) for name in matrices]


def _cost(matrix: StoredMatrix, noise: str, method: str) -> int:
    rows, columns = matrix.sides
    return cost(rows, columns, noise, method).operations


def _entry(name: str, outcome: Outcome) -> dict[str, Any]:
    """Return the line of a matrix: its row, for reading, and the spectrum that determines it."""
    if isinstance(outcome, Skipped):
        return {"name": name, "skipped": outcome.reason}
    if isinstance(outcome, Estimated):
        estimate = outcome.estimate
        arrays = {a: getattr(estimate, a) for a in SpectrumEstimate.ARRAYS}
        stored = estimate.to_dict() | {"steps": estimate.nodes.shape[1]} | arrays
        line = {"name": name, "row": outcome.row, "estimate": _packed(stored)}
        level = outcome.rounding
        return line if level is None else line | {"rounding": level.to_dict()}
    spectrum = outcome.spectrum.to_dict() | {"eigenvalues": outcome.spectrum.eigenvalues}
    entry: dict[str, Any] = {"name": name, "row": outcome.to_dict(), "spectrum": _packed(spectrum)}
    if outcome.rounding is not None:
        entry["rounding"] = outcome.rounding.to_dict()
    if outcome.metrics is not None:
        entry["metrics"] = outcome.metrics.to_dict()
    if outcome.noise.model != "mp":  # the plain fit follows from the spectrum
        variance = outcome.noise_variance
        entry["noise"] = _packed(record_of(outcome.noise))
        entry["noise_variance"] = None if variance is None else variance.to_dict()
    return entry


def _packed(values: dict[str, Any]) -> dict[str, Any]:
    """Return values with each array as text: {"float64": base64}."""
    packed: dict[str, Any] = {}
    for name, value in values.items():
        packed[name] = value
        if isinstance(value, np.ndarray):
            content = np.ascontiguousarray(value, dtype="<f8").tobytes()
            packed[name] = base64.b64encode(content).decode("ascii")
        elif isinstance(value, dict):
            packed[name] = _packed(value)
    return packed


def _array(content: str) -> Float64Array:
    return np.frombuffer(base64.b64decode(content), dtype="<f8").astype(np.float64)


def _spectrum(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {**stored, "eigenvalues": _array(stored["eigenvalues"])}


def _known(entry: Mapping[str, Any]) -> tuple[NoiseFit, NoiseVariance | None] | None:
    """Return what an entry holds of a noise model that needs the entries of the matrix."""
    stored = entry.get("noise")
    if stored is None:
        return None
    arrays = ("row_scales", "column_scales", "quantiles")
    content = {**stored, "spectrum": _spectrum(stored["spectrum"])}
    content |= {name: _array(stored[name]) for name in arrays if stored[name] is not None}
    variance = entry["noise_variance"]
    return fit_of(content), None if variance is None else NoiseVariance.from_dict(variance)


class _Again(NamedTuple):
    """The options of an earlier run, for what is made again: by the law alone, and as they were."""

    plain: AnalysisOptions
    whole: AnalysisOptions
    metrics: bool


def _again(options: AnalysisOptions) -> _Again:
    whole = dataclasses.replace(options, metrics=False, init=None)
    return _Again(dataclasses.replace(whole, noise="mp"), whole, options.metrics)


def _from_entry(entry: Mapping[str, Any], matrix: StoredMatrix, again: _Again) -> Outcome:
    """Return the outcome of an earlier run, exact to the last digit."""
    if "skipped" in entry:
        return Skipped(str(entry["skipped"]))
    try:
        if "estimate" in entry:
            return _estimated_from(entry, matrix, again.whole)
        stored, seconds = entry["spectrum"], float(entry["row"]["seconds"])
        if type(stored["n"]) is not int or not 1 <= stored["n"] <= max(matrix.sides):
            raise ValueError(f"n is {stored['n']!r} for a matrix of {matrix.sides}")
        spectrum, known = Spectrum.from_dict(_spectrum(stored)), _known(entry)
        rows, columns = matrix.sides
        left = rows - spectrum.dropped_rows, columns - spectrum.dropped_columns
        if spectrum.shape != matrix.sides or (spectrum.n, spectrum.p) != (max(left), min(left)):
            raise ValueError(f"a spectrum of {spectrum.shape} for a matrix of {matrix.sides}")
        rounding = RoundingLevel(**entry["rounding"]) if "rounding" in entry else None
        options = again.plain if known is None else again.whole  # that follows from the spectrum
        metrics = Metrics.from_dict(entry["metrics"]) if again.metrics else None
        kind = options.kind or matrix.kind
        with np.errstate(over="raise", invalid="raise"):  # no matrix has such numbers
            report = report_on(spectrum, entry["name"], kind, options, known=known)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise FileError(
            f"The line of {entry['name']!r} in the journal is damaged ({error}). Delete that line, "
            "or the journal, and run again."
        ) from None
    return dataclasses.replace(report, seconds=seconds, rounding=rounding, metrics=metrics)


def _estimated_from(
    entry: Mapping[str, Any], matrix: StoredMatrix, options: AnalysisOptions
) -> Estimated:
    """Return what was estimated in an earlier run."""
    stored = entry["estimate"]
    arrays = {name: _array(stored[name]) for name in SpectrumEstimate.ARRAYS}
    estimate = SpectrumEstimate.from_dict({**stored, **arrays})
    if estimate.shape != matrix.sides or not 1 <= estimate.p <= min(matrix.sides):
        raise ValueError(f"an estimate of {estimate.shape} for a matrix of {matrix.sides}")
    kind = options.kind or matrix.kind
    found = Estimated(estimate, row_of(estimate, entry["name"], kind, options.of_rank))
    if "rounding" in entry:
        return found.with_rounding(RoundingLevel(**entry["rounding"]))
    return found


def _same_init(weights: InitialWeights) -> str:
    """Return what tells a journal that the initial weights are those of the run before."""
    if not weights.path:
        raise InvalidOptionError(
            "`init` is a mapping and `journal` is given", "the path of the initial weights",
            "A run that resumes must know that they are the same: save them to a file.",
        )  # fmt: skip
    return fingerprint(matrices_in(weights.path))


def _on_device(device: Any, n_jobs: int | None) -> Any:
    if n_jobs != 1:
        given = f"`device` {str(device)!r} and `n_jobs` {n_jobs} are both given"
        raise InvalidOptionError(given, "one process for a device", "Leave `n_jobs` at 1.")
    return eigensolver_on(device)
