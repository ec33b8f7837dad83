"""Factors of split layers stored in fewer bytes."""

import copy
from typing import Any

import torch
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
        if stored_as(layer) not in ("", dtype):
            raise InvalidValueError(
                f"The factors of {path!r} are stored in {stored_as(layer)} already, not in "
                f"{dtype}; expected those that `prune` makes. Quantize the model as it was before."
            )
    result = model if inplace else copy.deepcopy(model)
    for path in paths:
        store(result.get_submodule(path), dtype)
    return result


def store(layer: Any, dtype: str) -> None:
    """Store the factors of one split linear layer so, in place.

    The second factor is fitted anew to the first as it is stored, which makes up for a part of the
    rounding.
    """
    outer: Any = layer.outer
    pivoted = isinstance(outer, PivotedRows)
    second: Any = outer.mixing if pivoted else outer
    if isinstance(layer.inner, CompactLinear):
        return
    inner = CompactLinear.of(layer.inner, dtype)
    if not second.weight.is_meta:
        with torch.no_grad():
            fitted = _refitted(second.weight, layer.inner.weight, inner.weight)
        second = _with_weight(second, fitted)
    layer.inner = inner
    compact = CompactLinear.of(second, dtype)
    if pivoted:
        outer.mixing = compact
    else:
        layer.outer = compact


def _refitted(second: torch.Tensor, first: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Return the factor whose product with `stored` is nearest to ``second @ first``."""
    wide, known = (t.detach().to("cpu", torch.float64) for t in (first, stored))
    gram = known @ known.T
    gram += 1e-12 * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
    turned = torch.linalg.solve(gram, known @ wide.T).T  # first is about turned @ stored
    fitted: torch.Tensor = second.detach().cpu().double() @ turned
    rounded = fitted.to(second)
    return rounded if bool(torch.isfinite(rounded).all()) else second.detach()


def _with_weight(layer: Any, weight: torch.Tensor) -> nn.Linear:
    """Return a linear layer with that weight and the same bias."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.register_parameter("bias", layer._parameters.get("bias"))
    return made


def stored_as(layer: Any) -> str:
    """Return how the factors of a split layer are stored: "int8", "bfloat16", or ""."""
    codes = getattr(layer.inner, "codes", None)
    if codes is None:
        return ""
    return next(name for name, dtype in STORED.items() if dtype == codes.dtype)
