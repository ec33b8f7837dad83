"""Carrying out a plan: replacing layers by split ones, weights by their approximations."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._layers import replace
from rmtspec.adapters.torch._layers.split_layers import SPLIT_TYPES
from rmtspec.adapters.torch._pruning.calibration import Calibration, input_moments
from rmtspec.adapters.torch._weights.layer_kinds import path_of
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Action, Kind, Plan, SplitFactors, settle, split, truncate

Moments = Mapping[str, list[NDArray[np.float64]]]
#: Called with the path, the new layer, and the factors of its matrices, one pair per group.
Replaced = Callable[[str, Any, list[SplitFactors]], object]
#: Kinds of layer whose weight multiplies the inputs that a hook sees.
_CALIBRATED = (Kind.LINEAR, Kind.TRANSPOSED_LINEAR, Kind.CONV1D, Kind.CONV2D, Kind.CONV3D)


def carry_out(
    model: nn.Module,
    plan: Plan,
    matrices: dict[str, WeightMatrix],
    *,
    moments: Moments,
    inplace: bool,
    tell: Replaced | None = None,
) -> tuple[Any, Plan]:
    """Return the pruned model and the plan with the measured errors.

    Matrices that are cut are removed from `matrices`, which frees a weight that was replaced in
    place before the next one is split. `tell` is called before each layer is replaced.
    """
    before = replace.model_sizes(model)
    new: dict[str, nn.Module] = {}
    written: dict[str, NDArray[Any]] = {}
    parts: dict[str, dict[int, SplitFactors]] = {}  # by the first row of each group
    cut = [matrices[row["name"]] for row in plan.rows if row["action"] == Action.SPLIT]
    groups = Counter(matrix.layer for matrix in cut)
    if inplace:
        replace.check_inplace(map(path_of, cut))
    del cut
    for row in plan.rows:
        if row["action"] == Action.LEAVE:
            settle(row)
            continue
        matrix = matrices.pop(row["name"])
        moment = moment_of(matrix, moments)
        method = truncate if row["action"] == Action.TRUNCATE else split
        low_rank: Any = method(matrix(), row["rank"], input_moment=moment)
        row["weight_error"] = low_rank.error
        row["output_error"] = None if moment is None else low_rank.output_error
        if moments and moment is None:
            notes = (row.get("note"), "inputs not known: weight only")
            row["note"] = "; ".join(filter(None, notes))
        if row["action"] == Action.TRUNCATE:
            if inplace:
                matrix.write(low_rank.matrix)
            else:
                written[row["name"]] = low_rank.matrix
            continue
        made = parts.setdefault(matrix.layer, {})
        made[matrix.part.start if isinstance(matrix.part, slice) else 0] = low_rank
        if len(made) == groups[matrix.layer]:
            path, kind = path_of(matrix), matrix.kind
            ordered = [factors for _, factors in sorted(made.items())]
            new[path] = SPLIT_TYPES[kind].from_factors(model.get_submodule(path), ordered)
            if tell is not None:
                tell(path, new[path], ordered)
            del matrix, low_rank, made, ordered, parts[row["layer"]]
            if inplace:
                replace.replace_layers(model, {path: new.pop(path)}, inplace=True)
    result = model if inplace else replace.replace_layers(model, new, inplace=False)
    if written:
        places = dict(weight_matrices(result))
        for name, product in written.items():
            places[name].write(product)
    totals = replace.totals(before, replace.model_sizes(result))
    return result, dataclasses.replace(plan, totals=totals)


def moment_of(matrix: WeightMatrix, moments: Moments) -> NDArray[np.float64] | None:
    """Return the input moment of a matrix; in a convolution with groups that of its group."""
    of_layer = moments.get(matrix.layer)
    if of_layer is None:
        return None
    if len(of_layer) == 1 or not isinstance(matrix.part, slice):
        return of_layer[0]
    return of_layer[int(matrix.part.start) // matrix.shape[0]]


def moments_of(
    model: nn.Module, matrices: Iterable[WeightMatrix], calibration: Calibration
) -> Moments:
    """Return the input moments of the matrices whose layers can be calibrated."""
    layers = {
        matrix.layer: model.get_submodule(path_of(matrix))
        for matrix in matrices
        if matrix.kind in _CALIBRATED and not matrix.unsplittable
    }
    return input_moments(model, layers, calibration)
