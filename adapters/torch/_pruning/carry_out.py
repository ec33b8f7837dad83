"""Carrying out a plan: replacing layers by split ones, weights by their approximations."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._calibration.calibrate import NOTHING, Known
from rmtspec.adapters.torch._layers import replace
from rmtspec.adapters.torch._layers.marked_config import mark
from rmtspec.adapters.torch._layers.narrowed_linear import NarrowedLinear
from rmtspec.adapters.torch._layers.split_layers import SPLIT_TYPES
from rmtspec.adapters.torch._weights.layer_kinds import path_of
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.adapters.torch._weights.tensors import to_tensor
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Action, Form, Plan, SplitFactors, cut, leave_with, narrowed, settle

#: Actions that put other layers in the place of the old ones.
REPLACED = (Action.SPLIT.value, Action.NARROW.value)

#: Called with the path, the new layer, and the factors of its matrices, one pair per group.
#: The layer is replaced in the block of the context that it returns.
Replaced = Callable[[str, Any, list[SplitFactors]], AbstractContextManager[None]]


def carry_out(
    model: nn.Module,
    plan: Plan,
    matrices: dict[str, WeightMatrix],
    *,
    known: Known = NOTHING,
    inplace: bool,
    tell: Replaced | None = None,
) -> tuple[Any, Plan]:
    """Return the pruned model and the plan with the measured errors.

    `known` is what calibration says; nothing without. Matrices that are cut are removed from
    `matrices`, which frees a weight that was replaced in place before the next one is split. Each
    layer is replaced in the context that `tell` gives for it.
    """
    before = replace.model_sizes(model)
    new: dict[str, nn.Module] = {}
    written: dict[str, NDArray[Any]] = {}
    parts: dict[str, dict[int, SplitFactors]] = {}  # by the first row of each group
    weights = known.weights
    by_loss = any(each.output_weight is not None for each in weights.values())
    waiting: dict[str, dict[str, dict[str, Any]]] = {}  # rows by the matrix that reads the units
    readers = Counter(row["reader"] for row in plan.rows if row["action"] == Action.NARROW)
    apart = [matrices[row["name"]] for row in plan.rows if row["action"] in REPLACED]
    groups = Counter(matrix.layer for matrix in apart)
    if inplace:
        replace.check_inplace(map(path_of, apart))
    del apart
    for row in plan.rows:
        if row["action"] == Action.LEAVE:
            settle(row)
            continue
        if row["action"] == Action.NARROW:
            rows = waiting.setdefault(row["reader"], {})
            rows[row["name"]] = row
            if len(rows) == readers[row["reader"]]:
                smaller = _narrowed(model, rows, matrices, known)
                if inplace:
                    replace.replace_layers(model, smaller, inplace=True)
                else:
                    new |= smaller
            continue
        matrix = matrices.pop(row["name"])
        low_rank: Any = cut(
            row, matrix(), weights.get(row["name"]), calibrated=bool(weights), by_loss=by_loss
        )
        if low_rank is None:
            parts.pop(matrix.layer, None)
            leave_with(row, plan.rows)
            continue
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
            told = nullcontext() if tell is None else tell(path, new[path], ordered)
            del matrix, low_rank, made, ordered, parts[row["layer"]]
            with told:
                if inplace:
                    replace.replace_layers(model, {path: new.pop(path)}, inplace=True)
            del told
    result = model if inplace else replace.replace_layers(model, new, inplace=False)
    mark(result)
    if written:
        places = dict(weight_matrices(result))
        for name, product in written.items():
            places[name].write(product)
    totals = replace.totals(before, replace.model_sizes(result))
    return result, dataclasses.replace(plan, totals=totals)


def _narrowed(
    model: nn.Module,
    rows: dict[str, dict[str, Any]],
    matrices: dict[str, WeightMatrix],
    known: Known,
) -> dict[str, nn.Module]:
    """Return the layers of a hidden layer with fewer units, by path; fill in their rows."""
    (reader,) = {row["reader"] for row in rows.values()}
    made = narrowed(rows, matrices, known.weights.get(reader), known.hidden.get(reader))
    layers: dict[str, nn.Module] = {}
    for name, (values, units) in made.items():
        path = path_of(matrices.pop(name))
        layer: Any = model.get_submodule(path)
        weight = to_tensor(values, layer.weight)
        layers[path] = NarrowedLinear.of(layer, weight, torch.from_numpy(units), rows[name]["form"])
    return layers
