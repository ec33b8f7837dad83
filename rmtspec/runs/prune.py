"""Pruning a checkpoint: its matrices are split into factors, or lowered in rank in place."""

import dataclasses
import hashlib
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmtspec import _checks
from rmtspec._files.reading import open_regular
from rmtspec._files.writing import (
    PathLike,
    check_outside,
    check_space,
    empty_folder,
)
from rmtspec._records import plain, versions
from rmtspec._text import counted, grouped
from rmtspec.checkpoint.companions import check_companions, copy_companions
from rmtspec.checkpoint.gguf_export import in_transformers, write_config
from rmtspec.checkpoint.index_writer import DENSE_METADATA, DENSE_WEIGHTS, file_names, write_index
from rmtspec.checkpoint.listing import Checkpoint, matrices_in
from rmtspec.checkpoint.manifest import WEIGHTS, Manifest, SplitEntry
from rmtspec.checkpoint.safetensors_writer import Outgoing, write_safetensors
from rmtspec.checkpoint.stored import check_stamps, stamps_of
from rmtspec.errors import (
    FileError,
    InvalidOptionError,
    InvalidOptionTypeError,
    InvalidValueError,
    RmtspecWarning,
)
from rmtspec.planning.calibration import Calibration, Weights
from rmtspec.planning.curves import curves_of
from rmtspec.planning.gate import UNSET, Gate, Unset
from rmtspec.planning.given import adopt
from rmtspec.planning.hidden_units import HiddenLayer
from rmtspec.planning.options import PlanOptions
from rmtspec.planning.plan import Plan, candidates, make_plan
from rmtspec.planning.selection import Pattern, Selection
from rmtspec.planning.target import settled
from rmtspec.report.many import Skipped, report_of
from rmtspec.report.options import Progress
from rmtspec.report.places import check_place
from rmtspec.report.report import Report
from rmtspec.runs.analyze import outcomes
from rmtspec.runs.copied_tensors import check_holdable
from rmtspec.runs.fingerprint import fingerprint
from rmtspec.runs.journal import Journal
from rmtspec.runs.pruned_tensors import outgoing_files
from rmtspec.runs.targets import hidden_in, refuse_factors, targets_of, weights_in
from rmtspec.runs.work_folder import FINISHED, WorkFolder, is_finished, work_folder, written_bytes
from rmtspec.terms import Action, Why

#: What the files of each mode are called in `--as`, reports and journals.
FORMS = {"split": "factors", "truncate": "dense"}


def prune_checkpoint(
    path: PathLike | Checkpoint,
    out: PathLike | None,
    *,
    mode: str = "split",
    rule: str | None = None,
    bulk_keep: float | None = None,
    gate: Gate | Unset = UNSET,
    fit_cutoff: float | Unset | None = UNSET,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    min_saving: float = 0.0,
    ranks: Mapping[str, int] | None = None,
    budget: float | None = None,
    calibration: Calibration | None = None,
    objective: str | None = None,
    rank_multiple: int | str = 1,
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

    One matrix is in memory at a time. Unfinished work is kept next to `out`, in a hidden folder
    whose name ends in ".rmtspec-work": a run that was killed resumes when it is called the same
    way, and writes the same files. Configs and tokenizers next to the weights are copied.

    Parameters
    ----------
    path : path or Checkpoint
        A path that `rmtspec.checkpoint.matrices_in` takes, or what it returns. It is only read.
    out : path or None
        A folder that does not exist yet or is empty; None only with `dry_run`.
    mode : {"split", "truncate"}
        "split" writes ``x.outer.weight`` and ``x.inner.weight`` in place of ``x.weight`` (which is
        outer @ inner, in its stored layout; the bias becomes ``x.outer.bias``), and a manifest.
        "truncate" writes the product, with the names and shapes of `path`. A fused layer (qkv,
        gate_up) is split as one layer, but truncated part by part; stacks of experts can only be
        truncated.
    rule : str, optional
        How the rank follows from the spectrum, as in `rmtspec.choose_rank`; by default "noise"
        where the gate asks for the noise model, else "bema".
    bulk_keep : float, optional
        Share of the bulk to keep besides the spikes; 0.45, unless `budget` or another rule decides.
    gate : {"noise"}, float or None
        What may be cut: "noise", only matrices whose verdict is "noise-like bulk" (the default,
        unless a plan is given); a number, the paper's gamma, only those whose fit statistic is at
        most that; None, any. Exactly low rank passes, and is split at its numerical rank. Matrices
        that stay in any case, or that `ranks` names, are analysed with the noise model "mp".
    fit_cutoff : float or None
        Another spelling of `gate`.
    include, exclude : pattern, predicate or several, optional
        Applied to the names of tensors ("fc.weight") and layers ("fc"). Convolution kernels,
        embeddings and matrices with a side below 16 are left alone unless `include` names them.
    min_saving : float
        Leave matrices alone that would save a smaller share of their parameters.
    ranks : mapping of str to int, optional
        Ranks by name, which override every rule and the gate; other matrices are still gated.
    budget : float, optional
        Share of the parameters of the matrices in question to keep, in place of a rule.
    calibration : Calibration, optional
        What data say about the layers of this model: made by an adapter, which can run it, or read
        with ``Calibration.load``. Matrices that it does not know are judged by their weights alone.
    objective : {"loss", "outputs"}, optional
        What the cut preserves with `calibration`: by default the loss, if it holds gradients.
    rank_multiple : int or "auto"
        Ranks that a budget or a rule chooses are multiples of it.
    plan : Report, optional
        A plan, possibly edited, to carry out as it is.
    dry_run : bool
        Return the plan and write nothing.
    report : path, optional
        Also write the report here (.html, .csv, .json), before the unfinished work is removed.
    n_jobs, threads
        As in `analyze_checkpoint`, for the analysis; one process writes.
    progress : callable, optional
        Called after each matrix with (done, total, name), first during the analysis, then, from 1
        again, during the writing.
    form : {"factors", "dense"}, optional
        The old name of `mode`.
    **options
        Options of `analyze`: `keep`, `alpha`, `beta`, ...

    Returns
    -------
    Plan
        The plan; if it was carried out, its `weight_error` is measured on what was written.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        An option is not valid, the plan is for another file, or there is nothing to cut.
    FileError
        `path` cannot be read, or `out` cannot be written; the message says what work is kept.

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
        new = next(new for new, old in FORMS.items() if old == form)
        if mode not in ("split", new):
            raise InvalidOptionError(
                f"`form` is {form!r} and `mode` {mode!r}", "one of them, `form` is its old name"
            )
        mode = new
        message = f"`form` is now called `mode`: pass mode={mode!r}."
        warnings.warn(message, RmtspecWarning, stacklevel=2)
    asked = PlanOptions(
        mode=mode, rule=rule, bulk_keep=bulk_keep, gate=gate, fit_cutoff=fit_cutoff,
        include=include, exclude=exclude, min_saving=min_saving, ranks=ranks, budget=budget,
        n_jobs=n_jobs, progress=progress, plan=plan, calibrated=calibration is not None,
        rank_multiple=rank_multiple, more=options,
    )  # fmt: skip
    if out is not None and not is_finished(out):
        empty_folder(out)
    if out is None and not dry_run:
        raise InvalidOptionTypeError("`out` is None", "a folder, unless dry_run=True")
    if threads is not None:
        threads = _checks.integer(threads, "threads", 1)
    if report is not None:
        place = path.path if isinstance(path, Checkpoint) else path
        check_place(report, [place] if isinstance(place, str | os.PathLike) else [])
    # Splitting takes layers whole; a stack of experts stays one tensor in either mode.
    truncates = asked.mode == Action.TRUNCATE
    listed = path if isinstance(path, Checkpoint) else matrices_in(path)
    listed = in_transformers(listed.with_parts(truncates))
    refuse_factors(listed)
    _check_copyable(listed)
    weights = weights_in(listed, calibration, objective)
    hidden = hidden_in(listed, calibration, weights)
    task = _Task(listed, asked, threads, weights, hidden=hidden)
    if out is None or dry_run:
        return task.sized(task.plan())[0]
    check_outside(out, listed.path)
    check_companions(listed.path)
    if truncates:
        size = sum(t.nbytes for t in listed.tensors.values())
        check_space(out, size - written_bytes(out))
    settings = {
        **asked.analysis.settings, **task.selection.settings, "gate": asked.gate,
        "min_saving": min_saving, "ranks": ranks, "budget": budget,
    }  # fmt: skip
    if calibration is not None:
        settings |= {"calibration": calibration.digest(), "objective": objective}
        settings["rank_multiple"] = rank_multiple
    if plan is not None:
        settings["plan"] = [[row["name"], row["action"], row["rank"]] for row in task.plan().rows]
    header = {
        "command": f"prune --as {task.form}", "checkpoint": fingerprint(listed),
        "settings": plain(settings), "versions": versions(),
    }  # fmt: skip
    with work_folder(out, header) as work:
        earlier = next((e[FINISHED] for e in work.journal.entries if FINISHED in e), None)
        if earlier is not None:
            done = Plan.from_dict(earlier)
        else:
            done = _carry_out(task, task.plan(work.journal), work)
            work.journal.add({FINISHED: done.to_dict()})
        work.finish()
        if report is not None:
            done.save(report)
    return done


class _Task:
    """The checkpoint to prune, and the options."""

    def __init__(
        self,
        listed: Checkpoint,
        options: PlanOptions,
        threads: int | None,
        weights: Mapping[str, Weights],
        hidden: Mapping[str, HiddenLayer],
    ) -> None:
        self.listed, self.options, self._threads = listed, options, threads
        self._weights, self._hidden = weights, hidden
        self.selection = options.selection()
        self.form = FORMS[options.mode]

    def plan(self, journal: Journal | None = None) -> Plan:
        """Return what to do to each matrix, as given or decided by the analysis."""
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
        plain = settled(options, targets)  # raises now rather than after hours of analysis
        analysed = outcomes(
            chosen.matrices, options.analysis, n_jobs=options.n_jobs, threads=self._threads,
            progress=options.progress, journal=journal, plain=plain,
        )  # fmt: skip
        unread = [o.reason for _, o in analysed if isinstance(o, Skipped) and o.unread]
        if unread and journal is not None:  # then it cannot be copied either
            raise FileError(unread[0])
        report = report_of(analysed, options.analysis.settings, skipped)
        curves = None
        if self._weights and options.budget is not None:
            names = candidates(report, targets, options)
            layers = self._hidden.values() if options.may_narrow else ()
            curves = curves_of(names, chosen.matrices, self._weights, layers)
        return make_plan(report, targets, options, curves)

    def sized(self, decided: Plan) -> tuple[Plan, list[list[Outgoing]]]:
        """Return the plan with the totals of the whole model, and its new files."""
        files = outgoing_files(self.listed, decided.rows, self._weights, self._hidden)
        old, new = self.listed.tensors.values(), [t for each in files for t in each]
        totals = {
            "parameters_before": sum(math.prod(t.shape) for t in old),
            "parameters_after": sum(math.prod(t.shape) for t in new),
            "bytes_before": sum(t.nbytes for t in old), "bytes_after": sum(t.nbytes for t in new),
        }  # fmt: skip
        settings = {**decided.settings, **self.selection.settings, "form": self.form}
        source = {
            "name": self.listed.path.absolute().name,
            "parameters": totals["parameters_before"], "bytes": totals["bytes_before"],
        }  # fmt: skip
        return dataclasses.replace(decided, settings=settings, totals=totals, source=source), files


def _carry_out(task: _Task, decided: Plan, work: WorkFolder) -> Plan:
    """Write the new files that an earlier call has not written; return what was done."""
    if not decided.cut:
        raise _nothing(task.listed.path, [*decided.rows, *decided.skipped], task.selection)
    _check_same(decided, work)
    decided, files = task.sized(decided)
    check_space(work.out, decided.totals["bytes_after"] - written_bytes(work.out))
    errors: dict[str, Any] = {}  # as measured, by name of the matrix
    complete: dict[str, dict[str, Any]] = {}  # entries of complete files for the manifest
    written: dict[str, dict[str, str]] = {}  # tensors that earlier calls wrote, digests
    for entry in work.journal.entries:
        errors |= entry.get("errors", {})
        if "sha256" in entry:
            complete[entry["file"]] = {key: entry[key] for key in ("bytes", "sha256")}
        elif "tensor" in entry:
            digests = written.setdefault(entry["file"], {})
            digests[entry["tensor"]] = entry.get("digest", "")
    stem = DENSE_WEIGHTS if task.form == "dense" else WEIGHTS
    named = dict(zip(file_names(stem, len(files)), files, strict=True))
    text = task.listed.metadata or DENSE_METADATA
    stamps, count = stamps_of(task.listed.tensors.values()), len(decided.cut)
    for name, tensors in named.items():
        file = work.content / name
        if name in complete and _is_whole(file, complete[name]):
            continue

        def note(tensor: Outgoing, digest: str, name: str = name) -> None:
            check_stamps(stamps)  # else what was written may be of two checkpoints
            measured = {key: value for key, value in tensor.errors.items() if key not in errors}
            for matrix, error in measured.items():
                errors[matrix] = error
                if task.options.progress is not None:
                    task.options.progress(len(errors), count, matrix)
            line = {"file": name, "tensor": tensor.name, "errors": measured, "digest": digest}
            work.journal.add(line)

        sha256 = write_safetensors(file, tensors, text, written=written.get(name, {}), note=note)
        complete[name] = {"bytes": file.stat().st_size, "sha256": sha256}
        work.journal.add({"file": name, **complete[name]})
    task.listed.check_unchanged()
    for row in decided.rows:
        measured = errors.get(row["name"], {})
        row.update(measured if isinstance(measured, dict) else {"weight_error": measured})
    write_index(work.content, stem, named)
    copy_companions(task.listed.path, work.content)
    write_config(task.listed, work.content)
    if task.form == "factors":
        splits = tuple(
            SplitEntry(
                name=row["layer"],
                kind="tensor",
                rank=row["rank"],
                shape=task.listed.matrices[row["name"]].shape,
                form=row.get("form", "plain"),
            )
            for row in decided.rows
            if row["action"] in ("split", "narrow")
        )
        files_written = {name: complete[name] for name in named}
        Manifest(splits, {}, files_written, versions()).write(work.content)
    return decided


def _is_whole(file: Path, entry: dict[str, Any]) -> bool:
    """Tell whether a file is as it was when it was complete, by its size and SHA-256."""
    if not file.exists() or file.stat().st_size != entry["bytes"]:
        return False
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == str(entry["sha256"])


def _check_copyable(listed: Checkpoint) -> None:
    """Raise if the new files would lack a tensor: one that they cannot hold, or an unread one."""
    for tensor in listed.tensors.values():
        check_holdable(tensor)
    for entry in listed.unread:
        if Why.BESIDE_WEIGHTS in Why.of(entry["reason"]):  # an optimizer's state, an epoch
            continue
        raise FileError(
            f"{listed.path} holds {entry['name']!r}, which cannot be copied to the new files: "
            f"{entry['reason']}. Remove or convert it, and save the file again."
        )


def _check_same(decided: Plan, work: WorkFolder) -> None:
    """Raise if an earlier call followed another plan: predicates are compared only by name."""
    cut = [[row["name"], row["action"], row["rank"]] for row in decided.cut]
    earlier = next((entry["cut"] for entry in work.journal.entries if "cut" in entry), None)
    if earlier is None:
        work.journal.add({"cut": cut})
    elif earlier != cut:
        raise FileError(
            f"{work.path} holds the work of another plan, which cuts "
            f"{counted(len(earlier), 'matrix', 'matrices')}; this one cuts {len(cut)}, or others. "
            "Call it the same way to resume; otherwise name another folder, or delete "
            f"{work.path}."
        )


def _nothing(path: Path, entries: list[dict[str, str]], selection: Selection) -> InvalidValueError:
    reasons = [f"{reason}: {names}" for reason, names in grouped(entries)]
    unmet = [f"no name matches {pattern}" for pattern in selection.unmet]
    why = "; ".join([*unmet, *reasons]) or "it holds no tensors"
    return InvalidValueError(f"Nothing in {path} would be cut, so nothing was written: {why}.")
