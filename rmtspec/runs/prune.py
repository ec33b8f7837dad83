"""Pruning a checkpoint: its matrices split into factors, or lowered in rank in place."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmtspec import _checks
from rmtspec._files import PathLike, check_outside, check_space, check_writable, empty_folder
from rmtspec._records import plain, versions
from rmtspec._text import grouped
from rmtspec.checkpoint.companions import copy_companions
from rmtspec.checkpoint.index_writer import DENSE_METADATA, DENSE_WEIGHTS, file_names, write_index
from rmtspec.checkpoint.listing import Checkpoint, matrices_in
from rmtspec.checkpoint.manifest import WEIGHTS, Manifest, SplitEntry
from rmtspec.checkpoint.safetensors_writer import Outgoing, write_safetensors
from rmtspec.errors import FileError, InvalidOptionTypeError, InvalidValueError, RmtspecWarning
from rmtspec.planning.given import adopt
from rmtspec.planning.options import PlanOptions
from rmtspec.planning.plan import Plan, make_plan
from rmtspec.planning.selection import Pattern, Selection
from rmtspec.planning.target import given_ranks
from rmtspec.report.many import Skipped, report_of
from rmtspec.report.options import Progress
from rmtspec.report.report import Report, check_suffix
from rmtspec.runs.analyze import outcomes
from rmtspec.runs.fingerprint import fingerprint
from rmtspec.runs.journal import Journal
from rmtspec.runs.pruned_tensors import check_holdable, outgoing_files
from rmtspec.runs.targets import refuse_factors, targets_of
from rmtspec.runs.work_folder import FINISHED, WorkFolder, is_finished, work_folder, written_bytes
from rmtspec.terms import Action

#: What the files of a mode are called: the words of `--as`, reports and journals.
FORMS = {"split": "factors", "truncate": "dense"}


def prune_checkpoint(
    path: PathLike | Checkpoint,
    out: PathLike | None,
    *,
    mode: str = "split",
    rule: str | None = None,
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
    form: str | None = None,
    **options: Any,
) -> Plan:
    """Prune the matrices of a weight file or folder into a new folder; return what was done.

    One matrix is in memory at a time. The work is kept beside `out`, in a hidden folder that ends
    in ".rmtspec-work", until it is whole: a run that was killed goes on when called the same way,
    and ends with the same files. Configs and tokenizers beside the weights are copied.

    Parameters
    ----------
    path : path or Checkpoint
        As `rmtspec.checkpoint.matrices_in` takes or returns it. It is only read.
    out : path or None
        A folder that does not exist yet or is empty; None only with `dry_run`.
    mode : {"split", "truncate"}
        "split" writes ``x.outer.weight`` and ``x.inner.weight`` in place of ``x.weight``
        (outer @ inner, in the layout in which it was stored; the bias becomes ``x.outer.bias``)
        and a manifest; "truncate" their product, under the names and in the shapes of `path`. A
        fused layer (qkv, gate_up) is split as the one layer it is, but made dense part by part;
        stacks of experts can only be made dense.
    rule : {"bema", "energy", "fraction"}
        How the rank follows from the spectrum, as in `rmtspec.choose_rank`; by default "bema".
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
    form : {"factors", "dense"}, optional
        The old name of `mode`.
    **options
        Of `analyze`: `keep`, `alpha`, `beta`, ...

    Returns
    -------
    Plan
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
    if form is not None:
        _checks.choice(form, "form", tuple(FORMS.values()))
        mode = next(new for new, old in FORMS.items() if old == form)
        words = f"`form` is now called `mode`: pass mode={mode!r}."
        warnings.warn(words, RmtspecWarning, stacklevel=2)
    asked = PlanOptions(
        mode=mode, rule=rule, bulk_keep=bulk_keep, fit_cutoff=fit_cutoff, include=include,
        exclude=exclude, min_saving=min_saving, ranks=ranks, budget=budget, n_jobs=n_jobs,
        progress=progress, plan=plan, more=options,
    )  # fmt: skip
    if out is not None and not is_finished(out):
        empty_folder(out)
    if out is None and not dry_run:
        raise InvalidOptionTypeError("`out` is None", "a folder, unless dry_run=True")
    if threads is not None:
        threads = _checks.integer(threads, "threads", 1)
    if report is not None:
        check_suffix(report)
        check_writable(report)
    # A layer that is split is split whole; a stack of experts stays one tensor in either mode.
    truncates = asked.mode == Action.TRUNCATE
    listed = path if isinstance(path, Checkpoint) else matrices_in(path)
    listed = listed.with_parts(truncates)
    refuse_factors(listed)
    for tensor in listed.tensors.values():
        check_holdable(tensor)
    _check_all_read(listed)
    task = _Task(listed, asked, threads)
    if out is None or dry_run:
        return task.sized(task.plan())[0]
    check_outside(out, listed.path)
    if truncates:
        size = sum(t.nbytes for t in listed.tensors.values())
        check_space(out, size - written_bytes(out))
    settings = {
        **asked.analysis.settings, **task.selection.settings, "fit_cutoff": fit_cutoff,
        "min_saving": min_saving, "ranks": ranks, "budget": budget,
    }  # fmt: skip
    if plan is not None:
        settings["plan"] = [[row["name"], row["action"], row["rank"]] for row in task.plan().rows]
    header = {
        "command": f"prune --as {task.form}",
        "checkpoint": fingerprint(listed),
        "settings": plain(settings),
        "versions": versions(),
    }
    with work_folder(out, header) as work:
        finished = next((e[FINISHED] for e in work.journal.entries if FINISHED in e), None)
        if finished is not None:
            done = Plan.from_dict(finished)
        else:
            done = _carry_out(task, task.plan(work.journal), work)
            work.journal.add({FINISHED: done.to_dict()})
        work.finish()
        if report is not None:
            done.save(report)
    return done


class _Task:
    """What is pruned, and what is asked."""

    def __init__(self, listed: Checkpoint, options: PlanOptions, threads: int | None) -> None:
        self.listed, self.options, self._threads = listed, options, threads
        self.selection = options.selection()
        self.form = FORMS[options.mode]

    def plan(self, journal: Journal | None = None) -> Plan:
        """Return what is done to each matrix: as given, or from the analysis."""
        listed, options = self.listed, self.options
        chosen = self.selection.choose(listed.matrices)
        if options.plan is not None:
            targets = targets_of(listed, chosen)
            dense = options.mode == Action.TRUNCATE
            return adopt(options.plan, targets, owner=str(listed.path), dense=dense)
        skipped = [*listed.skipped, *chosen.left_out]
        if not chosen.matrices:
            raise _nothing(listed.path, skipped, self.selection)
        targets = targets_of(listed, chosen)
        given_ranks(options, targets)  # not after hours of analysis
        found = outcomes(
            chosen.matrices, options.analysis, n_jobs=options.n_jobs, threads=self._threads,
            progress=options.progress, journal=journal,
        )  # fmt: skip
        unread = [o.reason for _, o in found if isinstance(o, Skipped) and o.unread]
        if unread and journal is not None:  # it could not be copied either
            raise FileError(unread[0])
        report = report_of(found, options.analysis.settings, skipped)
        return make_plan(report, targets, options)

    def sized(self, decided: Plan) -> tuple[Plan, list[list[Outgoing]]]:
        """Return the plan with what the whole model comes to, and the files it makes."""
        files = outgoing_files(self.listed, decided.rows)
        old, new = self.listed.tensors.values(), [t for each in files for t in each]
        totals = {
            "parameters_before": sum(math.prod(t.shape) for t in old),
            "parameters_after": sum(math.prod(t.shape) for t in new),
            "bytes_before": sum(t.nbytes for t in old),
            "bytes_after": sum(t.nbytes for t in new),
        }
        settings = {**decided.settings, **self.selection.settings, "form": self.form}
        return dataclasses.replace(decided, settings=settings, totals=totals), files

    def nothing(self, decided: Plan) -> InvalidValueError:
        """Return the error of a plan that leaves everything as it is."""
        kept = [{"name": row["name"], "reason": row["reason"]} for row in decided.rows]
        return _nothing(self.listed.path, [*kept, *decided.skipped], self.selection)


def _carry_out(task: _Task, decided: Plan, work: WorkFolder) -> Plan:
    """Write the new files, those that an earlier call has not; return what was done."""
    if not decided.cut:
        raise task.nothing(decided)
    _check_same(decided, work)
    decided, files = task.sized(decided)
    check_space(work.out, decided.totals["bytes_after"] - written_bytes(work.out))
    errors: dict[str, float] = {}  # as measured, by name of the matrix
    whole: dict[str, dict[str, Any]] = {}  # the manifest's entries of the files that are whole
    written: dict[str, set[str]] = {}  # tensors that earlier calls wrote
    for entry in work.journal.entries:
        errors |= entry.get("errors", {})
        if "sha256" in entry:
            whole[entry["file"]] = {key: entry[key] for key in ("bytes", "sha256")}
        elif "tensor" in entry:
            written.setdefault(entry["file"], set()).add(entry["tensor"])
    stem = DENSE_WEIGHTS if task.form == "dense" else WEIGHTS
    named = dict(zip(file_names(stem, len(files)), files, strict=True))
    metadata = task.listed.metadata or DENSE_METADATA
    for name, tensors in named.items():
        file = work.content / name
        if name in whole and file.exists():
            continue

        def note(tensor: Outgoing, name: str = name) -> None:
            measured = {key: value for key, value in tensor.errors.items() if key not in errors}
            for matrix, error in measured.items():
                errors[matrix] = error
                if task.options.progress is not None:
                    task.options.progress(len(errors), len(decided.cut), matrix)
            work.journal.add({"file": name, "tensor": tensor.name, "errors": measured})

        sha256 = write_safetensors(
            file, tensors, metadata, written=written.get(name, ()), note=note
        )
        whole[name] = {"bytes": file.stat().st_size, "sha256": sha256}
        work.journal.add({"file": name, **whole[name]})
    for row in decided.rows:
        if row["name"] in errors:
            row["weight_error"] = errors[row["name"]]
    write_index(work.content, stem, named)
    copy_companions(task.listed.path, work.content)
    if task.form == "factors":
        splits = tuple(
            SplitEntry(row["layer"], "tensor", row["rank"], task.listed.matrices[row["name"]].shape)
            for row in decided.rows
            if row["action"] == "split"
        )
        files_written = {name: whole[name] for name in named}
        Manifest(splits, {}, files_written, versions()).write(work.content)
    return decided


def _check_all_read(listed: Checkpoint) -> None:
    """Raise where a tensor could not even be listed: the new files would lack it."""
    for entry in listed.unread:
        raise FileError(
            f"{listed.path} holds {entry['name']!r}, which cannot be copied to the new files: "
            f"{entry['reason']}. Leave it out or convert it, and save the file again."
        )


def _check_same(decided: Plan, work: WorkFolder) -> None:
    """Raise where an earlier call wrote by another plan: a predicate is known by its name only."""
    cut = [[row["name"], row["action"], row["rank"]] for row in decided.cut]
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
    unmet = [f"no name matches {pattern}" for pattern in selection.unmet]
    why = "; ".join([*unmet, *reasons]) or "it holds no tensors"
    return InvalidValueError(f"Nothing in {path} would be cut, so nothing was written: {why}.")
