"""The base class of split layers: made from a layer, merged back into one."""

import abc
import math
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._layers.compact_linear import CompactLinear
from rmtspec.adapters.torch._layers.pivoted_rows import PivotedRows
from rmtspec.adapters.torch._layers.product import Product
from rmtspec.adapters.torch._weights.layer_kinds import matrices_of
from rmtspec.adapters.torch._weights.tensors import to_tensor
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Form, Kind, SplitFactors, pivoted, split
from rmtspec.errors import InvalidTypeError, InvalidValueError

#: Attributes of every torch module; all other attributes of a layer are its own.
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
#: Not handed over: names that split layers use themselves, and the old layer's compiled forward.
_OURS = frozenset(
    {"rank", "original_type", "inner", "outer", "form", "full_features", "_compiled_call_impl"}
)


class SplitLayer(nn.Module, abc.ABC):
    """The base class of all split layers: `inner` followed by `outer`, with nothing between.

    The bias belongs to the outer factor. All plain attributes of the layer (`in_features`,
    `stride`, ...) can be read as before. Hooks on its forward and backward are kept, since inputs
    and outputs are the same, and their handles still remove them (but not in a copy of the model,
    which is also true of `copy.deepcopy`); hooks on its state dict are dropped.

    Attributes
    ----------
    inner, outer : torch.nn.Module
        The factors.
    rank : int
        Width between them; in a convolution, that of each group.
    original_type : type
        Type of the layer that was split; `merge` restores it.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    has_bias: ClassVar[bool] = True
    __jit_unused_properties__: ClassVar[list[str]] = [
        "weight", "bias", "kind", "form", "dense_shape",
    ]  # fmt: skip
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
        """Split one layer, which itself is not changed; the bias and the hooks are shared.

        Parameters
        ----------
        layer : torch.nn.Module
            Of the type that this class splits.
        rank : int
            Number of singular values to keep, whether or not that saves parameters; in a
            convolution, per group.
        input_moment : array_like of shape (columns, columns), or a list of them, optional
            Second moment of the inputs, as for `rmtspec.split`; in a convolution that of the
            patches, one per group.

        Returns
        -------
        SplitLayer

        Raises
        ------
        InvalidTypeError
            The layer is of another type, or its weight is parametrized or quantised.
        InvalidValueError
            The rank is outside 1 to the smaller side, or the weight has nan entries.
        """
        matrices, reason = _of_weight(layer)
        if not matrices or reason or matrices[0].kind not in cls.kinds:
            raise InvalidTypeError(
                f"`layer` is a {type(layer).__name__}{': ' if reason else ''}{reason}; "
                f"{cls.__name__} splits layers of kind {' or '.join(cls.kinds)}."
            )
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
    def from_factors(cls, layer: Any, parts: list[SplitFactors], form: str = Form.PLAIN) -> Self:
        """Make the split layer from the factors of its matrices, one pair per group.

        The form "pivoted" stores the same product as pivot rows and combinations of them; the
        factors of the form "spatial" are those of `rmtspec.matrix.spatial`.
        """
        inner, outer = parts[0].inner, parts[0].outer
        if len(parts) > 1:
            inner = np.concatenate([part.inner for part in parts])
            outer = np.concatenate([part.outer for part in parts])
        made = cls.empty_like(layer, parts[0].rank, layer.weight.device, form)
        with torch.no_grad():
            if isinstance(made.outer, PivotedRows):
                made._pivot(outer, inner)
                return made
            for factor, values in made._arranged(inner, outer):
                factor.weight.copy_(to_tensor(values, layer.weight).reshape(factor.weight.shape))
        return made

    @classmethod
    def empty_like(
        cls, layer: Any, rank: int, device: torch.device | str, form: str = Form.PLAIN
    ) -> Self:
        """Return the split layer of that rank, complete except for the values of its factors.

        These are zeros (on the meta device they have no values), laid out in memory as the layer's
        weight is, and trained if it is. The bias is the layer's own.
        """
        weight = layer.weight
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.rank = rank
        made.original_type = type(layer)
        make = cls._spatial if form == Form.SPATIAL else cls._factors
        factors: Any = make(layer, rank, weight.dtype)
        made.inner, outer = factors
        made.outer = outer
        if form == Form.PIVOTED:
            kept = {"bias": outer.bias is not None, "device": device, "dtype": weight.dtype}
            made.outer = PivotedRows(rank, outer.out_features, **kept)
            outer = made.outer.mixing
        for factor in (made.inner, outer):
            layout = memory_format(weight)
            zeros = torch.zeros_like(factor.weight, device=device, memory_format=layout)
            factor.weight = nn.Parameter(zeros, requires_grad=weight.requires_grad)
        if layer._parameters.get("bias") is not None:
            made.outer.bias = layer.bias
        hand_over(layer, made)
        return made

    def merged(self, path: str = "") -> Any:
        """Return one layer of the original type, its weight the product of the factors.

        Raises
        ------
        InvalidValueError
            A factor does more than multiply by its weight, or the dtype has no room for the
            product; the message names the layer by `path`.
        """
        self._check_factors(path)
        layer: Any = self.original_type.__new__(self.original_type)
        nn.Module.__init__(layer)
        inner, outer = self.inner.weight, self.outer.weight  # products, if split again
        exact = self._product(inner.detach().double(), outer.detach().double())
        tensor = exact.to(outer.dtype).contiguous(memory_format=memory_format(inner))
        if not bool(torch.isfinite(tensor).all()) and bool(torch.isfinite(exact).all()):
            name = path or type(self).__name__
            raise InvalidValueError(
                f"{name!r} cannot be merged: its weight has entries beyond the largest "
                f"{str(outer.dtype).removeprefix('torch.')}. Convert the model to a "
                "wider dtype first: model.float()."
            )
        trained = inner.requires_grad or outer.requires_grad
        layer.weight = nn.Parameter(tensor, requires_grad=trained)
        if self.has_bias:
            layer.register_parameter("bias", self.bias)
        hand_over(self, layer)
        return layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        """Return the layer's output, up to the error of the split."""
        output: torch.Tensor = self.outer(self.inner(input))
        return output

    @property
    def weight(self) -> torch.Tensor:
        """The product of the factors in the shape of the layer's weight, computed on access.

        For inspection: code that multiplies by it saves nothing. What is written into it in place
        becomes new factors, of the numerical rank of what was written.
        """
        return Product.of(self._product(self.inner.weight, self.outer.weight), self.write)

    def write(self, weight: torch.Tensor) -> None:
        """Replace the factors by those of a weight, of its numerical rank; nothing is lost.

        Parameters
        ----------
        weight : torch.Tensor
            In the shape of the layer's weight.

        Raises
        ------
        InvalidValueError
            It has another shape, or nan entries, or the factors are stored as codes.
        """
        if tuple(weight.shape) != self.dense_shape or not bool(torch.isfinite(weight).all()):
            raise InvalidValueError(
                f"What is written into a {type(self).__name__} has shape {tuple(weight.shape)}, or "
                f"nan or infinite entries; expected finite ones, of shape {self.dense_shape}."
            )
        if isinstance(self.inner, CompactLinear):
            raise InvalidValueError(
                f"The factors of this {type(self).__name__} are stored as codes, which cannot be "
                "written; merge the model first, or write before `quantize_factors`."
            )
        layer = self.merged()
        with torch.no_grad():
            layer.weight.copy_(weight)
        matrices, _ = _of_weight(layer)
        made = self.from_factors(layer, self._exact([m() for m in matrices]), self.form)
        if made.rank == self.rank:  # the parameters stay the same objects
            with torch.no_grad():
                own = self.state_dict(keep_vars=True)
                for name, tensor in made.state_dict().items():
                    own[name].copy_(tensor)
            return
        self.inner, self.outer, self.rank = made.inner, made.outer, made.rank

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the outer factor, or None."""
        bias: torch.Tensor | None = self.outer.bias
        return bias

    @property
    def kind(self) -> str:
        """The `rmtspec.terms.Kind` of the layer that was split."""
        return self.kinds[0]

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """Shape of `weight`, without computing it."""
        inner, outer = (f.weight.detach().to("meta") for f in (self.inner, self.outer))
        return tuple(self._product(inner, outer).shape)

    def extra_repr(self) -> str:
        """Return the rank."""
        return f"rank={self.rank}"

    def _check_factors(self, path: str) -> None:
        """Raise if the factors do more than the split made them do: a product would lose that."""
        for side, factor in (("inner", self.inner), ("outer", self.outer)):
            where = f"{path}.{side}".lstrip(".")
            if isinstance(factor, SplitLayer):
                factor._check_factors(where)
                continue
            if isinstance(factor, PivotedRows):
                where, factor = f"{where}.mixing", factor.mixing
            if isinstance(factor, CompactLinear):
                continue
            matrices, reason = _of_weight(factor)
            if not matrices:
                reason = f"a {type(factor).__name__} without a weight of its own"
            if side == "inner" and getattr(factor, "bias", None) is not None:
                reason = "it has a bias"
            if reason:
                raise InvalidValueError(
                    f"{where!r} is not as the split made it: {reason}. Expected plain factors; "
                    "merge into them whatever was added to them."
                )

    def _pivot(self, outer: NDArray[Any], inner: NDArray[Any]) -> None:
        """Fill the pivoted form with the product of two factors."""
        kept, mixing, place = pivoted(outer, inner)
        weight = self.inner.weight
        weight.copy_(to_tensor(kept, weight))
        self.outer.mixing.weight.copy_(to_tensor(mixing, weight))
        self.outer.place.copy_(torch.from_numpy(place))

    @property
    def form(self) -> str:
        """The `rmtspec.terms.Form` in which the product is stored."""
        if isinstance(self.outer, PivotedRows):
            return Form.PIVOTED.value
        extent = getattr(self.outer, "kernel_size", (1,))
        return (Form.SPATIAL if max(extent) > 1 else Form.PLAIN).value

    @classmethod
    @abc.abstractmethod
    def _factors(cls, layer: Any, rank: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        """Return the inner and the outer module on the meta device."""

    @classmethod
    def _spatial(cls, layer: Any, rank: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        """Return those of two kernels along one axis each, on the meta device."""
        raise InvalidTypeError(
            f"A {type(layer).__name__} has no form 'spatial'; expected a Conv2d without groups."
        )

    def _exact(self, matrices: list[NDArray[Any]]) -> list[SplitFactors]:
        """Return factors of the matrices, in the layer's form, that lose nothing."""
        rank = max(map(numerical_rank, matrices))
        return [split(matrix, rank) for matrix in matrices]

    def _arranged(self, inner: NDArray[Any], outer: NDArray[Any]) -> list[tuple[Any, NDArray[Any]]]:
        """Return each factor module with the values of its weight, from the matrix's factors."""
        return [(self.inner, inner), (self.outer, outer)]

    @abc.abstractmethod
    def _product(self, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
        """Return the weight of the layer from those of its factors."""


def factors_are_used(module: nn.Module, inputs: Any, output: Any) -> None:
    """Do nothing, as a forward hook on a split layer in a TransformerEncoderLayer.

    In evaluation mode that layer takes a short cut: it reads `weight`, here the product of the
    factors, and multiplies by it. It does not do so if a child has a hook.
    """


def numerical_rank(matrix: NDArray[Any]) -> int:
    """Return the rank of a matrix, but for the rounding of its dtype; at least 1."""
    values = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    epsilon = float(np.finfo(matrix.dtype).eps) if matrix.dtype.name != "bfloat16" else 2.0**-7
    noise = epsilon * float(values[0]) * math.sqrt(max(matrix.shape))
    return max(1, int(np.count_nonzero(values > noise)))


def kind_of(layer: nn.Module) -> str:
    """Return the `rmtspec.terms.Kind` of a layer's weight, or ""."""
    matrices, _ = _of_weight(layer)
    return matrices[0].kind if matrices else ""


def _of_weight(layer: object) -> tuple[list[WeightMatrix], str]:
    """Return the matrices of a layer's weight, and why they cannot be split, or ""."""
    known = matrices_of(layer) if isinstance(layer, nn.Module) else []
    matrices = [m for m in known if m.key == "weight"]
    return matrices, next(filter(None, (m.reason or m.unsplittable for m in matrices)), "")


def memory_format(weight: torch.Tensor) -> torch.memory_format:
    """Return the layout of a weight in memory; a convolution's may have its channels last."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.ndim)
    if last is None or weight.is_contiguous() or not weight.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def hand_over(old: nn.Module, new: nn.Module) -> None:
    """Copy the plain attributes, hooks and training flag of `old` to `new`."""
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
