"""Analysis of a model: the core applied to every weight matrix, on the CPU or on a device."""

import dataclasses
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._pruning.eigensolver import DeviceEigensolver, usable_device
from rmtspec.adapters.torch._weights.subject import subject_of
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
    """Analyse every weight matrix of a model; the model is not changed.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; see `weight_matrices` for what counts as a matrix.
    device : str or torch.device, optional
        Where eigenvalues are computed, in float64. By default where the weights are: on the CPU
        with LAPACK, on a GPU with `torch.linalg`.
    include, exclude : str, pattern, predicate on (name, module), or several
        Which matrices: a regular expression may match anywhere in the name of the layer, of its
        parameter, or of the matrix.
    n_jobs, progress
        As for `rmtspec.analyze_many`.
    **options
        Of `rmtspec.analyze`.

    Returns
    -------
    Report
        Its `skipped` lists what could not be analysed or was not asked for, with the reason. A
        layer that `prune` would not split (tied, an embedding, attention) counts as not saving.

    Raises
    ------
    InvalidTypeError
        `model` is not a module, or is wrapped.
    InvalidValueError
        No matrix is left to analyse, a layer is lazy, or the device cannot be used.

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
    asked = AnalysisOptions.of(options)
    asked.check_device(device)
    report = analyze_subject(subject, asked, device=device, n_jobs=n_jobs, progress=progress)
    for row in report.rows:  # matrices that `prune` would not split save nothing
        if held := subject.targets[row["name"]].held(Action.SPLIT):
            row["reason"] = "; ".join(filter(None, (row["reason"], held)))
            row["saves"], row["parameters_after"] = False, row["parameters_before"]
    tensors = list(model.parameters())
    source = {
        "name": type(model).__name__,
        "parameters": sum(tensor.numel() for tensor in tensors),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }
    return dataclasses.replace(report, source=source)


def analyze_subject(
    subject: Subject[WeightMatrix],
    options: AnalysisOptions,
    *,
    device: str | torch.device | None,
    n_jobs: int | None,
    progress: Progress | None,
    plain: Collection[str] = (),
) -> Report:
    """Return the report on the chosen matrices, computed on the device; see `Subject.analyze`."""
    if device is None:
        places = {m.parameter.device for m in subject.matrices.values() if not m.reason}
        device = next((d for d in sorted(places, key=str) if d.type == "cuda"), "cpu")
    device = usable_device(device)
    own = options.eigensolver is None and not options.estimates
    if device.type != "cpu" and own:  # on the CPU the core has its own
        options = dataclasses.replace(options, eigensolver=DeviceEigensolver(device))
    report = subject.analyze(options, n_jobs, progress, plain=plain)
    return dataclasses.replace(report, versions=versions("torch"))
