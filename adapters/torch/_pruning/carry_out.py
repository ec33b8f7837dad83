"""Carrying out a plan: replacing layers by split ones, weights by their approximations."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._layers import replace
from rmtspec.adapters.torch._layers.split_layers import SPLIT_TYPES
from rmtspec.adapters.torch._weights.layer_kinds import path_of
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Action, Form, Plan, SplitFactors, Weights, cut, settle

#: Called with the path, the new layer, and the factors of its matrices, one pair per group.
Replaced = Callable[[str, Any, list[SplitFactors]], object]


def carry_out(
    model: nn.Module,
    plan: Plan,
    matrices: dict[str, WeightMatrix],
    *,
    weights: Mapping[str, Weights],
    inplace: bool,
    tell: Replaced | None = None,
) -> tuple[Any, Plan]:
    """Return the pruned model and the plan with the measured errors.

    `weights` are what calibration says, by name of the matrix; empty without. Matrices that are cut
    are removed from `matrices`, which frees a weight that was replaced in place before the next one
    is split. `tell` is called before each layer is replaced.
    """
    before = replace.model_sizes(model)
    new: dict[str, nn.Module] = {}
    written: dict[str, NDArray[Any]] = {}
    parts: dict[str, dict[int, SplitFactors]] = {}  # by the first row of each group
    by_loss = any(known.output_weight is not None for known in weights.values())
    apart = [matrices[row["name"]] for row in plan.rows if row["action"] == Action.SPLIT]
    groups = Counter(matrix.layer for matrix in apart)
    if inplace:
        replace.check_inplace(map(path_of, apart))
    del apart
    for row in plan.rows:
        if row["action"] == Action.LEAVE:
            settle(row)
            continue
        matrix = matrices.pop(row["name"])
        low_rank: Any = cut(
            row, matrix(), weights.get(row["name"]), calibrated=bool(weights), by_loss=by_loss
        )
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
            new[path] = SPLIT_TYPES[kind].from_factors(
                model.get_submodule(path), ordered, row.get("form", Form.PLAIN)
            )
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
