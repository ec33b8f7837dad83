"""What a layer reads of each example of a batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._calibration.rows import groups_of, input_rows
from rmtspec.adapters.torch._components.run import run
from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch._outputs import visible_positions
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Kind
from rmtspec.errors import InvalidValueError

#: Kinds whose layer multiplies what it is given by the matrix.
_READ = (Kind.LINEAR, Kind.TRANSPOSED_LINEAR, Kind.CONV1D, Kind.CONV2D, Kind.CONV3D)


def inputs_of(
    model: nn.Module, layer: nn.Module, matrix: WeightMatrix, batch: Any
) -> list[NDArray[Any]]:
    """Return what the layer reads of each example, shape (positions, columns)."""
    if matrix.kind not in _READ:
        raise InvalidValueError(
            f"`batch` is given, but {matrix.name!r} is of kind {matrix.kind}, whose inputs are not "
            f"known; expected one of {', '.join(_READ)}. Leave `batch` out."
        )
    seen: list[list[NDArray[Any]]] = []
    visible = visible_positions(model, batch)

    def watch(module: nn.Module, inputs: torch.Tensor | None, _: Any) -> None:
        if inputs is not None:
            plain: Any = module.inner if isinstance(module, SplitLayer) else module
            found = _examples(plain, inputs, visible(matrix.layer, inputs))
            seen.append([_group(rows, matrix, plain) for rows in found])

    run(model, batch, {layer: watch})
    if not seen:
        raise InvalidValueError(
            f"`batch` does not reach {matrix.name!r}: the model ran without calling the layer. "
            "Pass inputs that use it."
        )
    if any(len(each) != len(seen[0]) for each in seen):
        raise InvalidValueError(
            f"{matrix.name!r} is called {len(seen)} times for `batch`, with different numbers of "
            "examples; expected one call, or calls with the same number."
        )
    found = [np.concatenate(parts) for parts in zip(*seen, strict=True)]
    if found and found[0].shape[1] != matrix.shape[1]:
        raise InvalidValueError(
            f"{matrix.name!r} reads rows of {found[0].shape[1]} numbers, and its matrix has "
            f"{matrix.shape[1]} columns: how they belong together is not known here. Leave `batch` "
            "out, or merge the layer first."
        )
    return found


def _examples(
    layer: Any, inputs: torch.Tensor, visible: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """Yield the rows of each example: (positions, groups, columns)."""
    if isinstance(layer, nn.modules.conv._ConvNd) or groups_of(layer) > 1:
        yield from input_rows(layer, inputs, None)
    elif inputs.ndim == 1:
        yield inputs[None, None]
    else:
        for number, example in enumerate(inputs.unbind()):
            shown = None if visible is None else visible[number]
            yield torch.cat(list(input_rows(layer, example, shown)))


def _group(rows: torch.Tensor, matrix: WeightMatrix, layer: Any) -> NDArray[Any]:
    """Return the rows of the group that a matrix belongs to."""
    group = 0
    if groups_of(layer) > 1 and isinstance(matrix.part, slice):
        group = matrix.part.start // matrix.shape[0]
    values: NDArray[Any] = rows[:, group].detach().to("cpu", torch.float64).numpy()
    return values
