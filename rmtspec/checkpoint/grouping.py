"""Which matrices the tensors of a checkpoint hold, judged by name, shape, dtype and config."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec.checkpoint.fused import Sections, parts_of, stack_by_name
from rmtspec.checkpoint.stored import Part, StoredMatrix, StoredTensor, layer_of, named_dtype
from rmtspec.terms import Kind, Why

#: Matrices in a stack; more would each be a row of the report, and are no experts of a model.
MOST_EXPERTS = 10_000
_Shapes = Mapping[str, tuple[int, ...]]
#: Matches the last part of the name of a layer that looks rows up.
_EMBEDDING = re.compile(
    r"embed(?!_out)|(^|_)(embd?|wte|wpe)(_|$)|^shared$|^relative_attention_bias$", re.IGNORECASE
)
#: Matches last parts of the names of tensors that are not weights, with what they are instead.
_NOT_WEIGHTS = (
    (re.compile(r"(^|_)bias(es)?$|^b_[A-Z]$"), Why.BIAS),
    (re.compile(
        r"^(position_ids|inv_freq|original_inv_freq|.*mask|(cos|sin)_cached|freqs_cis"
        r"|relative_position_index|running_mean|running_var|num_batches_tracked)$"
    ), Why.BUFFER),
    (re.compile(r"(^|_)(scales?|scale_inv|zeros|qzeros|zero_point|absmax)$"), Why.SCALES),
)  # fmt: skip


def group(
    tensors: Mapping[str, StoredTensor],
    config: Mapping[str, Any],
    *,
    parts: bool = True,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> tuple[dict[str, StoredMatrix], list[dict[str, str]]]:
    """Return the matrices by name, and "name" and "reason" of the tensors that are not matrices.

    With `parts`, a tensor that holds several matrices (experts, a fused qkv) gives each of them.
    Without, only stacks are divided, and a fused layer stays one matrix. `refused` has the reasons
    of tensors that are known to be none.
    """
    matrices: dict[str, StoredMatrix] = {}
    skipped: list[dict[str, str]] = []
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    sections = Sections(config)
    for name, tensor in tensors.items():
        reason = refused.get(name) or _not_a_matrix(tensor)
        reason = reason or _block_scaled(name, tensor, shapes)
        held = [] if reason else _matrices(tensor, sections, shapes, parts)
        if len(held) == 1 and held[0].kind == Kind.CONV and _of_unknown_axes(tensor):
            held, reason = [], Why.AXES_OF_FILE.words(ndim=len(tensor.shape))
        if not held:
            skipped.append({"name": name, "reason": reason or Why.VECTOR.words()})
        for matrix in held:
            if matrix.name in matrices:  # "w[0]": the first of a stack, and a tensor of that name
                skipped.append({"name": matrix.name, "reason": Why.SECOND_MATRIX.words()})
            matrices.setdefault(matrix.name, matrix)
    return matrices, skipped


def _matrices(
    tensor: StoredTensor, config: Sections, shapes: _Shapes, divide: bool
) -> list[StoredMatrix]:
    name, shape = tensor.name, tensor.shape
    parts: list[Part] = []
    if divide or len(shape) > 2:
        parts = parts_of(name, shape, config, shapes)
    if not parts and shape[0] == 1 and len(shape) > 2 and "weight" not in _last(name):
        sides = tuple(side for side in shape if side > 1)  # a parameter with a batch dimension
        if len(sides) < 2:
            return []
        if len(sides) == 2:
            parts = [Part("0", Kind.PARAMETER, view=sides, box=(None, None), shape=sides)]
    if parts:
        return [StoredMatrix(f"{name}[{part.label}]", part.kind, tensor, part) for part in parts]
    kind = Kind.CONV if len(shape) > 2 else Kind.MATRIX
    if len(shape) == 2 and _EMBEDDING.search(_last(layer_of(name))):
        kind = Kind.EMBEDDING
    return [StoredMatrix(name, kind, tensor)]


def _of_unknown_axes(tensor: StoredTensor) -> bool:
    """Tell whether a tensor of 3 dimensions is not known to be a kernel: those are a "weight"."""
    last = _last(tensor.name)
    return len(tensor.shape) == 3 and not re.search(r"weight|kernel|conv|filter", last)


def _not_a_matrix(tensor: StoredTensor) -> str:
    """Return why a tensor is not a matrix, or ""."""
    shape = tensor.shape
    if not tensor.numpy_name:
        return Why.UNSUPPORTED.words(dtype=f"dtype {tensor.dtype}", hint="; convert it to F32")
    dtype = named_dtype(tensor.numpy_name)
    if dtype.kind in "iub":
        return Why.WHOLE_NUMBERS.words(dtype=dtype)
    if not _checks.is_float(dtype):
        hint = "; numpy's formats lose bfloat16, use safetensors" if dtype.kind == "V" else ""
        return Why.NOT_REAL.words(dtype=dtype, hint=hint)
    if 0 in shape:
        return Why.EMPTY.words()
    if len(shape) < 2:
        return (Why.VECTOR if shape else Why.NUMBER).words()
    if len(shape) > 5:
        return Why.DIMENSIONS.words(ndim=len(shape))
    if len(shape) == 3 and shape[0] > MOST_EXPERTS and stack_by_name(tensor.name):
        return Why.TOO_MANY_PARTS.words(count=shape[0], most=MOST_EXPERTS)
    last = _last(tensor.name)
    return next((why.words() for pattern, why in _NOT_WEIGHTS if pattern.search(last)), "")


def _block_scaled(name: str, tensor: StoredTensor, shapes: _Shapes) -> str:
    """Return why one-byte entries are meaningless if another tensor holds their scales, or ""."""
    if named_dtype(tensor.numpy_name).itemsize > 1:
        return ""
    for suffix in ("_scale_inv", "_scale"):
        scale = shapes.get(name + suffix)
        if scale is not None and int(np.prod(scale)) > 1:
            return Why.SCALED.words(name=name + suffix)
    return ""


def _last(name: str) -> str:
    return name.rpartition(".")[2]
