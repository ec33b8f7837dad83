"""Pruning a weight file: its matrices split into factors, or lowered in rank in place."""

import dataclasses
import math
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._file_targets import sides_of, targets_of, tensors_in
from rmtspec._files import PathLike, empty_folder, finished_folder
from rmtspec._given_plan import adopt
from rmtspec._manifest import WEIGHTS, Manifest, SplitEntry
from rmtspec._plan import check_ranks, make_plan
from rmtspec._plan_options import analysis_options, sizes_only
from rmtspec._results import versions
from rmtspec._safetensors import StoredTensor, stored_bytes, stored_metadata
from rmtspec._safetensors_writer import Outgoing, write_safetensors
from rmtspec._selection import Pattern, Selection
from rmtspec._sources import grouped
from rmtspec._split import split
from rmtspec._truncate import truncate
from rmtspec.checkpoint import Checkpoint, StoredMatrix
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError
from rmtspec.report import Progress, Report, analyze_many

FORMS = ("factors", "dense")
#: The file that the form "dense" writes; factors are in `WEIGHTS`.
DENSE_WEIGHTS = "model.safetensors"
_MODE = {"factors": "split", "dense": "truncate"}


def prune_file(
    path: PathLike,
    out: PathLike | None,
    *,
    form: str = "factors",
    bulk_keep: float | None = None,
    fit_cutoff: float | None = None,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    min_saving: float = 0.0,
    ranks: Mapping[str, int] | None = None,
    budget: float | None = None,
    plan: Report | None = None,
    dry_run: bool = False,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Prune the matrices of a .safetensors file into a new folder; return what was done.

    Parameters
    ----------
    path : path
        The file. It is not changed.
    out : path or None
        A folder that does not exist yet or is empty; None only with `dry_run`.
    form : {"factors", "dense"}
        "factors" writes ``x.outer.weight`` and ``x.inner.weight`` in place of ``x.weight``
        (outer @ inner, in the layout in which it was stored; the bias becomes ``x.outer.bias``)
        and a manifest; "dense" their product, under the names and in the shapes of `path`.
    bulk_keep : float, optional
        Share of the bulk to keep beside the spikes; 0.45, unless `budget` or another rule decides.
    fit_cutoff : float, optional
        Leave matrices alone whose fit has a statistic above it; no gate by default.
    include, exclude : pattern, predicate or several, optional
        On the names of tensor ("fc.weight") and layer ("fc"). Convolution kernels, embeddings
        and matrices with a side below 16 are left alone unless `include` names them.
    min_saving : float
        Leave matrices alone that would save a smaller share of their parameters.
    ranks : mapping of str to int, optional
        Ranks by name, past every rule.
    budget : float, optional
        Share of the parameters of the matrices in question to keep, in place of a rule.
    plan : Report, optional
        A plan, perhaps edited, to carry out as it is.
    dry_run : bool
        Return the plan and write nothing.
    n_jobs, progress
        Of `analyze_many`.
    **options
        Of `analyze`: `rule` and `keep`, `alpha`, `beta`, ...

    Returns
    -------
    Report
        The plan; where it was carried out, `weight_error` is measured on what was written.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        A wrong option, a plan of another file, or nothing to cut.
    FileError
        `path` cannot be read, or `out` not written.
    """
    selection, analysis = check_request(
        out, form=form, bulk_keep=bulk_keep, fit_cutoff=fit_cutoff, include=include,
        exclude=exclude, min_saving=min_saving, ranks=ranks, budget=budget, plan=plan,
        n_jobs=n_jobs, **options,
    )  # fmt: skip
    if out is None and not dry_run:
        raise InvalidTypeError("`out` is None; expected a folder, unless dry_run=True.")
    listed, tensors = tensors_in(path)
    targets = targets_of(listed, tensors, selection)
    if plan is not None:
        decided = adopt(
            plan,
            targets,
            {name: sides_of(matrix) for name, matrix in listed.matrices.items()},
            {name: matrix.kind for name, matrix in listed.matrices.items()},
            owner=str(listed.path),
            dense=form == "dense",
        )
    else:
        chosen, left_out = selection.choose(listed.matrices)
        skipped = [*listed.skipped, *left_out]
        if not chosen:
            raise _nothing(listed.path, skipped, selection)
        targets = {name: targets[name] for name in chosen}
        sides = {name: sides_of(matrix) for name, matrix in chosen.items()}
        # Not after hours of analysis.
        check_ranks(ranks or {}, sizes_only(sides, {}), targets, _MODE[form])
        found = analyze_many(chosen, n_jobs=n_jobs, progress=progress, **analysis)
        found = dataclasses.replace(found, skipped=[*found.skipped, *skipped])
        decided = make_plan(
            found, targets, mode=_MODE[form], fit_cutoff=fit_cutoff, min_saving=min_saving,
            ranks=ranks, budget=budget,
        )  # fmt: skip
    if not dry_run and all(row["action"] == "keep" for row in decided.rows):
        kept = [{"name": row["name"], "reason": row["reason"]} for row in decided.rows]
        raise _nothing(listed.path, [*kept, *decided.skipped], selection)
    outgoing = _outgoing(listed, tensors, decided.rows)
    decided = dataclasses.replace(
        decided,
        settings={**decided.settings, **selection.settings, "form": form},
        totals={
            "parameters_before": sum(math.prod(t.shape) for t in tensors.values()),
            "parameters_after": sum(math.prod(t.shape) for t in outgoing),
            "bytes_before": sum(t.end - t.begin for t in tensors.values()),
            "bytes_after": sum(t.nbytes for t in outgoing),
        },
    )
    if out is not None and not dry_run:
        _write(Path(out), form, outgoing, decided, listed)
    return decided


def check_request(
    out: PathLike | None,
    *,
    form: str = "factors",
    bulk_keep: float | None = None,
    fit_cutoff: float | None = None,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    min_saving: float = 0.0,
    ranks: Mapping[str, int] | None = None,
    budget: float | None = None,
    plan: Report | None = None,
    n_jobs: int | None = 1,
    **options: Any,
) -> tuple[Selection, dict[str, Any]]:
    """Raise for what is wrong before the file is looked at; return selection and options."""
    _checks.choice(form, "form", FORMS)
    given = {
        "bulk_keep": bulk_keep, "fit_cutoff": fit_cutoff, "include": include, "exclude": exclude,
        "min_saving": min_saving or None, "ranks": ranks or None, "budget": budget, **options,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if plan is not None and given:
        raise InvalidValueError(
            f"`plan` and `{next(iter(given))}` are both given; expected one of them, as the plan "
            "says what is done to each matrix. Edit the plan, or make a new one."
        )
    rule = options.pop("rule", None)
    analysis = analysis_options(
        _MODE[form], rule=rule, bulk_keep=bulk_keep, fit_cutoff=fit_cutoff, min_saving=min_saving,
        budget=budget, n_jobs=n_jobs, options=options,
    )  # fmt: skip
    selection = Selection(include, exclude)
    if out is not None:
        empty_folder(out)
    return selection, analysis


def _outgoing(
    listed: Checkpoint, tensors: Mapping[str, StoredTensor], rows: list[dict[str, Any]]
) -> list[Outgoing]:
    """Return what the new file holds; loading it notes the error in the row it belongs to."""
    cut = {row["name"]: row for row in rows if row["action"] != "keep"}
    renamed = {}
    for name, row in cut.items():
        if row["action"] == "split":
            prefix = name.removesuffix("weight")
            renamed[f"{prefix}bias"] = f"{prefix}outer.bias"
    outgoing = []
    for name, tensor in tensors.items():
        if name not in cut:
            load = partial(stored_bytes, listed.path, tensor)
            new = renamed.get(name, name)
            outgoing.append(
                Outgoing(new, tensor.dtype, tensor.shape, load, tensor.end - tensor.begin)
            )
            continue
        row, matrix = cut[name], listed.matrices[name]
        if row["action"] == "truncate":
            whole = partial(_truncated, matrix, row)
            outgoing.append(Outgoing(name, tensor.dtype, tensor.shape, whole))
            continue
        prefix, factors = name.removesuffix("weight"), _Factors(matrix, row)
        # A kernel: the inner convolution has its extent, the outer one is pointwise.
        outer = (matrix.shape[0], row["rank"], *(1 for _ in matrix.shape[2:]))
        inner = (row["rank"], *matrix.shape[1:])
        for side, shape in (("outer", outer), ("inner", inner)):
            load = partial(factors.take, side)
            outgoing.append(Outgoing(f"{prefix}{side}.weight", tensor.dtype, shape, load))
    return outgoing


class _Factors:
    """The two factors of a matrix, computed when the first is called for, kept until taken."""

    def __init__(self, matrix: StoredMatrix, row: dict[str, Any]) -> None:
        self._matrix, self._row = matrix, row
        self._waiting: dict[str, NDArray[Any]] = {}

    def take(self, side: str) -> NDArray[Any]:
        if side not in self._waiting:
            parts = split(self._matrix(), self._row["rank"])
            self._row["weight_error"] = parts.error
            self._waiting = {"outer": parts.outer, "inner": parts.inner}
        return self._waiting.pop(side)


def _truncated(matrix: StoredMatrix, row: dict[str, Any]) -> NDArray[Any]:
    """Return the matrix at the row's rank, rounded to its dtype once, and note the error."""
    found = truncate(matrix(), row["rank"])
    row["weight_error"] = found.error
    return found.matrix


def _write(
    out: Path, form: str, outgoing: list[Outgoing], decided: Report, listed: Checkpoint
) -> None:
    needed, free = decided.totals["bytes_after"], shutil.disk_usage(out.absolute().parent).free
    if needed > free:
        raise FileError(
            f"{out} cannot be written: it needs {needed:,} bytes, and {free:,} are free. Nothing "
            "was left there; free space or choose another place."
        )
    metadata = stored_metadata(listed.path)
    with finished_folder(out) as folder:
        if form == "dense":
            write_safetensors(folder / DENSE_WEIGHTS, outgoing, metadata)
            return
        digest = write_safetensors(folder / WEIGHTS, outgoing, metadata)
        size = (folder / WEIGHTS).stat().st_size
        entries = tuple(
            SplitEntry(row["layer"], "tensor", row["rank"], listed.matrices[row["name"]].shape)
            for row in decided.rows
            if row["action"] == "split"
        )
        files = {WEIGHTS: {"bytes": size, "sha256": digest}}
        Manifest(entries, {}, files, versions()).write(folder)


def _nothing(path: Path, entries: list[dict[str, str]], selection: Selection) -> InvalidValueError:
    reasons = [f"{reason}: {names}" for reason, names in grouped(entries)]
    unmet = [f"no name meets {pattern}" for pattern in selection.unmet]
    why = "; ".join([*unmet, *reasons]) or "it holds no tensors"
    return InvalidValueError(f"Nothing in {path} would be cut, so nothing was written: {why}.")
