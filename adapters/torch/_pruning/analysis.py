"""Analysis of a model: every weight matrix through the core, on the CPU or on a device."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._pruning.eigensolver import DeviceEigensolver, usable_device
from rmtspec.adapters.torch._weights.layer_kinds import ROOT
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import (
    Action,
    AnalysisOptions,
    Pattern,
    Progress,
    Report,
    Selection,
    Subject,
    versions,
)


def analyze(
    model: nn.Module,
    device: str | torch.device | None = None,
    *,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Analyse every weight matrix of a model; nothing on the model is changed.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; see `weight_matrices` for what counts as a matrix.
    device : str or torch.device, optional
        Where eigenvalues are computed, in float64. By default where the weights are: on the CPU
        through LAPACK, on a GPU through `torch.linalg`.
    include, exclude : str, pattern, predicate on (name, module), or several
        Which matrices: a regular expression is found anywhere in the name of the layer, of its
        parameter, or of the matrix.
    n_jobs, progress
        As for `rmtspec.analyze_many`.
    **options
        Of `rmtspec.analyze`.

    Returns
    -------
    Report
        Its `skipped` lists what could not be analysed, or was not asked for, with the reason. A
        layer that `prune` would not split (tied, an embedding, attention) counts as kept whole.

    Raises
    ------
    InvalidTypeError
        `model` is no module, or a wrapped one.
    InvalidValueError
        No matrix is left to analyse; a lazy layer; an unusable device.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model = rt.MLP([64, 100, 50, 10])
    >>> report = rt.analyze(model)
    >>> [(row["name"], row["rows"], row["columns"]) for row in report.rows]
    [('layers.0', 100, 64), ('layers.1', 50, 100), ('layers.2', 10, 50)]
    """
    subject = subject_of(model, Selection(include, exclude))
    report = analyze_subject(
        subject, AnalysisOptions.of(options), device=device, n_jobs=n_jobs, progress=progress
    )
    for row in report.rows:  # what `prune` would not split saves nothing
        target = subject.targets[row["name"]]
        held = target.refusal(Action.SPLIT) or ("" if target.named else target.on_request)
        if held:
            row["reason"] = "; ".join(filter(None, (row["reason"], held)))
            row["saves"], row["parameters_after"] = False, row["parameters_before"]
    return report


def subject_of(
    model: nn.Module, selection: Selection, leave: Callable[[WeightMatrix], str] | None = None
) -> Subject[WeightMatrix]:
    """Return the matrices of a model that a user means; predicates are given (name, module)."""
    matrices = dict(weight_matrices(model))
    modules = dict(model.named_modules())
    return Subject(
        matrices,
        selection,
        f"this {type(model).__name__}",
        owner_of=lambda matrix: modules["" if matrix.layer == ROOT else matrix.layer],
        leave=leave,
        hint="Names are those of model.named_modules().",
    )


def analyze_subject(
    subject: Subject[WeightMatrix],
    options: AnalysisOptions,
    *,
    device: str | torch.device | None,
    n_jobs: int | None,
    progress: Progress | None,
) -> Report:
    """Return the report on the chosen matrices, computed where the device says."""
    solver = _eigensolver(subject.matrices.values(), device)
    if solver is not None and options.eigensolver is None:
        options = dataclasses.replace(options, eigensolver=solver)
    report = subject.analyze(options, n_jobs, progress)
    return dataclasses.replace(report, versions=versions("torch"))


def _eigensolver(
    matrices: Iterable[WeightMatrix], device: str | torch.device | None
) -> DeviceEigensolver | None:
    """Return the eigensolver of a device other than the CPU, which is the core's own."""
    if device is None:
        places = {matrix.parameter.device for matrix in matrices if not matrix.reason}
        found = next((d for d in sorted(places, key=str) if d.type == "cuda"), None)
    else:
        found = usable_device(device)
    return None if found is None or found.type == "cpu" else DeviceEigensolver(found)
