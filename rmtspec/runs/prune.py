"""Pruning a checkpoint: its matrices split into factors, or lowered in rank in place."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtspec import _checks
from rmtspec._files import PathLike, check_outside, check_space, check_writable, empty_folder
from rmtspec._records import plain, versions
from rmtspec._text import grouped
from rmtspec.checkpoint.companions import copy_companions
from rmtspec.checkpoint.index_writer import DENSE_METADATA, DENSE_WEIGHTS, file_names, write_index
from rmtspec.checkpoint.listing import matrices_in
from rmtspec.checkpoint.manifest import WEIGHTS, Manifest, SplitEntry
from rmtspec.checkpoint.safetensors_writer import Outgoing, write_safetensors
from rmtspec.checkpoint.stored import Checkpoint
from rmtspec.errors import FileError, InvalidOptionError, InvalidTypeError, InvalidValueError
from rmtspec.planning.given import adopt
from rmtspec.planning.options import analysis_options, sizes_only
from rmtspec.planning.plan import check_ranks, make_plan
from rmtspec.planning.selection import Pattern, Selection
from rmtspec.report.many import Unread, report_of
from rmtspec.report.options import Progress, check_options, check_progress
from rmtspec.report.report import Report, check_suffix
from rmtspec.runs.analyze import outcomes
from rmtspec.runs.fingerprint import fingerprint
from rmtspec.runs.journal import Journal
from rmtspec.runs.pruned_tensors import check_holdable, outgoing_files
from rmtspec.runs.targets import refuse_factors, targets_of
from rmtspec.runs.work_folder import FINISHED, WorkFolder, is_finished, work_folder, written_bytes

FORMS = ("factors", "dense")
_MODE = {"factors": "split", "dense": "truncate"}


def prune_checkpoint(
    path: PathLike | Checkpoint,
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
    report: PathLike | None = None,
    n_jobs: int | None = 1,
    threads: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Prune the matrices of a weight file or folder into a new folder; return what was done.

    One matrix is in memory at a time. The work is kept beside `out`, in a hidden folder that ends
    in ".rmtspec-work", until it is whole: a run that was killed goes on when called the same way,
    and ends with the same files. Configs and tokenizers beside the weights are copied.

    Parameters
    ----------
    path : path or Checkpoint
        Of `rmtspec.checkpoint.matrices_in`, where `form` is "factors" with ``parts=False``. It is
        only read.
    out : path or None
        A folder that does not exist yet or is empty; None only with `dry_run`.
    form : {"factors", "dense"}
        "factors" writes ``x.outer.weight`` and ``x.inner.weight`` in place of ``x.weight``
        (outer @ inner, in the layout in which it was stored; the bias becomes ``x.outer.bias``)
        and a manifest; "dense" their product, under the names and in the shapes of `path`. A
        fused layer (qkv, gate_up) is split as the one layer it is, but made dense part by part;
        stacks of experts can only be made dense.
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
    report : path, optional
        Write the report here too (.html, .csv, .json), before the work is let go.
    n_jobs, threads
        Of `analyze_checkpoint`; they are of the analysis, writing is one process's work.
    progress : callable, optional
        Called after each matrix with (done, total, name), first of the analysis, then, from 1
        again, of the writing.
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
        `path` cannot be read, or `out` not written; what is kept of the work is then said.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import rmtspec
    >>> from safetensors.numpy import save_file
    >>> W = rmtspec.ensembles.spiked(80, 60, [9], rng=0).astype("float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"fc.weight": W}, f"{folder}/model.safetensors")
    ...     done = rmtspec.prune_checkpoint(
    ...         f"{folder}/model.safetensors", f"{folder}/small", bulk_keep=0.0
    ...     )
    >>> done.row("fc.weight")["rank"], done.totals["parameters_after"]
    (1, 140)
    """
    selection, analysis = check_request(
        out, form=form, bulk_keep=bulk_keep, fit_cutoff=fit_cutoff, include=include,
        exclude=exclude, min_saving=min_saving, ranks=ranks, budget=budget, plan=plan,
        n_jobs=n_jobs, **options,
    )  # fmt: skip
    if out is None and not dry_run:
        raise InvalidTypeError("`out` is None; expected a folder, unless dry_run=True.")
    check_progress(progress)
    if threads is not None:
        threads = _checks.integer(threads, "threads", 1)
    if report is not None:
        check_suffix(report)
        check_writable(report)
    # A layer that is split is split whole; a stack of experts stays one tensor in either form.
    listed = path if isinstance(path, Checkpoint) else matrices_in(path, parts=form == "dense")
    refuse_factors(listed)
    for tensor in listed.tensors.values():
        check_holdable(tensor)
    _check_all_read(listed)
    task = _Task(listed, selection, form, analysis, n_jobs, threads, progress)
    wanted = {
        "fit_cutoff": fit_cutoff, "min_saving": min_saving, "ranks": ranks, "budget": budget,
    }  # fmt: skip
    if out is None or dry_run:
        return task.sized(task.plan(plan, wanted, None), {})[0]
    check_outside(out, listed.path)
    if form == "dense":
        size = sum(t.nbytes for t in listed.tensors.values())
        check_space(out, size - written_bytes(out))
    settings = {**check_options(analysis), **selection.settings, **wanted}
    if plan is not None:
        given = task.plan(plan, wanted, None).rows
        settings["plan"] = [[row["name"], row["action"], row["rank"]] for row in given]
    header = {
        "command": f"prune --as {form}",
        "checkpoint": fingerprint(listed),
        "settings": plain(settings),
        "versions": versions(),
    }
    with work_folder(out, header) as work:
        finished = next((e[FINISHED] for e in work.journal.entries if FINISHED in e), None)
        if finished is not None:
            done = Report.from_dict(finished)
        else:
            done = _carry_out(task, task.plan(plan, wanted, work.journal), work)
            work.journal.add({FINISHED: done.to_dict()})
        work.finish()
        if report is not None:
            done.save(report)
    return done


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
        raise InvalidOptionError(
            f"`plan` and `{next(iter(given))}` are both given; expected one of them, as the plan "
            "says what is done to each matrix. Edit the plan, or make a new one."
        )
    rule = options.pop("rule", None)
    analysis = analysis_options(
        _MODE[form], rule=rule, bulk_keep=bulk_keep, fit_cutoff=fit_cutoff, min_saving=min_saving,
        budget=budget, n_jobs=n_jobs, options=options,
    )  # fmt: skip
    selection = Selection(include, exclude)
    if out is not None and not is_finished(out):
        empty_folder(out)
    return selection, analysis


@dataclass(frozen=True, slots=True)
class _Task:
    """What is pruned, and how its matrices are analysed."""

    listed: Checkpoint
    selection: Selection
    form: str
    analysis: dict[str, Any]
    n_jobs: int | None
    threads: int | None
    progress: Progress | None

    def plan(self, given: Report | None, wanted: dict[str, Any], journal: Journal | None) -> Report:
        """Return what is done to each matrix: as given, or from the analysis."""
        listed, selection = self.listed, self.selection
        targets = targets_of(listed, selection)
        if given is not None:
            return adopt(
                given,
                targets,
                {name: matrix.sides for name, matrix in listed.matrices.items()},
                {name: matrix.kind for name, matrix in listed.matrices.items()},
                owner=str(listed.path),
                dense=self.form == "dense",
            )
        chosen, left_out = selection.choose(listed.matrices)
        skipped = [*listed.skipped, *left_out]
        if not chosen:
            raise _nothing(listed.path, skipped, selection)
        targets = {name: targets[name] for name in chosen}
        sides = {name: matrix.sides for name, matrix in chosen.items()}
        mode = _MODE[self.form]
        # Not after hours of analysis.
        check_ranks(wanted["ranks"] or {}, sizes_only(sides, {}), targets, mode)
        found = outcomes(
            chosen, self.analysis, n_jobs=self.n_jobs, threads=self.threads,
            progress=self.progress, journal=journal,
        )  # fmt: skip
        unread = [outcome for _, outcome in found if isinstance(outcome, Unread)]
        if unread and journal is not None:  # it could not be copied either
            raise FileError(unread[0])
        report = report_of(found, check_options(self.analysis), skipped)
        return make_plan(report, targets, mode=mode, **wanted)

    def sized(
        self, decided: Report, errors: dict[str, float]
    ) -> tuple[Report, list[list[Outgoing]]]:
        """Return the plan with what the whole model comes to, and the files it makes."""
        files = outgoing_files(self.listed, decided.rows, errors)
        old, new = self.listed.tensors.values(), [t for each in files for t in each]
        totals = {
            "parameters_before": sum(math.prod(t.shape) for t in old),
            "parameters_after": sum(math.prod(t.shape) for t in new),
            "bytes_before": sum(t.nbytes for t in old),
            "bytes_after": sum(t.nbytes for t in new),
        }
        settings = {**decided.settings, **self.selection.settings, "form": self.form}
        return dataclasses.replace(decided, settings=settings, totals=totals), files

    def nothing(self, decided: Report) -> InvalidValueError:
        """Return the error of a plan that leaves everything as it is."""
        kept = [{"name": row["name"], "reason": row["reason"]} for row in decided.rows]
        return _nothing(self.listed.path, [*kept, *decided.skipped], self.selection)


def _carry_out(task: _Task, decided: Report, work: WorkFolder) -> Report:
    """Write the new files, those that an earlier call has not; return what was done."""
    if all(row["action"] == "keep" for row in decided.rows):
        raise task.nothing(decided)
    _check_same(decided, work)
    errors: dict[str, float] = {}
    decided, files = task.sized(decided, errors)
    entries = [entry for entry in work.journal.entries if "file" in entry]
    for entry in entries:
        errors |= entry.get("errors", {})
    noted = set(errors)
    cut = sum(row["action"] != "keep" for row in decided.rows)
    sizes = {entry["file"]: entry for entry in entries if "sha256" in entry}
    check_space(work.out, decided.totals["bytes_after"] - written_bytes(work.out))
    stem = DENSE_WEIGHTS if task.form == "dense" else WEIGHTS
    names = file_names(stem, len(files))
    metadata = task.listed.metadata or DENSE_METADATA
    for name, tensors in zip(names, files, strict=True):
        if name in sizes and (work.content / name).exists():
            continue
        written = {e["tensor"] for e in entries if e.get("file") == name and "tensor" in e}

        def note(tensor: Outgoing, name: str = name) -> None:
            measured = {key: errors[key] for key in errors.keys() - noted}
            for matrix in measured:
                noted.add(matrix)
                if task.progress is not None:
                    task.progress(len(noted), cut, matrix)
            work.journal.add({"file": name, "tensor": tensor.name, "errors": measured})

        sha256 = write_safetensors(
            work.content / name, tensors, metadata, written=written, note=note
        )
        size = (work.content / name).stat().st_size
        sizes[name] = {"file": name, "bytes": size, "sha256": sha256}
        work.journal.add(sizes[name])
    for row in decided.rows:
        if row["name"] in errors:
            row["weight_error"] = errors[row["name"]]
    if len(names) > 1:
        places = {t.name: n for n, each in zip(names, files, strict=True) for t in each}
        write_index(work.content, stem, places, decided.totals["bytes_after"])
    copy_companions(task.listed, work.content)
    if task.form == "factors":
        splits = tuple(
            SplitEntry(row["layer"], "tensor", row["rank"], task.listed.matrices[row["name"]].shape)
            for row in decided.rows
            if row["action"] == "split"
        )
        written_files = {
            name: {"bytes": sizes[name]["bytes"], "sha256": sizes[name]["sha256"]} for name in names
        }
        Manifest(splits, {}, written_files, versions()).write(work.content)
    return decided


def _check_all_read(listed: Checkpoint) -> None:
    """Raise where a tensor could not even be listed: the new files would lack it."""
    for entry in listed.skipped:
        if entry["name"] not in listed.tensors:
            raise FileError(
                f"{listed.path} holds {entry['name']!r}, which cannot be copied to the new files: "
                f"{entry['reason']}. Leave it out or convert it, and save the file again."
            )


def _check_same(decided: Report, work: WorkFolder) -> None:
    """Raise where an earlier call wrote by another plan: a predicate is known by its name only."""
    cut = [[r["name"], r["action"], r["rank"]] for r in decided.rows if r["action"] != "keep"]
    earlier = next((entry["cut"] for entry in work.journal.entries if "cut" in entry), None)
    if earlier is None:
        work.journal.add({"cut": cut})
    elif earlier != cut:
        raise FileError(
            f"{work.path} holds the work of another plan: {len(earlier)} matrices were to be cut, "
            f"now {len(cut)} or others. Call it the same way to go on with it; else name another "
            f"folder, or delete {work.path}."
        )


def _nothing(path: Path, entries: list[dict[str, str]], selection: Selection) -> InvalidValueError:
    reasons = [f"{reason}: {names}" for reason, names in grouped(entries)]
    unmet = [f"no name meets {pattern}" for pattern in selection.unmet]
    why = "; ".join([*unmet, *reasons]) or "it holds no tensors"
    return InvalidValueError(f"Nothing in {path} would be cut, so nothing was written: {why}.")
