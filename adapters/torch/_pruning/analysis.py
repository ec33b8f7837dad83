"""Analysis of a model: every weight matrix through the core, on the CPU or on a device."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rmtspec._records import versions
from rmtspec._text import grouped
from rmtspec.adapters.torch._pruning.eigensolver import DeviceEigensolver, usable_device
from rmtspec.adapters.torch._weights.layer_kinds import ON_REQUEST, ROOT
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.errors import InvalidValueError
from rmtspec.planning.selection import Pattern, Selection
from rmtspec.report.many import analyze_many
from rmtspec.report.options import Progress
from rmtspec.report.report import Report
from rmtspec.terms import Why


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
    chosen = Chosen(model, include, exclude)
    report = analyze_chosen(chosen, device, n_jobs, progress, options)
    for row in report.rows:  # what `prune` would not split saves nothing
        matrix = chosen.matrices[row["name"]]
        held = matrix.tied or matrix.whole
        if not held and row["name"] not in chosen.named:
            held = ON_REQUEST.get(matrix.kind, "")
        if held:
            row["reason"] = "; ".join(filter(None, (row["reason"], held)))
            row["saves"], row["parameters_after"] = False, row["parameters_before"]
    return report


class NothingToAnalyzeError(InvalidValueError):
    """No weight matrix is left of those a user chose; `skipped` says why, as in a report."""

    def __init__(self, message: str, skipped: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.skipped = skipped or []


class Chosen:
    """The matrices of a model that `include` and `exclude` leave, and the others with the reason.

    Attributes
    ----------
    matrices : dict of str to WeightMatrix
        Chosen, by name; among them those that cannot be read.
    left_out : list of dict
        "name" and "reason" of the others.
    named : set of str
        Names of matrices that `include` asks for.
    apart : dict of str to str
        Why a weight cannot be split, of which some matrices are chosen and some are not.
    settings : dict
        The patterns as given.

    `leave` may tell of further matrices why they are left out.
    """

    def __init__(
        self,
        model: nn.Module,
        include: Pattern | None,
        exclude: Pattern | None,
        leave: Callable[[WeightMatrix], str] | None = None,
    ) -> None:
        selection = Selection(include, exclude)
        modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        self.model = model
        self.matrices: dict[str, WeightMatrix] = {}
        self.left_out: list[dict[str, str]] = []
        self.named: set[str] = set()
        self.apart: dict[str, str] = {}
        self.settings = selection.settings
        for name, matrix in weight_matrices(model):
            module = modules["" if matrix.layer == ROOT else matrix.layer]
            refusal = selection.refusal(matrix.names, module)
            reason = refusal or (leave(matrix) if leave is not None else "")
            if reason:
                self.left_out.append({"name": name, "reason": reason})
                self.apart[matrix.key] = Why.LAYER_LEFT.words(name=name, reason=reason)
                continue
            self.matrices[name] = matrix
            if selection.named(matrix.names, module):
                self.named.add(name)
        self.left_out += [
            {"name": shown, "reason": Why.NO_MATRIX_MEETS.words()} for shown in selection.unmet
        ]
        if not any(not matrix.reason for matrix in self.matrices.values()):
            self._refuse(selection)

    def _refuse(self, selection: Selection) -> None:
        unread = [{"name": n, "reason": m.reason} for n, m in self.matrices.items()]
        listed = [*unread, *(e for e in self.left_out if e["name"] not in selection.unmet)]
        lines = [f"  {names}: {why}" for why, names in grouped(listed)]
        kind = type(self.model).__name__
        message = f"No weight matrix of this {kind} is left to analyse"
        if selection.unmet:
            message += f"; nothing is met by {', '.join(selection.unmet)}"
        if not lines:
            message += ": it has no parameters"
        raise NothingToAnalyzeError(
            "\n".join([f"{message}. Names are those of model.named_modules().", *lines]),
            [*unread, *self.left_out],
        )


def analyze_chosen(
    chosen: Chosen,
    device: str | torch.device | None,
    n_jobs: int | None,
    progress: Progress | None,
    options: dict[str, Any],
) -> Report:
    """Return the report on the chosen matrices; raise where none can be analysed."""
    solver = _eigensolver(chosen, device)
    if solver is not None and "eigensolver" not in options:
        options = {**options, "eigensolver": solver}
    source = list(chosen.matrices.items())
    report = analyze_many(source, n_jobs=n_jobs, progress=progress, **options)
    if not report.rows:
        lines = [f"  {names}: {reason}" for reason, names in grouped(report.skipped)]
        raise InvalidValueError(
            "\n".join(["No weight matrix of the model could be analysed.", *lines])
        )
    return dataclasses.replace(
        report,
        skipped=[*report.skipped, *chosen.left_out],
        settings={**report.settings, **chosen.settings},
        versions=versions("torch"),
    )


def _eigensolver(chosen: Chosen, device: str | torch.device | None) -> DeviceEigensolver | None:
    """Return the eigensolver of a device other than the CPU, which is the core's own."""
    if device is None:
        places = {m.parameter.device for m in chosen.matrices.values() if not m.reason}
        found = next((d for d in sorted(places, key=str) if d.type == "cuda"), None)
    else:
        found = usable_device(device)
    return None if found is None or found.type == "cpu" else DeviceEigensolver(found)
