"""The inputs and outputs of a layer as rows: one row for each product with its matrix."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn


def groups_of(layer: Any) -> int:
    """Return how many matrices the layer's weight holds: the groups of a convolution."""
    return int(layer.groups) if isinstance(layer, nn.modules.conv._ConvNd) else 1


def layer_sides(layer: Any) -> tuple[int, int]:
    """Return rows and columns of the matrix of a layer, or of each of its groups."""
    groups = groups_of(layer)
    if isinstance(layer, nn.modules.conv._ConvNd):
        weight = layer.weight
        return weight.shape[0] // groups, int(weight[0].numel())
    rows, columns = layer.weight.shape
    if isinstance(layer, nn.Linear):
        return rows, columns
    return columns, rows  # transposed, or an embedding, which puts out its columns


def input_rows(
    layer: Any, inputs: torch.Tensor, visible: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """Yield the inputs of a layer's matrices in pieces of shape (count, groups, columns).

    `visible` tells which positions count, for inputs whose leading dimensions are its own.
    """
    if isinstance(layer, nn.modules.conv._ConvNd):
        yield from _patches(layer, inputs)
        return
    if isinstance(layer, nn.Embedding):
        inputs = inputs[..., None]
    # nn.TransformerEncoder makes nested tensors, which have no padding.
    for part in inputs.unbind() if inputs.is_nested else [inputs]:
        yield _positions(part, visible)[:, None]


def output_rows(
    layer: Any, values: torch.Tensor, visible: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """Yield the outputs of a layer, or gradients at them, as (count, groups, rows of a matrix)."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        if values.ndim == len(layer.kernel_size) + 1:
            values = values[None]
        values = values.movedim(1, -1)
        yield values.reshape(-1, layer.groups, values.shape[-1] // layer.groups)
        return
    for part in values.unbind() if values.is_nested else [values]:
        yield _positions(part, visible)[:, None]


def _positions(values: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    if visible is not None and values.shape[:-1] == visible.shape:
        return values[visible.to(values.device)]
    return values.reshape(-1, values.shape[-1])


def _patches(layer: Any, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the patches of each sample in a convolution: (count, groups, in/groups * kernel)."""
    dims = len(layer.kernel_size)
    if inputs.ndim == dims + 1:
        inputs = inputs[None]
    pads = layer._reversed_padding_repeated_twice
    if isinstance(pads, list | tuple) and any(pads):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs = nn.functional.pad(inputs, tuple(pads), mode=mode)
    for sample in inputs:
        windows = sample
        for axis in range(dims):
            size = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
            windows = windows.unfold(axis + 1, size, layer.stride[axis])
            windows = windows[..., :: layer.dilation[axis]]
        # (channels, positions..., kernel...) -> (positions, groups, channels/groups * kernel)
        count = int(np.prod(windows.shape[1 : dims + 1]))
        windows = windows.movedim(0, dims).reshape(count, layer.groups, -1)
        yield windows
