"""A linear layer whose weight is stored in fewer bytes than it is computed with."""

from typing import Any, ClassVar

import torch
from torch import nn

#: How a weight may be stored, and the dtype of its codes.
STORED: dict[str, torch.dtype] = {"int8": torch.int8, "bfloat16": torch.bfloat16}
_LARGEST = 127


class CompactLinear(nn.Module):
    """A Linear with codes in int8, one scale for each row, or in bfloat16; inputs keep their dtype.

    Its weight is not trained.

    Attributes
    ----------
    codes : torch.Tensor of shape (out_features, in_features)
        int8 or bfloat16.
    scale : torch.Tensor of shape (out_features,)
        The weight is codes * scale; ones for bfloat16.
    bias : torch.nn.Parameter or None
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "in_features", "out_features"]

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, bias: Any) -> None:
        super().__init__()
        self.codes: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.bias = bias

    @classmethod
    def of(cls, layer: Any, stored: str) -> "CompactLinear":
        """Return a layer that computes the same to the precision of its codes.

        On the meta device the result has no values.
        """
        weight = layer.weight.detach()
        if stored == "bfloat16":
            codes, scale = weight.to(torch.bfloat16), weight.new_ones(len(weight))
        else:
            # A row of nothing but zeros keeps scale 1.
            scale = weight.float().abs().amax(1) / _LARGEST
            scale = torch.where(scale > 0, scale, 1.0)
            codes = (weight.float() / scale[:, None]).round().to(torch.int8)
            scale = scale.to(weight.dtype)
        return cls(codes, scale, layer._parameters.get("bias"))

    @property
    def weight(self) -> torch.Tensor:
        """The weight, computed on access, in the dtype of the scales."""
        return self.codes.to(self.scale.dtype) * self.scale[:, None]

    @property
    def in_features(self) -> int:
        """Size of the inputs."""
        return int(self.codes.shape[1])

    @property
    def out_features(self) -> int:
        """Size of the outputs."""
        return int(self.codes.shape[0])

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the codes with the layer, but keep their dtype."""
        dtype = self.codes.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.codes.dtype != dtype:
            self.codes = self.codes.to(dtype)
        return self

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        """Return the outputs, in the dtype of the input."""
        output = nn.functional.linear(input, self.codes.to(input.dtype))
        output = output * self.scale.to(input.dtype)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        """Return sizes and the dtype of the codes."""
        return f"{self.in_features} -> {self.out_features}, {self.codes.dtype}"
