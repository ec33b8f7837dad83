"""Carrying out a plan: layers replaced by split ones, weights by their approximations."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._layers.replace import check_inplace, model_sizes, replace_layers
from rmtspec.adapters.torch._layers.split_layers import SPLIT_TYPES
from rmtspec.adapters.torch._pruning.calibration import Calibration, input_moments
from rmtspec.adapters.torch._weights.layer_kinds import ROOT
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Action, Plan, SplitFactors, settle, split, truncate

Moments = Mapping[str, list[NDArray[np.float64]]]
#: Told path, new layer and factors of its matrices, one pair for each group.
Replaced = Callable[[str, Any, list[SplitFactors]], object]
#: Kinds of layer whose inputs a hook sees as they are multiplied.
_CALIBRATED = ("linear", "transposed linear", "conv1d", "conv2d", "conv3d")


def carry_out(
    model: nn.Module,
    plan: Plan,
    matrices: dict[str, WeightMatrix],
    *,
    moments: Moments,
    inplace: bool,
    tell: Replaced | None = None,
) -> tuple[Any, Plan]:
    """Return the pruned model and the plan with the errors as measured.

    Matrices that are cut are taken out of `matrices`, so that a weight that was replaced in
    place is free before the next one is split. `tell` hears of each layer before it is replaced.
    """
    before = model_sizes(model)
    new: dict[str, nn.Module] = {}
    written: dict[str, NDArray[Any]] = {}
    parts: dict[str, dict[int, SplitFactors]] = {}  # by the first row of each group
    cut = [matrices[row["name"]] for row in plan.rows if row["action"] == Action.SPLIT]
    groups = Counter(matrix.layer for matrix in cut)
    if inplace:
        check_inplace(map(_path, cut))
    del cut
    for row in plan.rows:
        if row["action"] == Action.LEAVE:
            settle(row)
            continue
        matrix = matrices.pop(row["name"])
        moment = moment_of(matrix, moments)
        method = truncate if row["action"] == Action.TRUNCATE else split
        found: Any = method(matrix(), row["rank"], input_moment=moment)
        row["weight_error"] = found.error
        row["output_error"] = None if moment is None else found.output_error
        if moments and moment is None:
            notes = (row.get("note"), "inputs not known: weight only")
            row["note"] = "; ".join(filter(None, notes))
        if row["action"] == Action.TRUNCATE:
            if inplace:
                matrix.write(found.matrix)
            else:
                written[row["name"]] = found.matrix
            continue
        made = parts.setdefault(matrix.layer, {})
        made[matrix.part.start if isinstance(matrix.part, slice) else 0] = found
        if len(made) == groups[matrix.layer]:
            path, kind = _path(matrix), matrix.kind
            ordered = [factors for _, factors in sorted(made.items())]
            new[path] = SPLIT_TYPES[kind].from_factors(model.get_submodule(path), ordered)
            if tell is not None:
                tell(path, new[path], ordered)
            del matrix, found, made, ordered, parts[row["layer"]]
            if inplace:
                replace_layers(model, {path: new.pop(path)}, inplace=True)
    result = model if inplace else replace_layers(model, new, inplace=False)
    if written:
        places = dict(weight_matrices(result))
        for name, product in written.items():
            places[name].write(product)
    after = model_sizes(result)
    totals = {f"{unit}_before": size for unit, size in before.items()}
    totals |= {f"{unit}_after": size for unit, size in after.items()}
    return result, dataclasses.replace(plan, totals=totals)


def moment_of(matrix: WeightMatrix, moments: Moments) -> NDArray[np.float64] | None:
    """Return the input moment of a matrix: that of its group, in a convolution with groups."""
    found = moments.get(matrix.layer)
    if found is None:
        return None
    if len(found) == 1 or not isinstance(matrix.part, slice):
        return found[0]
    return found[int(matrix.part.start) // matrix.shape[0]]


def moments_of(
    model: nn.Module,
    matrices: Mapping[str, WeightMatrix],
    names: list[str],
    calibration: Calibration,
) -> Moments:
    layers = {}
    for name in names:
        matrix = matrices[name]
        if matrix.kind in _CALIBRATED and not matrix.unsplittable:
            layers[matrix.layer] = model.get_submodule(_path(matrix))
    return input_moments(model, layers, calibration)


def _path(matrix: WeightMatrix) -> str:
    return "" if matrix.layer == ROOT else matrix.layer
