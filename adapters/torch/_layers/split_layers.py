"""The split layers (Linear, convolutions, Embedding), each made of two thinner plain modules."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._layers.split_layer import SplitLayer, numerical_rank
from rmtspec.adapting import Form, Kind, SplitFactors, split


class SplitLinear(SplitLayer):
    """Two Linear layers with `rank` features between, replacing a Linear or transformers' Conv1D.

    Made by `prune`, or singly by `SplitLinear.from_layer`.

    Attributes
    ----------
    inner : torch.nn.Linear
        in_features -> rank, no bias.
    outer : torch.nn.Linear
        rank -> out_features, with the bias of the layer.
    rank : int
        Number of singular values kept.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> layer = torch.nn.Linear(300, 200)
    >>> thin = rt.SplitLinear.from_layer(layer, 20)
    >>> thin
    SplitLinear(
      rank=20
      (inner): Linear(in_features=300, out_features=20, bias=False)
      (outer): Linear(in_features=20, out_features=200, bias=True)
    )
    >>> thin(torch.ones(5, 300)).shape
    torch.Size([5, 200])
    """

    kinds = (Kind.LINEAR, Kind.TRANSPOSED_LINEAR)
    __jit_unused_properties__: ClassVar[list[str]] = [
        *SplitLayer.__jit_unused_properties__, "in_features", "out_features",
    ]  # fmt: skip

    @property
    def kind(self) -> str:
        """The `rmtspec.terms.Kind` of the layer that was split."""
        return self.kinds[0 if issubclass(self.original_type, nn.Linear) else 1]

    @property
    def in_features(self) -> int:
        """Size of the inputs."""
        return int(self.inner.in_features)

    @property
    def out_features(self) -> int:
        """Size of the outputs."""
        return int(self.outer.out_features)

    @classmethod
    def _factors(cls, layer: Any, rank: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        sides = layer.weight.shape
        rows, columns = sides if isinstance(layer, nn.Linear) else sides[::-1]
        inner = nn.Linear(columns, rank, bias=False, device="meta", dtype=dtype)
        bias = layer.bias is not None
        return inner, nn.Linear(rank, rows, bias=bias, device="meta", dtype=dtype)

    def _product(self, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        weight = outer @ inner
        return weight if self.kind == Kind.LINEAR else weight.T


class _SplitConv(SplitLayer):
    """A convolution to `rank` channels, then one with kernel size 1."""

    family: ClassVar[Any]

    @classmethod
    def _factors(cls, layer: Any, rank: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        width, bias = rank * layer.groups, layer.bias is not None
        more: dict[str, Any] = {"groups": layer.groups, "device": "meta", "dtype": dtype}
        inner = cls.family(
            layer.in_channels, width, layer.kernel_size, stride=layer.stride,
            padding=layer.padding, dilation=layer.dilation, bias=False,
            padding_mode=layer.padding_mode, **more,
        )  # fmt: skip
        return inner, cls.family(width, layer.out_channels, 1, bias=bias, **more)

    def _product(self, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        if outer[0, 0].numel() > 1:
            return torch.einsum("orb,ria->oiab", outer.squeeze(2), inner.squeeze(3))
        groups = inner.shape[0] // self.rank
        left = outer.reshape(groups, -1, self.rank)
        right = inner.reshape(groups, self.rank, -1)
        return (left @ right).reshape(outer.shape[0], *inner.shape[1:])


class SplitConv1d(_SplitConv):
    """A Conv1d as one with the same kernel size to `rank` channels, then one with kernel size 1.

    See `SplitConv2d`.
    """

    kinds = (Kind.CONV1D,)
    family = nn.Conv1d


class SplitConv2d(_SplitConv):
    """A Conv2d as one with the same kernel size to `rank` channels, then a 1 x 1 one.

    The inner factor has the stride, padding, padding mode and dilation. With groups, both factors
    have the groups, and each group has `rank` channels between them. In the form "spatial" the
    factors are a k x 1 and a 1 x l convolution, each with what belongs to its axis.

    Attributes
    ----------
    inner : torch.nn.Conv2d
        in_channels -> rank * groups, kernel size as before, no bias.
    outer : torch.nn.Conv2d
        rank * groups -> out_channels, 1 x 1, with the bias of the layer.
    rank : int
        Number of singular values kept in each group.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> layer = torch.nn.Conv2d(32, 64, 3, padding=1)
    >>> thin = rt.SplitConv2d.from_layer(layer, 8)
    >>> thin(torch.ones(1, 32, 10, 10)).shape, thin.weight.shape
    (torch.Size([1, 64, 10, 10]), torch.Size([64, 32, 3, 3]))
    """

    kinds = (Kind.CONV2D,)
    family = nn.Conv2d

    @classmethod
    def _spatial(cls, layer: Any, rank: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        more: dict[str, Any] = {
            "padding_mode": layer.padding_mode, "device": "meta", "dtype": dtype
        }  # fmt: skip
        sides = [layer.in_channels, rank, layer.out_channels]
        made: list[nn.Module] = []
        for axis, bias in ((0, False), (1, layer.bias is not None)):
            given: dict[str, Any] = {
                "kernel_size": _along(axis, layer.kernel_size, 1),
                "stride": _along(axis, layer.stride, 1),
                "dilation": _along(axis, layer.dilation, 1),
            }
            padding = layer.padding
            if not isinstance(padding, str):  # "same" and "valid" hold for each axis
                padding = _along(axis, padding, 0)
            made.append(
                nn.Conv2d(sides[axis], sides[axis + 1], padding=padding, bias=bias, **given, **more)
            )
        return made[0], made[1]

    def _exact(self, matrices: list[NDArray[Any]]) -> list[SplitFactors]:
        if self.form != Form.SPATIAL:
            return super()._exact(matrices)
        (out, inside, height, width), (kernel,) = self.dense_shape, matrices
        turned: NDArray[Any] = kernel.reshape(out, inside * height, width).swapaxes(0, 1)
        turned = turned.reshape(inside * height, out * width)
        made = split(turned, numerical_rank(turned))
        outer = made.inner.reshape(made.rank, out, width).swapaxes(0, 1).reshape(out, -1)
        return [dataclasses.replace(made, inner=made.outer.T, outer=outer)]


class SplitConv3d(_SplitConv):
    """A Conv3d as one with the same kernel size to `rank` channels, then one with kernel size 1.

    See `SplitConv2d`.
    """

    kinds = (Kind.CONV3D,)
    family = nn.Conv3d


class SplitEmbedding(SplitLayer):
    """A table with `rank` columns, then a Linear to the dimension of the embedding.

    Attributes
    ----------
    inner : torch.nn.Embedding
        num_embeddings x rank.
    outer : torch.nn.Linear
        rank -> embedding_dim, no bias.
    rank : int
        Number of singular values kept.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> thin = rt.SplitEmbedding.from_layer(torch.nn.Embedding(1000, 64), 10)
    >>> thin(torch.tensor([3, 5])).shape
    torch.Size([2, 64])
    """

    kinds = (Kind.EMBEDDING,)
    has_bias = False

    @classmethod
    def _factors(cls, layer: Any, rank: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        table = nn.Embedding(
            layer.num_embeddings, rank, padding_idx=layer.padding_idx, sparse=layer.sparse,
            scale_grad_by_freq=layer.scale_grad_by_freq, device="meta", dtype=dtype,
        )  # fmt: skip
        return table, nn.Linear(rank, layer.embedding_dim, bias=False, device="meta", dtype=dtype)

    def _arranged(self, inner: NDArray[Any], outer: NDArray[Any]) -> list[tuple[Any, NDArray[Any]]]:
        return [(self.inner, outer), (self.outer, inner.T)]

    def _product(self, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        return inner @ outer.T


def _along(axis: int, pair: Sequence[int], otherwise: int) -> tuple[int, int]:
    """Return a pair that belongs to one axis alone."""
    return (pair[0], otherwise) if axis == 0 else (otherwise, pair[1])


#: The split layer for each kind of matrix that can be split.
SPLIT_TYPES: dict[str, type[SplitLayer]] = {
    kind: split_type
    for split_type in (SplitLinear, SplitConv1d, SplitConv2d, SplitConv3d, SplitEmbedding)
    for kind in split_type.kinds
}
