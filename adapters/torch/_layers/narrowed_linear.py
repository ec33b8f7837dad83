"""A linear layer without some of its outputs, or of its inputs."""

from typing import Any, Self

import torch
from torch import nn

from rmtspec.adapters.torch._layers.split_layer import hand_over
from rmtspec.adapting import Form, Kind
from rmtspec.errors import InvalidTypeError


class NarrowedLinear(nn.Linear):
    """A linear layer of a hidden layer from which units left: a plain, smaller nn.Linear.

    Made by `prune`, for the layers that make the units and the one that reads them together. It
    knows which units stay, so that `merge` can give back layers of the old size that compute the
    same, with zeros for the units that left.

    Attributes
    ----------
    units : torch.Tensor of shape (count,)
        Which outputs, or inputs, of the original layer stay.
    form : {"fewer outputs", "fewer inputs"}
        Which of them.
    full_features : int
        How many there were.
    original_type : type
        Type of the original layer.
    """

    units: torch.Tensor
    form: str
    full_features: int
    original_type: type[nn.Module]

    def __init__(self, *_: Any, **__: Any) -> None:
        raise InvalidTypeError("A NarrowedLinear is made from a layer: call `prune`.")

    @classmethod
    def of(cls, layer: Any, weight: torch.Tensor, units: torch.Tensor, form: str) -> Self:
        """Return the layer with what is left of its weight, of shape (outputs, inputs)."""
        made = cls.empty_like(layer, len(units), weight.device, form)
        with torch.no_grad():
            made.weight.copy_(weight)
            made.units.copy_(units)
            bias = layer._parameters.get("bias")
            if bias is not None and form == Form.FEWER_OUTPUTS:
                made.bias.copy_(bias[units.to(bias.device)])
        return made

    @classmethod
    def empty_like(cls, layer: Any, count: int, device: torch.device | str, form: str) -> Self:
        """Return the layer with so many units, complete except for values.

        The bias of a layer with fewer inputs is the layer's own.
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        hand_over(layer, made)
        weight = layer.weight
        rows, columns = weight.shape if isinstance(layer, nn.Linear) else weight.shape[::-1]
        fewer = form == Form.FEWER_OUTPUTS
        made.form, made.full_features = str(form), int(rows if fewer else columns)
        made.original_type = type(layer)
        made.in_features = int(columns if fewer else count)
        made.out_features = int(count if fewer else rows)
        sides = (made.out_features, made.in_features)
        empty = torch.zeros(sides, device=device, dtype=weight.dtype)
        made.weight = nn.Parameter(empty, requires_grad=weight.requires_grad)
        bias = layer._parameters.get("bias")
        if bias is not None and fewer:
            empty = torch.zeros(count, device=device, dtype=bias.dtype)
            bias = nn.Parameter(empty, requires_grad=bias.requires_grad)
        made.register_parameter("bias", bias)
        made.register_buffer("units", torch.arange(count, device=device))
        return made

    def merged(self, path: str = "") -> Any:
        """Return a layer of the original type and size, with zeros for the units that left."""
        layer: Any = self.original_type.__new__(self.original_type)
        nn.Module.__init__(layer)
        weight, bias = self._padded(self.weight), self.bias
        if self.form == Form.FEWER_OUTPUTS and bias is not None:
            padded = bias.new_zeros(self.full_features)
            padded[self.units] = bias.detach()
            bias = nn.Parameter(padded, requires_grad=bias.requires_grad)
        if self.kind == Kind.TRANSPOSED_LINEAR:
            weight = weight.T.contiguous()
        layer.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        layer.register_parameter("bias", bias)
        hand_over(self, layer)
        if self.kind == Kind.LINEAR:
            layer.out_features, layer.in_features = weight.shape
        else:
            del layer.out_features, layer.in_features
        return layer

    @property
    def kind(self) -> str:
        """The `rmtspec.terms.Kind` of the original layer."""
        plain = issubclass(self.original_type, nn.Linear)
        return (Kind.LINEAR if plain else Kind.TRANSPOSED_LINEAR).value

    @property
    def rank(self) -> int:
        """Number of units."""
        return int(self.units.numel())

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the weight of the original layer."""
        shape = tuple(self._padded(self.weight.detach().to("meta")).shape)
        return shape if self.kind == Kind.LINEAR else shape[::-1]

    def extra_repr(self) -> str:
        """Return sizes."""
        return f"{super().extra_repr()}, {self.form} of {self.full_features}"

    @torch.no_grad()
    def _padded(self, weight: torch.Tensor) -> torch.Tensor:
        rows, columns = weight.shape
        fewer = self.form == Form.FEWER_OUTPUTS
        full = weight.new_zeros(
            (self.full_features, columns) if fewer else (rows, self.full_features)
        )
        if full.is_meta:
            return full
        if fewer:
            full[self.units] = weight
        else:
            full[:, self.units] = weight
        return full
