"""The analysis of many matrices, each as by `analyze`, in one report."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rmtspec._arrays import is_model
from rmtspec._checks import matrix
from rmtspec._records import versions
from rmtspec.checkpoint.memory import lacking
from rmtspec.errors import FileError, InvalidValueError, RmtspecError
from rmtspec.matrix.rounding_level import rounding_level
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate
from rmtspec.report.alike import Ready, is_together, read_together
from rmtspec.report.estimated import Estimated, estimated, is_estimated, least_memory, way_out
from rmtspec.report.initial import WithInitial, with_initial
from rmtspec.report.matrix_report import MatrixReport, report_on
from rmtspec.report.options import AnalysisOptions, Progress, check_jobs, check_progress
from rmtspec.report.parallel import each
from rmtspec.report.plain import Plain, marked
from rmtspec.report.report import Report
from rmtspec.report.sources import named_items
from rmtspec.terms import Kind, Why


@dataclass(frozen=True, slots=True)
class Skipped:
    """Why there is no report on a matrix; `unread` if reading its file may succeed next time."""

    reason: str
    unread: bool = False


Outcome = MatrixReport | Estimated | Skipped
Done = TypeVar("Done")


def analyze_many(
    source: Mapping[str, Any] | Iterable[Any],
    *,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Analyse many matrices, each as `analyze` does, and report on them together.

    A matrix that cannot be analysed (nan entries, a vector, a truncated file) is listed in
    `Report.skipped` with the reason, and the others are analysed.

    Parameters
    ----------
    source : mapping of str to matrix, or iterable of (name, matrix) pairs or of matrices
        Matrices without a name are called "0", "1", ... A matrix is an array, a `Spectrum`, or a
        callable without arguments that returns either: it is called when its turn comes, in the
        process that analyses it, so the matrices are never all in memory at once. Small arrays are
        read ahead, up to 256, and solved together. Its attribute
        `kind`, if it has one, appears in the report.
    n_jobs : int or None
        Number of processes, through joblib: 1 works in this process, -1 uses all cores, None
        leaves it to ``joblib.parallel_config``, whose backend (Dask, Ray, ...) is used unless
        `n_jobs` is 1. Unless it is 1, the whole source is read first: pass callables if it is
        large.
    progress : callable, optional
        Called after each matrix with (done, total, name); total is None for a source without a
        length.
    **options
        Those of `analyze` except `name`.

    Returns
    -------
    Report

    Raises
    ------
    InvalidTypeError
        A source that is not a collection of matrices, or an unknown option.
    InvalidValueError
        An empty source, two matrices of the same name, or an option outside its range. Options
        are checked before any work.

    Examples
    --------
    >>> import rmtspec
    >>> planted = rmtspec.ensembles.spiked(400, 300, [5, 20], rng=0)
    >>> noise = rmtspec.ensembles.wishart(200, 100, rng=1)
    >>> report = rmtspec.analyze_many({"planted": planted, "noise": noise})
    >>> [(row["name"], row["n_spikes"]) for row in report.rows]
    [('planted', 2), ('noise', 0)]
    """
    return report_on_many(source, AnalysisOptions.of(options), n_jobs, progress)


def report_on_many(
    source: Any,
    options: AnalysisOptions,
    n_jobs: int | None,
    progress: Progress | None,
    *,
    plain: Collection[str] = (),
) -> Report:
    """Do what `analyze_many` does, with checked options.

    `plain` names callable matrices that need no other noise model than "mp".
    """
    n_jobs = check_jobs(n_jobs)
    check_progress(progress)
    total, items = named_items(source)
    names: list[str] = []

    def noted() -> Iterator[tuple[str, Any]]:
        for name, value in items:
            names.append(name)
            yield name, value
            del value  # not kept while the next one is made

    outcomes: dict[int, Outcome] = {}
    alone, found = with_init(options, marked(noted(), plain))
    for index, outcome in each_outcome(alone, found, n_jobs=n_jobs):
        outcomes[index] = outcome
        if progress is not None:
            progress(len(outcomes), total if n_jobs == 1 else len(names), names[index])
    if not outcomes:
        raise InvalidValueError(
            "`source` is empty; expected at least one matrix. "
            "Pass a mapping {name: matrix} or an iterable of (name, matrix) pairs."
        )
    return report_of([(names[i], outcomes[i]) for i in sorted(outcomes)], options.settings)


def with_init(
    options: AnalysisOptions, items: Iterable[tuple[str, Any]]
) -> tuple[AnalysisOptions, Iterable[tuple[str, Any]]]:
    """Return options without the initial weights, and the named matrices with their own."""
    if options.init is None:
        return options, items
    return dataclasses.replace(options, init=None), with_initial(items, options.init)


def report_of(
    outcomes: Iterable[tuple[str, Outcome]],
    settings: dict[str, Any],
    skipped: Iterable[dict[str, str]] = (),
) -> Report:
    """Return the report on named outcomes."""
    matrices: dict[str, MatrixReport] = {}
    estimates: dict[str, SpectrumEstimate] = {}
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    for name, outcome in outcomes:
        if isinstance(outcome, Skipped):
            left_out.append({"name": name, "reason": outcome.reason})
        elif isinstance(outcome, Estimated):
            estimates[name] = outcome.estimate
            rows.append(outcome.row)
        else:
            matrices[name] = outcome
            rows.append(outcome.to_dict())
    return Report(
        rows, [*left_out, *skipped], settings, versions=versions(), matrices=matrices,
        estimates=estimates,
    )  # fmt: skip


def each_outcome(
    options: AnalysisOptions,
    items: Iterable[tuple[str, Any]],
    *,
    n_jobs: int | None,
    threads: int | None = None,
) -> Iterator[tuple[int, Outcome]]:
    """Yield the index and the outcome of each named matrix, in the order they finish."""
    yield from each(
        functools.partial(outcome_of, options), items, n_jobs=n_jobs, threads=threads,
        prepare=functools.partial(read_together, options), is_small=is_together,
    )  # fmt: skip


def outcome_of(options: AnalysisOptions, item: tuple[str, Any]) -> Outcome:
    """Return the report on a named matrix, or the reason why it cannot be analysed."""
    name, value = item
    initial = None
    if isinstance(value, WithInitial):
        value, initial = value.matrix, value.initial
    work = functools.partial(_reported, options, name, value, initial=initial)
    sides = getattr(value, "sides", None)
    if not isinstance(sides, tuple):  # they are not known before it is read
        return attempt(name, work)
    needed, other = least_memory(options, sides), way_out(options, sides)
    return attempt(name, work, needed=needed, way_out=other)


def attempt(
    name: str, work: Callable[[], Done], *, needed: int = 0, way_out: str = ""
) -> Done | Skipped:
    """Return what `work` returns, or the reason why it cannot be done with the matrix `name`.

    `needed` are the bytes without which it is not begun, and `way_out` is said where memory lacks.
    """
    try:
        if words := lacking(needed):
            return Skipped(Why.MEMORY.words(error=words + way_out), unread=True)
        return work()
    except FileError as error:
        return Skipped(Why.UNREAD.words(error=error), unread=True)
    except RmtspecError as error:
        return Skipped(str(error))
    except MemoryError as error:
        words = str(error) or "an allocation failed"
        return Skipped(Why.MEMORY.words(error=words + way_out), unread=True)
    except Exception as error:
        error.add_note(f"This happened with the matrix {name!r}.")
        raise


def _reported(
    options: AnalysisOptions, name: str, value: Any, *, initial: Any = None
) -> MatrixReport | Estimated:
    kind = options.kind or getattr(value, "kind", None)
    ready = value if isinstance(value, Ready) else None
    if isinstance(value, Plain) or (ready is not None and ready.is_plain):
        options = dataclasses.replace(options, noise="mp")
    rounding = getattr(value, "rounding", None)
    if callable(value) and not is_model(value):
        value = value()
    kind = kind if isinstance(kind, str) else Kind.MATRIX
    found: MatrixReport | Estimated | None = None
    if options.estimates and not isinstance(value, Spectrum):
        value = matrix(value)
        if is_estimated(options, value.shape):
            found = estimated(value, name, kind, options)
    if found is None:
        spec, spent = (None, 0.0) if ready is None else (ready.spectrum, ready.spent)
        found = report_on(value, name, kind, options, initial=initial, spec=spec, spent=spent)
    quantised = rounding() if callable(rounding) else None
    if quantised is None:
        return found
    if isinstance(found, Estimated):
        return found.with_rounding(rounding_level(found.estimate, *quantised))
    return dataclasses.replace(found, rounding=rounding_level(found.spectrum, *quantised))
