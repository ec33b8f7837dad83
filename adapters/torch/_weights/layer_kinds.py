"""Which matrices a layer holds, by its type; what cannot be read or split, and why."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._weights.tensors import readable
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix

_CONV = {nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d"}
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_GATES = {"LSTM": "ifgo", "LSTMCell": "ifgo", "GRU": "rzn", "GRUCell": "rzn"}
_VECTOR = "1 dimension: a vector has no spectrum"
#: The name of a model that is a single layer.
ROOT = "(model)"


def matrices_of(layer: nn.Module) -> list[WeightMatrix]:
    """Return the matrices of the parameters that a layer itself holds, its children's not."""
    return list(matrices_in_module(ROOT, "", layer, ""))


def is_plain(parameter: torch.Tensor) -> bool:
    return type(parameter) in (torch.Tensor, nn.Parameter)


def unreadable(parameter: Any, *, codes: bool = False) -> str:
    """Return why a parameter cannot be read as numbers, or ""; integers can be with `codes`."""
    if not isinstance(parameter, torch.Tensor):
        return f"a {type(parameter).__name__}, not a tensor"
    if hasattr(parameter, "placements"):
        return "DTensor: sharded over devices; gather it first (full_tensor)"
    if parameter.is_quantized:
        return f"quantised ({parameter.dtype}); analyse the model before quantising it"
    if parameter.layout is not torch.strided:
        return f"sparse ({parameter.layout}); convert it with to_dense"
    if parameter.is_meta:
        return "on the meta device: it has no values; load the weights first"
    if parameter.is_complex() and not codes:
        return f"{parameter.dtype}: the laws used here are those of real matrices"
    if not parameter.is_floating_point() and not codes:
        return f"{parameter.dtype}: codes, not weights; analyse the model before quantising it"
    if not codes and not readable(parameter.dtype):
        return f"{parameter.dtype} cannot be read here; convert it to bfloat16 or float32 first"
    if not is_plain(parameter):
        return f"{type(parameter).__name__}: a tensor subclass, whose storage is not known here"
    if parameter.numel() == 0:
        return "empty"
    return ""


def matrices_in_module(
    name: str, path: str, module: nn.Module, owner: str
) -> Iterator[WeightMatrix]:
    """Yield the matrices of the parameters that a module itself holds."""
    prefix = f"{path}." if path else ""
    computed = _computed(module)
    for short, reason in computed.items():
        shown = name if short == "weight" else prefix + short
        yield WeightMatrix(shown, "", name, prefix + short, (), reason=reason)
    for short, parameter in module.named_parameters(recurse=False):
        if any(short in (f"{of}_orig", f"{of}_g", f"{of}_v") for of in computed):
            continue  # what a weight is computed from
        key = prefix + short
        base = WeightMatrix(
            name, "parameter", name, key, tuple(parameter.shape), parameter=parameter
        )
        if parameter.ndim < 2:
            reason = unreadable(parameter)
            words = reason if "meta" not in reason and reason else _vector(parameter.ndim)
            yield replace(base, name=key, kind="", reason=words)
            continue
        reason = unreadable(parameter)
        for matrix in _parts(base, short, module, owner):
            yield replace(matrix, reason=matrix.reason or reason)


def _vector(ndim: int) -> str:
    return _VECTOR if ndim else "0 dimensions: a number has no spectrum"


def _computed(module: nn.Module) -> dict[str, str]:
    """Return which weights of a module are no parameters of its own, and why."""
    found = {}
    if nn.utils.parametrize.is_parametrized(module):
        for short in module.parametrizations:  # type: ignore[union-attr]
            found[short] = (
                "parametrized: its weight is computed anew at each use; call "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
    held = module._parameters
    for parameter in held:
        short, _, end = parameter.rpartition("_")
        if short and short not in held and (end == "orig" or (end == "g" and f"{short}_v" in held)):
            found[short] = (
                "weight_norm, spectral_norm or pruning computes this weight before each forward; "
                "call torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove first"
            )
    packed = callable(getattr(type(module), "weight", None))  # a method; ours is a property
    if packed or "_all_weight_values" in module._modules:
        found["weight"] = "quantised: its weight is packed; analyse the model before quantising it"
    return found


def _parts(base: WeightMatrix, short: str, module: nn.Module, owner: str) -> Iterator[WeightMatrix]:
    """Yield the matrices in one readable parameter of two dimensions or more."""
    parameter, name = base.parameter, base.name
    if short == "weight" and isinstance(module, nn.Linear):
        whole = owner or _own_forward(module, nn.Linear)
        yield replace(base, kind="linear", whole=whole)
    elif short == "weight" and _is_transformers_conv1d(module):
        rows, columns = parameter.shape[1], parameter.shape[0]
        yield replace(
            base,
            kind="transposed linear",
            shape=(rows, columns),
            transposed=True,
            whole=_own_forward(module, None),
        )
    elif short == "weight" and isinstance(module, nn.Embedding):
        whole = _own_forward(module, nn.Embedding)
        if module.max_norm is not None:
            whole = "max_norm rescales the rows of its weight at each use"
        yield replace(base, kind="embedding", whole=whole)
    elif short == "weight" and isinstance(module, tuple(_CONV)):
        family = next(c for c in _CONV if isinstance(module, c))
        whole = _own_forward(module, family)
        yield from _groups(base, _CONV[family], int(module.groups), whole)  # type: ignore[arg-type]
    elif short == "weight" and isinstance(module, _CONV_TRANSPOSE):
        yield from _groups(base, "transposed conv", module.groups, "a transposed convolution")
    elif isinstance(module, nn.MultiheadAttention):
        whole = "MultiheadAttention reads this weight in its own forward"
        if short == "in_proj_weight":
            side = module.embed_dim
            for index, letter in enumerate("qkv"):
                rows = slice(index * side, (index + 1) * side)
                yield _part(base, f"{name}[{letter}]", "attention", rows, whole)
        elif short in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            yield replace(base, name=f"{name}[{short[0]}]", kind="attention", whole=whole)
        else:
            yield from _unknown(base, short, module)
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        yield from _gates(base, short, module)
    else:
        yield from _unknown(base, short, module)


def _own_forward(module: nn.Module, family: type[nn.Module] | None) -> str:
    """Return why a module may do more than its family's forward, or ""."""
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance (accelerate's hooks do that)"
    if family is not None and type(module).forward is not family.forward:
        return f"{type(module).__name__} has a forward of its own"
    if set(module._parameters) - {"weight", "bias"} or module._buffers or module._modules:
        return f"this {type(module).__name__} holds more than a weight and a bias"
    return ""


def _is_transformers_conv1d(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _part(
    base: WeightMatrix, name: str, kind: str, part: slice | int, whole: str = ""
) -> WeightMatrix:
    sides = tuple(base.parameter.shape)
    sides = (part.stop - part.start, *sides[1:]) if isinstance(part, slice) else sides[1:]
    shape = (sides[0], math.prod(sides[1:]))
    return replace(base, name=name, kind=kind, part=part, shape=shape, whole=whole)


def _groups(base: WeightMatrix, kind: str, groups: int, whole: str) -> Iterator[WeightMatrix]:
    """Yield the matrix of each group of a convolution; the first dimension is in groups."""
    each = base.parameter.shape[0] // groups
    if groups > 1 and each == 1:
        reason = "depthwise: each output has a kernel of its own, and a vector has no spectrum"
        yield replace(base, kind=kind, reason=reason)
        return
    for group in range(groups):
        name = base.name if groups == 1 else f"{base.name}[{group}]"
        yield _part(base, name, kind, slice(group * each, (group + 1) * each), whole)


def _gates(base: WeightMatrix, short: str, module: nn.Module) -> Iterator[WeightMatrix]:
    family = type(module).__name__
    whole = f"{family} reads this weight in its own forward"
    gates = next((_GATES[c.__name__] for c in type(module).__mro__ if c.__name__ in _GATES), "")
    if short.startswith("weight_hr") or not gates:
        yield replace(base, name=base.key, kind="recurrent", whole=whole)
        return
    each = base.parameter.shape[0] // len(gates)
    for index, gate in enumerate(gates):
        rows = slice(index * each, (index + 1) * each)
        yield _part(base, f"{base.key}[{gate}]", "recurrent", rows, whole)


def _unknown(base: WeightMatrix, short: str, module: nn.Module) -> Iterator[WeightMatrix]:
    """Yield what a module of unknown type holds: a matrix, a stack of experts, or neither."""
    family = type(module).__name__
    whole = f"{family} reads this weight in its own forward"
    name = base.name if short == "weight" else base.key
    ndim = base.parameter.ndim
    if ndim == 2:
        yield replace(base, name=name, whole=whole)
    elif ndim == 3:
        words = f"{base.key} {family}".lower()
        several = base.parameter.shape[0] > 1
        kind = "expert" if several and ("expert" in words or "moe" in words) else "parameter"
        for index in range(base.parameter.shape[0]):
            yield _part(base, f"{name}[{index}]", kind, index, whole)
    else:
        reason = f"{ndim} dimensions in a {family}: no layer known here"
        yield replace(base, name=name, reason=reason)
