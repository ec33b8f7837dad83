"""The matrices that each type of layer holds; which cannot be read or split, and why."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._weights.axes import Axes, axes_of
from rmtspec.adapters.torch._weights.tensors import readable
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import MOST_EXPERTS, Kind, Why

#: The layers whose weight is one matrix, or one per group.
_KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind.LINEAR,
    nn.Embedding: Kind.EMBEDDING,
    nn.Conv1d: Kind.CONV1D,
    nn.Conv2d: Kind.CONV2D,
    nn.Conv3d: Kind.CONV3D,
    nn.modules.conv._ConvTransposeNd: Kind.TRANSPOSED_CONV,
}
#: Classes that write the forward of their family anew, without another result.
_SAME_FORWARD = ("transformers.models.falcon.modeling_falcon.FalconLinear",)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_GATES = {"LSTM": "ifgo", "LSTMCell": "ifgo", "GRU": "rzn", "GRUCell": "rzn"}
#: Matches the names of parameters that are added, whatever their shape: biases of experts.
_BIAS = re.compile(r"(^|_)bias(es)?$|^b_[A-Z]$")
#: The name of a model that is a single layer.
ROOT = "(model)"


def path_of(matrix: WeightMatrix) -> str:
    """Return the path of a matrix's layer, as `get_submodule` takes it."""
    return "" if matrix.layer == ROOT else matrix.layer


def matrices_of(layer: nn.Module) -> list[WeightMatrix]:
    """Return the matrices of a layer's own parameters, without those of its children."""
    return list(matrices_in_module(ROOT, "", layer, ""))


def is_plain(parameter: torch.Tensor) -> bool:
    return type(parameter) in (torch.Tensor, nn.Parameter)


def unreadable(parameter: Any, *, codes: bool = False) -> str:
    """Return why a parameter cannot be read, or ""; `codes` allows any dtype, and empty ones."""
    family = type(parameter).__name__
    if not isinstance(parameter, torch.Tensor):
        return Why.NOT_A_TENSOR.words(type=family)
    dtype = parameter.dtype
    if hasattr(parameter, "placements"):
        return Why.SHARDED.words()
    if parameter.is_quantized:
        return Why.QUANTISED.words(what=f"quantised ({dtype})")
    if parameter.layout is not torch.strided:
        return Why.SPARSE.words(layout=parameter.layout)
    if parameter.is_meta:
        return Why.META.words()
    if parameter.is_complex() and not codes:
        return Why.COMPLEX.words(dtype=dtype)
    if not parameter.is_floating_point() and not codes:
        return Why.QUANTISED.words(what=f"{dtype}: codes, not weights")
    if not codes and not readable(dtype):
        return Why.UNREADABLE.words(dtype=dtype)
    if not is_plain(parameter):
        return Why.SUBCLASS.words(type=family)
    return "" if codes or parameter.numel() else Why.EMPTY.words()


def matrices_in_module(
    name: str, path: str, module: nn.Module, owner: str
) -> Iterator[WeightMatrix]:
    """Yield the matrices of a module's own parameters."""
    prefix = f"{path}." if path else ""
    computed = _computed(module)
    for short, reason in computed.items():
        shown = name if short == "weight" else prefix + short
        yield WeightMatrix(shown, "", name, prefix + short, shape=(), reason=reason)
    for short, parameter in module.named_parameters(recurse=False):
        if any(short in (f"{of}_orig", f"{of}_g", f"{of}_v") for of in computed):
            continue  # a weight is computed from it
        key = prefix + short
        base = WeightMatrix(
            name, Kind.PARAMETER, name, key, shape=tuple(parameter.shape), parameter=parameter
        )
        reason = unreadable(parameter)
        if reason == Why.META and hasattr(module, "_hf_hook"):
            reason = Why.OFFLOADED.words()
        added = parameter.ndim > 1 and _BIAS.search(short) is not None
        if parameter.ndim < 2 or added:
            if reason in ("", Why.META, Why.OFFLOADED):
                shapes = Why.BIAS if added else Why.VECTOR if parameter.ndim else Why.NUMBER
                reason = shapes.words()
            yield replace(base, name=key, kind="", reason=reason)
            continue
        for matrix in _parts(base, short, module, owner):
            yield replace(matrix, reason=matrix.reason or reason)


def _computed(module: nn.Module) -> dict[str, str]:
    """Return the weights of a module that are not parameters of its own, each with the reason."""
    reasons: dict[str, str] = {}
    if nn.utils.parametrize.is_parametrized(module):
        reasons |= dict.fromkeys(module.parametrizations, Why.PARAMETRIZED.words())  # type: ignore[arg-type]
    held = module._parameters
    for parameter in held:
        short, _, end = parameter.rpartition("_")
        if short and short not in held and (end == "orig" or (end == "g" and f"{short}_v" in held)):
            reasons[short] = Why.COMPUTED.words()
    packed = callable(getattr(type(module), "weight", None))  # a method; ours is a property
    if packed or "_all_weight_values" in module._modules:
        reasons["weight"] = Why.QUANTISED.words(what="quantised: its weight is packed")
    return reasons


def _parts(base: WeightMatrix, short: str, module: Any, owner: str) -> Iterator[WeightMatrix]:
    """Yield the matrices in one readable parameter of two dimensions or more."""
    family = next((c for c in _KINDS if short == "weight" and isinstance(module, c)), None)
    if family is not None:
        kind, unsplittable = _KINDS[family], owner or _own_forward(module, family)
        if kind is Kind.TRANSPOSED_CONV:
            unsplittable = Why.TRANSPOSED_CONV.words()
        if kind is Kind.EMBEDDING and module.max_norm is not None:
            unsplittable = Why.MAX_NORM.words()
        base = replace(base, kind=kind, unsplittable=unsplittable)
        yield from _groups(base, module.groups) if kind.family is Kind.CONV else [base]
    elif short == "weight" and _is_transformers_conv1d(module):
        base = replace(base, kind=Kind.TRANSPOSED_LINEAR, unsplittable=_own_forward(module, None))
        yield replace(base, shape=base.shape[::-1], transposed=True)
    elif isinstance(module, nn.MultiheadAttention) and short in _ATTENTION:
        unsplittable = Why.READ_BY_LAYER.words(type="MultiheadAttention")
        base = replace(base, kind=Kind.ATTENTION, unsplittable=unsplittable)
        if short == "in_proj_weight":
            side = module.embed_dim
            for index, letter in enumerate("qkv"):
                rows = slice(index * side, (index + 1) * side)
                yield _part(base, f"{base.name}[{letter}]", rows)
        else:
            yield replace(base, name=f"{base.name}[{short[0]}]")
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        yield from _gates(base, short, module)
    else:
        yield from _unknown(base, short, module)


def _own_forward(module: nn.Module, family: type[nn.Module] | None) -> str:
    """Return why a module may do more than the forward of its family, or ""."""
    if "forward" in module.__dict__:
        return Why.FORWARD_REPLACED.words()
    own = family is not None and type(module).forward is not family.forward
    if own and f"{type(module).__module__}.{type(module).__name__}" not in _SAME_FORWARD:
        return Why.OWN_FORWARD.words(type=type(module).__name__)
    more = type(module).get_extra_state is not nn.Module.get_extra_state
    if more or set(module._parameters) - {"weight", "bias"} or module._buffers or module._modules:
        return Why.HOLDS_MORE.words(type=type(module).__name__)
    return ""


def _is_transformers_conv1d(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _part(base: WeightMatrix, name: str, part: slice | int) -> WeightMatrix:
    sides = tuple(base.parameter.shape)
    sides = (part.stop - part.start, *sides[1:]) if isinstance(part, slice) else sides[1:]
    return replace(base, name=name, part=part, shape=(sides[0], math.prod(sides[1:])))


def _groups(base: WeightMatrix, groups: int) -> Iterator[WeightMatrix]:
    """Yield the matrix of each group of a convolution: a block of the first dimension."""
    each = base.parameter.shape[0] // groups
    if groups > 1 and each == 1:
        yield replace(base, reason=Why.DEPTHWISE.words())
        return
    for group in range(groups):
        name = base.name if groups == 1 else f"{base.name}[{group}]"
        yield _part(base, name, slice(group * each, (group + 1) * each))


def _gates(base: WeightMatrix, short: str, module: nn.Module) -> Iterator[WeightMatrix]:
    unsplittable = Why.READ_BY_LAYER.words(type=type(module).__name__)
    base = replace(base, name=base.key, kind=Kind.RECURRENT, unsplittable=unsplittable)
    gates = next((_GATES[c.__name__] for c in type(module).__mro__ if c.__name__ in _GATES), "")
    if short.startswith("weight_hr") or not gates:
        yield base
        return
    each = base.parameter.shape[0] // len(gates)
    for index, gate in enumerate(gates):
        yield _part(base, f"{base.key}[{gate}]", slice(index * each, (index + 1) * each))


def _unknown(base: WeightMatrix, short: str, module: nn.Module) -> Iterator[WeightMatrix]:
    """Yield what a module of unknown type may hold: a matrix, or what its axes say, or experts."""
    family, (count, *sides) = type(module).__name__, base.parameter.shape
    name = base.name if short == "weight" else base.key
    base = replace(base, name=name, unsplittable=Why.READ_BY_LAYER.words(type=family))
    words = f"{base.key} {family}".lower()
    if len(sides) > 1 and (axes := axes_of(module, short, 1 + len(sides))) is not None:
        yield from _unfolded(base, axes)
    elif len(sides) == 1:
        yield base
    elif len(sides) == 2 and (count == 1 or "expert" in words or "moe" in words):
        if count > MOST_EXPERTS:
            why = Why.TOO_MANY_PARTS.words(count=count, most=MOST_EXPERTS)
            yield replace(base, unsplittable="", reason=why)
            return
        if count > 1:
            base = replace(base, kind=Kind.EXPERT)
        for index in range(count):
            yield _part(base, f"{name}[{index}]", index)
    else:
        reason = Why.UNKNOWN_AXES.words(ndim=base.parameter.ndim, type=family, name=short)
        yield replace(base, unsplittable="", reason=reason)


def _unfolded(base: WeightMatrix, axes: Axes) -> Iterator[WeightMatrix]:
    """Yield the matrix, or the stack of matrices, that a layer makes of the axes of a weight."""
    sides = base.parameter.shape
    outputs, inputs = (math.prod(sides[i] for i in axis) for axis in (axes.outputs, axes.inputs))
    base = replace(base, axes=axes, shape=(outputs, inputs))
    if axes.stack is None:
        yield replace(base, kind=Kind.ATTENTION)
        return
    for index in range(sides[axes.stack]):
        yield replace(base, name=f"{base.name}[{index}]", part=index)
