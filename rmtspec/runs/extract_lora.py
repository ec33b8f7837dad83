"""An adapter of LoRA from two checkpoints: their difference, cut where its noise begins."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._files.writing import PathLike, check_outside, empty_folder
from rmtspec.checkpoint.difference import DifferenceTensor, same
from rmtspec.checkpoint.listing import Checkpoint, matrices_in
from rmtspec.checkpoint.stored import StoredMatrix, StoredTensor
from rmtspec.errors import FileError, InvalidOptionError, InvalidValueError
from rmtspec.matrix.split import split
from rmtspec.planning.selection import Pattern, Selection, nothing_in
from rmtspec.report.many import report_of
from rmtspec.report.options import AnalysisOptions, Progress, check_progress
from rmtspec.report.places import check_place
from rmtspec.report.report import Report
from rmtspec.runs.adapter_folder import LINEAR, TABLE, TURNED, LayerFactors, write_adapter
from rmtspec.runs.analyze import outcomes
from rmtspec.terms import Kind, Why

#: Models whose linear layers store their weight as inputs x outputs (transformers' Conv1D).
_TURNED_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


def extract_lora(
    base: PathLike | Checkpoint,
    tuned: PathLike | Checkpoint,
    out: PathLike | None,
    *,
    rank: int | None = None,
    budget: float | None = None,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    report: PathLike | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Write what fine-tuning changed as an adapter of LoRA; return what was kept and dropped.

    Each matrix of the difference is cut at the number of components that its noise model finds, so
    that every layer has a rank of its own; a layer without any gets no factors. The folder is one
    that PEFT loads: ``PeftModel.from_pretrained(base_model, out)``. One matrix of each checkpoint
    is in memory at a time, and read twice.

    Parameters
    ----------
    base, tuned : path or Checkpoint
        Paths that `rmtspec.checkpoint.matrices_in` takes. Matrices are matched by name.
    out : path or None
        A folder that does not exist yet or is empty; None only reports.
    rank : int, optional
        One rank for all layers, instead of the noise model's; at most the smaller side.
    budget : float, optional
        Size of the adapter, as a share of the parameters of the matrices that changed: the
        components of all layers compete by the energy that they hold for each parameter.
    include, exclude : pattern, predicate or several, optional
        Applied to the names of tensors and layers. Embeddings are left alone unless `include` names
        them; one that is the model's head as well always is.
    report : path, optional
        Write the report here too (.html, .csv or .json).
    progress : callable, optional
        Called after each matrix with (done, total, name).
    **options
        Options of `analyze`: `noise` ("auto"), `beta` (here .01, the chance of a component too
        many in a layer), `rng`, ...

    Returns
    -------
    Report
        A row for each matrix that differs, with its "rank", the "weight_error" of the adapter
        relative to the difference, and "norm_of_change", the Frobenius norm of the difference. What
        has no row is in `skipped`, with the reason.

    Raises
    ------
    FileError
        A checkpoint cannot be read, or `out` cannot be written.
    InvalidValueError, InvalidTypeError
        An option is not valid, or nothing differs.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import rmtspec
    >>> from safetensors.numpy import save_file
    >>> base = rmtspec.ensembles.wishart(120, 80, rng=0).astype("float32")
    >>> change = rmtspec.ensembles.spiked(120, 80, [9, 9, 9], rng=1).astype("float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"fc.weight": base}, f"{folder}/base.safetensors")
    ...     save_file({"fc.weight": base + 0.01 * change}, f"{folder}/tuned.safetensors")
    ...     done = rmtspec.extract_lora(
    ...         f"{folder}/base.safetensors", f"{folder}/tuned.safetensors", f"{folder}/lora"
    ...     )
    >>> done.row("fc.weight")["rank"]
    3
    """
    chooses = [name for name, value in (("rank", rank), ("budget", budget)) if value is not None]
    if len(chooses) > 1:
        raise InvalidOptionError(f"`rank` is {rank} and `budget` {budget}", "one of the two")
    if rank is not None:
        rank = _checks.integer(rank, "rank", 1)
    if budget is not None:
        budget = _checks.inside(budget, "budget", 0.0, 1.0)
    check_progress(progress)
    given = {"rule": "noise", "noise": "auto", "beta": 0.01, **options}
    analysis = AnalysisOptions.of(given, spectra_for="extracting factors")
    old, new = _listed(base), _listed(tuned)
    if report is not None:
        check_place(report, [old.path, new.path])
    if out is not None:
        empty_folder(out)
        check_outside(out, old.path)
        check_outside(out, new.path)
    selection = Selection(include, exclude)
    differing, skipped = _differences(old, new, selection)
    if not differing:
        raise InvalidValueError(nothing_in(new.path, skipped, selection.unmet))
    analysed = outcomes(differing, analysis, n_jobs=1, progress=progress)
    settings = {**analysis.settings, **selection.settings, "rank": rank, "budget": budget}
    found = report_of(analysed, settings, skipped)
    ranks = _ranks(found, rank, budget)
    for row in found.rows:
        _fill(row, ranks[row["name"]], found)
    layers = [_layer(differing[name], kept, new.config) for name, kept in ranks.items() if kept]
    if out is not None and not layers:
        raise InvalidValueError(
            f"Nothing was written: no difference between {old.path} and {new.path} stands beyond "
            "its noise. A rank, or a budget, takes its leading components anyway."
        )
    old.check_unchanged()
    new.check_unchanged()
    if out is not None:
        write_adapter(out, layers, _config(old, new.config), [])
    if report is not None:
        found.save(report)
    return found


def _listed(given: PathLike | Checkpoint) -> Checkpoint:
    listed = (given if isinstance(given, Checkpoint) else matrices_in(given)).with_parts(False)
    if listed.pairs:
        raise FileError(
            f"{listed.path} is an adapter of LoRA; expected a whole model, before or after the "
            "fine-tuning. To lower an adapter's rank, use rmtspec resize-lora."
        )
    return listed


def _differences(
    old: Checkpoint, new: Checkpoint, selection: Selection
) -> tuple[dict[str, StoredMatrix], list[dict[str, str]]]:
    """Return the matrices that differ as differences, and why each other tensor is not one."""
    differing: dict[str, StoredMatrix] = {}
    skipped: list[dict[str, str]] = []

    def skip(name: str, why: Why, **values: object) -> None:
        skipped.append({"name": name, "reason": why.words(**values)})

    chosen = selection.choose(new.matrices)
    reasons = {entry["name"]: entry["reason"] for entry in chosen.left_out}
    for name, tensor in new.tensors.items():
        before, matrix = old.tensors.get(name), new.matrices.get(name)
        if before is None:
            skip(name, Why.ONLY_IN, place=new.path.name)
        elif before.shape != tensor.shape:
            skip(name, Why.OTHER_SHAPE, before=before.shape, after=tensor.shape)
        elif name in reasons:
            skipped.append({"name": name, "reason": reasons[name]})
        elif same(before, tensor):
            skip(name, Why.UNCHANGED)
        elif matrix is None:
            skip(name, Why.CHANGED_OTHERWISE)
        elif matrix.kind == Kind.EMBEDDING and name not in chosen.named:
            skip(name, Why.NOT_NAMED, what="a changed embedding", options="`include`")
        elif matrix.kind == Kind.EMBEDDING and _is_head_too(tensor, new):
            skip(name, Why.TIED_TABLE)
        elif not name.endswith(".weight"):
            skip(name, Why.LAYER_UNKNOWN)
        else:
            change = DifferenceTensor(
                path=tensor.path, name=name, dtype=tensor.dtype, numpy_name="<f8",
                shape=tensor.shape, nbytes=8 * math.prod(tensor.shape), base=before,
                tuned=tensor,
            )  # fmt: skip
            differing[name] = dataclasses.replace(matrix, tensor=change)
    for name in old.tensors.keys() - new.tensors.keys():
        skip(name, Why.ONLY_IN, place=old.path.name)
    return differing, skipped


def _is_head_too(table: StoredTensor, checkpoint: Checkpoint) -> bool:
    """Tell whether a table of a model of transformers is the weight of its head as well.

    The head is then in no file, and PEFT would change what the table looks up alone.
    """
    config = checkpoint.config
    if table.shape[0] != config.get("vocab_size"):
        return False
    heads = (
        matrix
        for name, matrix in checkpoint.matrices.items()
        if matrix.shape == table.shape and name != table.name and matrix.kind == Kind.MATRIX
    )
    named = re.search("LM|ConditionalGeneration", _class_names(config)) is not None
    return config.get("tie_word_embeddings") is True or (named and not any(heads))


def _class_names(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    return " ".join(map(str, architectures)) if isinstance(architectures, list) else ""


def _ranks(found: Report, rank: int | None, budget: float | None) -> dict[str, int]:
    """Return the rank of each matrix."""
    if rank is not None:
        return {row["name"]: min(rank, row["p"]) for row in found.rows}
    if budget is None:
        return {row["name"]: _components(row) for row in found.rows}
    energies, costs, names = [], [], []
    for name, matrix in found.matrices.items():
        cost = sum(matrix.spectrum.shape)
        values = matrix.spectrum.eigenvalues[-matrix.spectrum.numerical_rank or None :]
        energies.append(values * matrix.spectrum.n / cost)
        costs.append(np.full(len(values), cost))
        names += [name] * len(values)
    order = np.argsort(-np.concatenate(energies), kind="stable")
    spent = np.cumsum(np.concatenate(costs)[order])
    taken = order[spent <= budget * found.parameters_before]
    counts = Counter(names[index] for index in taken)
    return {name: counts[name] for name in found.matrices}


def _components(row: Mapping[str, Any]) -> int:
    """Return the number of components, or the numerical rank of a change without noise."""
    if row["n_components"] is not None:
        return int(row["n_components"])
    return int(row["numerical_rank"]) if row["numerical_rank"] < row["p"] else 0


def _fill(row: dict[str, Any], rank: int, found: Report) -> None:
    """Complete the row of a matrix by what the adapter keeps of it."""
    spectrum = found.matrices[row["name"]].spectrum
    energy = float(spectrum.eigenvalues.sum())
    kept = float(spectrum.eigenvalues[spectrum.p - rank :].sum()) if rank else 0.0
    row["rank"], row["action"] = rank, "extract" if rank else "leave"
    row["parameters_after"] = rank * sum(spectrum.shape)
    row["weight_error"] = math.sqrt(max(0.0, 1.0 - kept / energy)) if energy else 0.0
    row["norm_of_change"] = math.sqrt(energy * spectrum.n)
    if rank:
        row["reason"] = ""


def _layer(matrix: StoredMatrix, rank: int, config: Mapping[str, Any]) -> LayerFactors:
    def factors() -> tuple[NDArray[Any], NDArray[Any]]:
        parts = split(matrix(), rank)
        return parts.outer, parts.inner

    how = LINEAR
    if matrix.kind == Kind.EMBEDDING:
        how = TABLE
    elif config.get("model_type") in _TURNED_MODELS and len(matrix.shape) == 2:
        how = TURNED
    return LayerFactors(matrix.layer, how, shape=matrix.shape, rank=rank, load=factors)


def _config(base: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the adapter's config says besides its ranks."""
    names = _class_names(config)
    tasks = {"ForCausalLM|LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}
    task = next((task for words, task in tasks.items() if re.search(words, names)), None)
    return {
        "base_model_name_or_path": str(base.path), "task_type": task,
        "fan_in_fan_out": config.get("model_type") in _TURNED_MODELS,
    }  # fmt: skip
