"""The outer factor of a pivoted split: it hands its inputs on, and combinations of them."""

import warnings
from typing import Any, ClassVar

import torch
from torch import nn


class PivotedRows(nn.Module):
    """From `rank` features to `rows` outputs, of which `rank` are the features themselves.

    Attributes
    ----------
    mixing : torch.nn.Linear
        rank -> rows - rank, no bias: the other outputs.
    place : torch.Tensor of shape (rows,)
        Where each output stands among features and mixtures.
    bias : torch.nn.Parameter or None
        Added to the outputs.

    The weight of `mixing` is on the meta device until it is replaced: no random number is drawn.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "in_features", "out_features"]

    def __init__(self, rank: int, rows: int, *, bias: bool, device: Any, dtype: Any) -> None:
        super().__init__()
        with warnings.catch_warnings():  # there may be no other outputs
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.mixing: Any = nn.Linear(rank, rows - rank, bias=False, device="meta", dtype=dtype)
        self.place: torch.Tensor
        self.register_buffer("place", torch.arange(rows, device=device))
        empty = torch.empty(rows, device=device, dtype=dtype) if bias else None
        self.bias = None if empty is None else nn.Parameter(empty)

    @property
    def in_features(self) -> int:
        """Number of features."""
        return int(self.mixing.in_features)

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return int(self.place.numel())

    @property
    def weight(self) -> torch.Tensor:
        """The factor as a matrix of shape (rows, rank), computed on access."""
        mixing = self.mixing.weight
        identity = torch.eye(mixing.shape[1], dtype=mixing.dtype, device=mixing.device)
        return torch.cat([identity, mixing])[self.place]

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        """Return the outputs for features of shape (..., rank)."""
        output = torch.cat([input, self.mixing(input)], -1).index_select(-1, self.place)
        return output if self.bias is None else output + self.bias

    def extra_repr(self) -> str:
        """Return sizes."""
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}"
