"""Factors of split layers stored in fewer bytes."""

import copy
from typing import Any

from torch import nn

from rmtspec.adapters.torch._layers.compact_linear import STORED, CompactLinear
from rmtspec.adapters.torch._layers.pivoted_rows import PivotedRows
from rmtspec.adapters.torch._layers.split_layers import SplitLinear
from rmtspec.adapters.torch._weights.matrices import check_model
from rmtspec.adapting import checks
from rmtspec.errors import InvalidValueError


def quantize_factors(model: nn.Module, dtype: str = "int8", *, inplace: bool = False) -> Any:
    """Store the factors of split linear layers in int8 or bfloat16.

    The layers compute in the dtype of their inputs: the codes are converted when they are used. The
    result is saved, loaded and merged like any other, and trains no more. Split convolutions and
    embeddings stay as they are.

    Parameters
    ----------
    model : torch.nn.Module
        With split layers, from `prune`.
    dtype : {"int8", "bfloat16"}
        "int8" has one scale for each row, which the largest entry of the row sets.
    inplace : bool
        Change `model` itself.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    InvalidValueError
        No linear layer is split, or the factors of one are not as the split made them.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> smaller, _ = rt.prune(rt.MLP([64, 100, 50, 10]), bulk_keep=0.2)
    >>> rt.quantize_factors(smaller).layers[0].inner
    CompactLinear(64 -> 12, torch.int8)
    """
    check_model(model)
    checks.choice(dtype, "dtype", tuple(STORED))
    paths = [path for path, m in model.named_modules() if isinstance(m, SplitLinear)]
    if not paths:
        raise InvalidValueError(
            f"This {type(model).__name__} has no split linear layer; expected a model from `prune`."
        )
    for path in paths:
        layer: Any = model.get_submodule(path)
        layer._check_factors(path)
    result = model if inplace else copy.deepcopy(model)
    for path in paths:
        store(result.get_submodule(path), dtype)
    return result


def store(layer: Any, dtype: str) -> None:
    """Store the factors of one split linear layer so, in place."""
    for side in ("inner", "outer"):
        factor = getattr(layer, side)
        if isinstance(factor, PivotedRows):
            if not isinstance(factor.mixing, CompactLinear):
                factor.mixing = CompactLinear.of(factor.mixing, dtype)
        elif not isinstance(factor, CompactLinear):
            setattr(layer, side, CompactLinear.of(factor, dtype))


def stored_as(layer: Any) -> str:
    """Return how the factors of a split layer are stored: "int8", "bfloat16", or ""."""
    codes = getattr(layer.inner, "codes", None)
    if codes is None:
        return ""
    return next(name for name, dtype in STORED.items() if dtype == codes.dtype)
