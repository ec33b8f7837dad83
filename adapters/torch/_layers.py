"""Split layers: two thinner layers in place of one, as plain modules."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec._split import SplitFactors, split
from rmtspec.adapters.torch._matrices import WeightMatrix, matrices_of
from rmtspec.adapters.torch._tensors import to_tensor
from rmtspec.errors import InvalidTypeError, InvalidValueError

#: What every module of torch holds; the rest of a layer's attributes are its own.
_OF_TORCH = frozenset(nn.Module().__dict__)
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
#: Not handed over: what split layers call by the same name, and the old layer's compiled forward.
_OURS = frozenset({"rank", "original_type", "inner", "outer", "_compiled_call_impl"})


class SplitLayer(nn.Module, abc.ABC):
    """What all split layers have in common: `inner`, then `outer`, and nothing between.

    The bias is the outer factor's. All plain attributes of the layer (`in_features`, `stride`,
    ...) can be read as before. Hooks on its forward and backward go along, as the inputs and
    outputs are the same, and their handles still remove them (in a copy of the model they do not,
    as with `copy.deepcopy`); hooks on its state dict stay behind.

    Attributes
    ----------
    inner, outer : torch.nn.Module
        The factors.
    rank : int
        Width between them; of each group of a convolution.
    original_type : type
        Of the layer that was split, to which `merge` returns.
    """

    kinds: ClassVar[tuple[str, ...]]
    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "bias", "kind", "dense_shape"]
    if TYPE_CHECKING:  # torch.jit.script takes annotations for interfaces
        inner: Any
        outer: Any
        rank: int
        original_type: type[nn.Module]

    def __init__(self, *_: Any, **__: Any) -> None:
        raise InvalidTypeError(
            f"A {type(self).__name__} is made from a layer: call "
            f"{type(self).__name__}.from_layer(layer, rank), or `prune`."
        )

    @classmethod
    def from_layer(cls, layer: nn.Module, rank: int, *, input_moment: Any = None) -> Self:
        """Split one layer, which itself stays as it was; the bias and the hooks are shared.

        Parameters
        ----------
        layer : torch.nn.Module
            Of the type this class is for.
        rank : int
            Singular values to keep, whether or not that saves parameters; in a convolution
            those of each group.
        input_moment : array_like of shape (columns, columns), or a list of them, optional
            Second moment of the inputs (of a convolution: of the patches, one for each group),
            as `rmtspec.split` takes it.

        Returns
        -------
        SplitLayer

        Raises
        ------
        InvalidTypeError
            A layer of another type, or one whose weight is not its own (parametrized, quantised).
        InvalidValueError
            A rank outside 1 to the smaller side, or nan in the weight.
        """
        matrices = cls._matrices(layer)
        moments = input_moment if isinstance(input_moment, list) else [input_moment]
        if len(moments) == 1:
            moments = moments * len(matrices)
        if len(moments) != len(matrices):
            raise InvalidValueError(
                f"`input_moment` lists {len(moments)} moments; expected one for each of the "
                f"{len(matrices)} groups."
            )
        pairs = zip(matrices, moments, strict=True)
        parts = [split(matrix(), rank, input_moment=moment) for matrix, moment in pairs]
        return cls.from_factors(layer, parts)

    @classmethod
    def from_factors(cls, layer: Any, parts: list[SplitFactors]) -> Self:
        """Make the split layer from the factors of its matrices, one pair for each group."""
        inner, outer = parts[0].inner, parts[0].outer
        if len(parts) > 1:
            inner = np.concatenate([part.inner for part in parts])
            outer = np.concatenate([part.outer for part in parts])
        made = cls.empty_like(layer, parts[0].rank)
        weight = layer.weight.detach()
        for factor, values in made._arranged(inner, outer):
            tensor = to_tensor(values, weight).reshape(factor.weight.shape)
            if _is_channels_last(weight):
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            factor.weight = nn.Parameter(tensor, requires_grad=layer.weight.requires_grad)
        if layer._parameters.get("bias") is not None:
            made.outer.bias = layer.bias
        return made

    @classmethod
    def empty_like(cls, layer: Any, rank: int) -> Self:
        """Return the split layer of that rank with factors on the meta device, to be filled."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.rank = rank
        made.original_type = type(layer)
        made.inner, made.outer = cls._factors(layer, rank, layer.weight.dtype)
        _hand_over(layer, made)
        return made

    def merged(self, path: str = "") -> Any:
        """Return one layer of the original type, its weight the product of the factors.

        Raises
        ------
        InvalidValueError
            A factor does more than multiply by its weight; `path` names the layer then.
        """
        self._check_factors(path)
        layer: Any = self.original_type.__new__(self.original_type)
        nn.Module.__init__(layer)
        inner, outer = self.inner.weight, self.outer.weight  # of a factor split again: its product
        exact = self._product(inner.detach().double(), outer.detach().double())
        tensor = exact.to(outer.dtype).contiguous()
        if _is_channels_last(inner):
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        trained = inner.requires_grad or outer.requires_grad
        layer.weight = nn.Parameter(tensor, requires_grad=trained)
        if not isinstance(self, SplitEmbedding):
            layer.register_parameter("bias", self.bias)
        _hand_over(self, layer)
        return layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        """Return the layer's output, up to the error of the split."""
        output: torch.Tensor = self.outer(self.inner(input))
        return output

    @property
    def weight(self) -> torch.Tensor:
        """The product of the factors in the shape of the layer's weight, computed when asked for.

        Read-only, for code that looks at it. Code that multiplies by it saves nothing.
        """
        return self._product(self.inner.weight, self.outer.weight)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the outer factor, or None."""
        bias: torch.Tensor | None = self.outer.bias
        return bias

    @property
    def kind(self) -> str:
        """Kind of the layer that was split, as `weight_matrices` calls it."""
        return self.kinds[0]

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """Shape of `weight`, which is not computed for it."""
        inner, outer = (f.weight.detach().to("meta") for f in (self.inner, self.outer))
        return tuple(self._product(inner, outer).shape)

    def extra_repr(self) -> str:
        """Return the rank."""
        return f"rank={self.rank}"

    def _check_factors(self, path: str) -> None:
        """Raise where the factors are not what the split made: a product would lose the rest."""
        for side, factor in (("inner", self.inner), ("outer", self.outer)):
            where = f"{path}.{side}".lstrip(".")
            if isinstance(factor, SplitLayer):
                factor._check_factors(where)
                continue
            held = [m for m in matrices_of(factor) if m.key == "weight"]
            reason = next((m.reason or m.whole for m in held if m.reason or m.whole), "")
            if not held:
                reason = f"a {type(factor).__name__} without a weight of its own"
            if side == "inner" and getattr(factor, "bias", None) is not None:
                reason = "it has a bias"
            if reason:
                raise InvalidValueError(
                    f"{where!r} is not as the split made it: {reason}. Expected plain factors; "
                    "merge what was added into them first."
                )

    @classmethod
    def _matrices(cls, layer: nn.Module) -> list[WeightMatrix]:
        """Return the matrices of a layer's weight, or raise where it is not one to split."""
        known = matrices_of(layer) if isinstance(layer, nn.Module) else []
        found = [m for m in known if m.key == "weight"]
        reason = next((m.reason or m.whole for m in found if m.reason or m.whole), "")
        if not found or reason or found[0].kind not in cls.kinds:
            raise InvalidTypeError(
                f"`layer` is a {type(layer).__name__}{': ' if reason else ''}{reason}; "
                f"{cls.__name__} splits layers of kind {' or '.join(cls.kinds)}."
            )
        return found

    @classmethod
    @abc.abstractmethod
    def _factors(cls, layer: Any, rank: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        """Return the inner and the outer module, on the meta device."""

    @abc.abstractmethod
    def _arranged(self, inner: NDArray[Any], outer: NDArray[Any]) -> list[tuple[Any, NDArray[Any]]]:
        """Return each factor module with its weight's values, from the factors of the matrix."""

    @abc.abstractmethod
    def _product(self, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        """Return the weight of the layer from those of the factors."""


class SplitLinear(SplitLayer):
    """Two Linear layers of width `rank` in place of a Linear, or of transformers' Conv1D.

    Made by `prune`, or one at a time by `SplitLinear.from_layer`.

    Attributes
    ----------
    inner : torch.nn.Linear
        in_features -> rank, no bias.
    outer : torch.nn.Linear
        rank -> out_features, with the bias of the layer.
    rank : int
        Singular values kept.

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

    kinds = ("linear", "transposed linear")
    __jit_unused_properties__: ClassVar[list[str]] = [
        *SplitLayer.__jit_unused_properties__,
        "in_features",
        "out_features",
    ]

    @property
    def kind(self) -> str:
        """Kind of the layer that was split, as `weight_matrices` calls it."""
        return self.kinds[0 if issubclass(self.original_type, nn.Linear) else 1]

    @property
    def in_features(self) -> int:
        """Size of the inputs."""
        size: int = self.inner.in_features
        return size

    @property
    def out_features(self) -> int:
        """Size of the outputs."""
        size: int = self.outer.out_features
        return size

    @classmethod
    def _factors(cls, layer: Any, rank: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        sides = layer.weight.shape
        rows, columns = sides if isinstance(layer, nn.Linear) else sides[::-1]
        bias = layer.bias is not None
        return (
            nn.Linear(columns, rank, bias=False, device="meta", dtype=dtype),
            nn.Linear(rank, rows, bias=bias, device="meta", dtype=dtype),
        )

    def _arranged(self, inner: NDArray[Any], outer: NDArray[Any]) -> list[tuple[Any, NDArray[Any]]]:
        return [(self.inner, inner), (self.outer, outer)]

    def _product(self, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        weight = outer @ inner
        return weight if self.kind == "linear" else weight.T


class _SplitConv(SplitLayer):
    """A convolution to `rank` channels, then one of kernel 1."""

    family: ClassVar[Any]

    @classmethod
    def _factors(cls, layer: Any, rank: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        groups = layer.groups
        inner = cls.family(
            layer.in_channels,
            rank * groups,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            groups,
            bias=False,
            padding_mode=layer.padding_mode,
            device="meta",
            dtype=dtype,
        )
        outer = cls.family(
            rank * groups,
            layer.out_channels,
            1,
            groups=groups,
            bias=layer.bias is not None,
            device="meta",
            dtype=dtype,
        )
        return inner, outer

    def _arranged(self, inner: NDArray[Any], outer: NDArray[Any]) -> list[tuple[Any, NDArray[Any]]]:
        return [(self.inner, inner), (self.outer, outer)]

    def _product(self, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        groups = inner.shape[0] // self.rank
        left = outer.reshape(groups, -1, self.rank)
        right = inner.reshape(groups, self.rank, -1)
        return (left @ right).reshape(outer.shape[0], *inner.shape[1:])


class SplitConv1d(_SplitConv):
    """A Conv1d as one of the same kernel to `rank` channels, then one of kernel 1.

    See `SplitConv2d`.
    """

    kinds = ("conv1d",)
    family = nn.Conv1d


class SplitConv2d(_SplitConv):
    """A Conv2d as one of the same kernel to `rank` channels, then a 1 x 1 one.

    Stride, padding, padding mode and dilation are the inner factor's. With groups, each group has
    `rank` channels between, and both factors have the groups.

    Attributes
    ----------
    inner : torch.nn.Conv2d
        in_channels -> rank * groups, kernel as before, no bias.
    outer : torch.nn.Conv2d
        rank * groups -> out_channels, 1 x 1, with the bias of the layer.
    rank : int
        Singular values kept in each group.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> layer = torch.nn.Conv2d(32, 64, 3, padding=1)
    >>> thin = rt.SplitConv2d.from_layer(layer, 8)
    >>> thin(torch.ones(1, 32, 10, 10)).shape, thin.weight.shape
    (torch.Size([1, 64, 10, 10]), torch.Size([64, 32, 3, 3]))
    """

    kinds = ("conv2d",)
    family = nn.Conv2d


class SplitConv3d(_SplitConv):
    """A Conv3d as one of the same kernel to `rank` channels, then one of kernel 1.

    See `SplitConv2d`.
    """

    kinds = ("conv3d",)
    family = nn.Conv3d


class SplitEmbedding(SplitLayer):
    """A table of `rank` columns, then a Linear to the dimension of the embedding.

    Attributes
    ----------
    inner : torch.nn.Embedding
        num_embeddings x rank.
    outer : torch.nn.Linear
        rank -> embedding_dim, no bias.
    rank : int
        Singular values kept.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> thin = rt.SplitEmbedding.from_layer(torch.nn.Embedding(1000, 64), 10)
    >>> thin(torch.tensor([3, 5])).shape
    torch.Size([2, 64])
    """

    kinds = ("embedding",)

    @classmethod
    def _factors(cls, layer: Any, rank: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        table = nn.Embedding(
            layer.num_embeddings,
            rank,
            padding_idx=layer.padding_idx,
            scale_grad_by_freq=layer.scale_grad_by_freq,
            sparse=layer.sparse,
            device="meta",
            dtype=dtype,
        )
        return table, nn.Linear(rank, layer.embedding_dim, bias=False, device="meta", dtype=dtype)

    def _arranged(self, inner: NDArray[Any], outer: NDArray[Any]) -> list[tuple[Any, NDArray[Any]]]:
        return [(self.inner, outer), (self.outer, inner.T)]

    def _product(self, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        return inner @ outer.T


#: The split layer for each kind of matrix that can be split.
SPLIT_TYPES: dict[str, type[SplitLayer]] = {
    kind: split_type
    for split_type in (SplitLinear, SplitConv1d, SplitConv2d, SplitConv3d, SplitEmbedding)
    for kind in split_type.kinds
}


def factors_are_used(module: nn.Module, inputs: Any, output: Any) -> None:
    """Do nothing, as a forward hook on a split layer within a TransformerEncoderLayer.

    In evaluation that layer takes a short cut that reads `weight` and multiplies by it, product of
    the factors or not; it does not where a child has a hook.
    """


def _is_channels_last(weight: torch.Tensor) -> bool:
    return (
        weight.ndim == 4
        and not weight.is_contiguous()
        and weight.is_contiguous(memory_format=torch.channels_last)
    )


def _hand_over(old: nn.Module, new: nn.Module) -> None:
    """Give `new` the plain attributes, hooks and training flag of `old`."""
    held = new.__dict__
    for name, value in old.__dict__.items():
        if name not in _OF_TORCH and name not in _OURS:
            held[name] = value
    for name in _HOOKS:
        held[name] = old.__dict__[name]
    hooks = held["_forward_hooks"]
    if factors_are_used in hooks.values() and not isinstance(new, SplitLayer):
        held["_forward_hooks"] = type(hooks)(
            (key, hook) for key, hook in hooks.items() if hook is not factors_are_used
        )
    new.train(old.training)
