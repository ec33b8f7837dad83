"""The paper's fully connected networks, and how many parameters they have."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._layers.pivoted_rows import PivotedRows
from rmtspec.adapting import checks
from rmtspec.errors import InvalidTypeError, InvalidValueError


class MLP(nn.Module):
    """A fully connected network with ReLU between its layers (the paper, section 4).

    Parameters
    ----------
    dims : sequence of int
        Widths, inputs first: [784, 1000, 10] is two layers.
    output_relu : bool
        Apply ReLU after the last layer too, as the paper does. Outputs can then die: avoid it.

    Attributes
    ----------
    layers : torch.nn.ModuleList
        Linear layers; after `prune`, split ones among them.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        Fewer than two widths, or one that is not a whole number above 0.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> rt.MLP([784, 1000, 10])(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])
    """

    def __init__(self, dims: Sequence[int], *, output_relu: bool = False) -> None:
        super().__init__()
        widths = _dims(dims)
        self.output_relu = output_relu
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        """Return the outputs, shape (batch, dims[-1]); inputs are flattened."""
        values = input.flatten(1)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            values = layer(values)
            if index < last or self.output_relu:
                values = torch.relu(values)
        return values


def layer_dims(model: nn.Module) -> list[int]:
    """Return the widths of a chain of Linear layers, including the ranks of split ones.

    The paper lists its networks so: [784, 1000, 10], after a split [784, 354, 1000, 10].

    Raises
    ------
    InvalidValueError
        The layers do not form a chain.

    Examples
    --------
    >>> from rmtspec.adapters import torch as rt
    >>> model, _ = rt.prune(rt.MLP([784, 1000, 10]), ranks={"layers.0": 354})
    >>> rt.layer_dims(model)
    [784, 354, 1000, 10]
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(
            f"`model` is a {type(model).__name__}; expected a torch.nn.Module of Linear layers."
        )
    dims: list[int] = []
    inside = [f"{path}." for path, m in model.named_modules() if isinstance(m, PivotedRows)]
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear | PivotedRows) or name.startswith(tuple(inside)):
            continue
        if dims and dims[-1] != layer.in_features:
            raise InvalidValueError(
                f"{name!r} takes {layer.in_features} inputs, but the layer before it has width "
                f"{dims[-1]}; expected a chain of Linear layers."
            )
        dims += [layer.out_features] if dims else [layer.in_features, layer.out_features]
    if not dims:
        raise InvalidValueError("`model` has no Linear layer; expected a chain of them.")
    return dims


def count_parameters(model_or_dims: nn.Module | Sequence[int], bias: str = "as_is") -> int:
    """Count the parameters of a model, or of a chain of Linear layers given by its widths.

    Parameters
    ----------
    model_or_dims : torch.nn.Module or sequence of int
        A model (shared parameters are counted once), or widths as `layer_dims` returns them.
    bias : {"as_is", "every"}
        "every" counts a bias for every layer, inner factors included, as the paper does; a model
        must then be a chain of Linear layers. "as_is" counts the biases that a model has, and for
        widths one per layer.

    Returns
    -------
    int

    Examples
    --------
    >>> from rmtspec.adapters import torch as rt
    >>> rt.count_parameters([784, 3000, 3000, 500, 10])
    12863510
    >>> model, _ = rt.prune(rt.MLP([784, 1000, 10]), ranks={"layers.0": 354})
    >>> rt.count_parameters(model), rt.count_parameters(model, bias="every")
    (642546, 642900)
    """
    checks.choice(bias, "bias", ("as_is", "every"))
    if isinstance(model_or_dims, nn.Module):
        if bias == "as_is":
            return sum(p.numel() for p in model_or_dims.parameters())
        dims = layer_dims(model_or_dims)
    else:
        dims = _dims(model_or_dims)
    return sum(a * b + b for a, b in pairwise(dims))


def _dims(dims: Any) -> list[int]:
    if isinstance(dims, str | bytes) or not hasattr(dims, "__iter__"):
        raise InvalidTypeError(f"`dims` is {dims!r}; expected widths, such as [784, 1000, 10].")
    widths = [checks.integer(width, f"dims[{i}]", 1) for i, width in enumerate(dims)]
    if len(widths) < 2:
        raise InvalidValueError(
            f"`dims` is {widths}; expected two widths or more, such as [784, 1000, 10]."
        )
    return widths
