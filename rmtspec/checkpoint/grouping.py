"""Which matrices the tensors of a checkpoint are: by name, shape, dtype, and the config beside."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec.checkpoint.fused import parts_of
from rmtspec.checkpoint.stored import Part, StoredMatrix, StoredTensor, layer_of, named_dtype
from rmtspec.terms import Kind, Why

#: The last part of the name of a layer that looks rows up.
_EMBEDDING = re.compile(
    r"embed(?!_out)|(^|_)(emb|wte|wpe)(_|$)|^shared$|^relative_attention_bias$", re.IGNORECASE
)
#: Last parts of names of tensors that are no weights, and what they are.
_NO_WEIGHT = (
    (re.compile(r"(^|_)bias$"), Why.BIAS),
    (
        re.compile(
            r"^(position_ids|inv_freq|original_inv_freq|.*mask|(cos|sin)_cached|freqs_cis"
            r"|relative_position_index|running_mean|running_var|num_batches_tracked)$"
        ),
        Why.BUFFER,
    ),
    (re.compile(r"(^|_)(scales?|scale_inv|zeros|qzeros|zero_point|absmax)$"), Why.SCALES),
)


def group(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], *, parts: bool = True
) -> tuple[dict[str, StoredMatrix], list[dict[str, str]]]:
    """Return the matrices by name, and "name" and "reason" of the tensors that are none.

    With `parts` a tensor that holds several matrices (experts, a fused qkv) gives each of them;
    without, only stacks do, and what is one layer stays one matrix.
    """
    matrices: dict[str, StoredMatrix] = {}
    skipped: list[dict[str, str]] = []
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        reason = _no_matrix(tensor) or _block_scaled(name, tensor, shapes)
        found = [] if reason else _matrices(tensor, config, shapes, parts)
        if not found:
            reason = reason or Why.VECTOR.words()
            skipped.append({"name": name, "reason": reason})
        for matrix in found:
            if matrix.name in matrices:  # "w[0]": the first of a stack, and a tensor called so
                skipped.append({"name": matrix.name, "reason": Why.SECOND_MATRIX.words()})
            matrices.setdefault(matrix.name, matrix)
    return matrices, skipped


def _matrices(
    tensor: StoredTensor,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    parts: bool,
) -> list[StoredMatrix]:
    shape = tensor.shape
    found: Iterable[Part] = ()
    if parts or len(shape) > 2:
        found = parts_of(tensor.name, shape, config, shapes)
    if not found and shape[0] == 1 and len(shape) > 2 and "weight" not in _last(tensor.name):
        sides = tuple(side for side in shape if side > 1)  # a parameter with a batch side
        if len(sides) < 2:
            return []
        if len(sides) == 2:
            found = [Part("0", Kind.PARAMETER, view=sides, box=(None, None), shape=sides)]
    if found:
        return [
            StoredMatrix(f"{tensor.name}[{part.label}]", part.kind, tensor, part) for part in found
        ]
    kind = Kind.CONV if len(shape) > 2 else Kind.MATRIX
    if len(shape) == 2 and _EMBEDDING.search(layer_of(tensor.name).rpartition(".")[2]):
        kind = Kind.EMBEDDING
    return [StoredMatrix(tensor.name, kind, tensor)]


def _no_matrix(tensor: StoredTensor) -> str:
    """Return the reason why a tensor is no matrix, or ""."""
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
    last = _last(tensor.name)
    return next((why.words() for pattern, why in _NO_WEIGHT if pattern.search(last)), "")


def _block_scaled(name: str, tensor: StoredTensor, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return why entries of a byte mean nothing without the scales beside them, or ""."""
    if named_dtype(tensor.numpy_name).itemsize > 1:
        return ""
    for suffix in ("_scale_inv", "_scale"):
        scale = shapes.get(name + suffix)
        if scale is not None and int(np.prod(scale)) > 1:
            return Why.SCALED.words(name=name + suffix)
    return ""


def _last(name: str) -> str:
    return name.rpartition(".")[2]
