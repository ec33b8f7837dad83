"""How long layers take on this machine, as they are and split at some ranks."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._layers.split_layers import SplitLinear
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.adapting import (
    Costs,
    Form,
    Kind,
    Pattern,
    Progress,
    Selection,
    checks,
    measured_cost,
    versions,
)
from rmtspec.errors import InvalidValueError

#: Seconds that the repeats of one layer take at most, after a first call.
_SECONDS = 0.05
#: Parts of the smaller side whose ranks are measured.
_PARTS = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1.0)


def measure_costs(
    model: nn.Module,
    *,
    tokens: int = 1,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    progress: Progress | None = None,
) -> Costs:
    """Measure how long each shape of linear layer takes, dense and split, on this machine.

    The times are those of a forward pass with the number of threads that torch has now, in the
    model's dtype and on its device. Splits are measured in both forms at nine ranks, in turn with
    the dense layer, and the medians are kept; ranks between are interpolated. Use the result to see
    which ranks pay (`Costs.rank_that_pays`), or for a budget of time: ``prune(...,
    size="latency", costs=costs)``.

    Parameters
    ----------
    model : torch.nn.Module
    tokens : int
        Rows of the input: 1 for generating token by token, the number of tokens in a batch for
        reading a prompt.
    include, exclude : str, pattern, predicate on (name, module), or several
        Which layers.
    progress : callable, optional
        Called with the number of shapes measured, of all, and the shape.

    Returns
    -------
    Costs

    Raises
    ------
    InvalidValueError
        No linear layer is left to measure.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> costs = rt.measure_costs(rt.MLP([64, 100, 50]))
    >>> sorted(costs.table)
    [(50, 100), (100, 64)]
    >>> costs.of((100, 64)).dense > 0
    True
    """
    checks.integer(tokens, "tokens", 1, hint="It is the number of rows of the input.")
    modules = dict(model.named_modules())
    selection = Selection(include, exclude)
    matrices = dict(weight_matrices(model))
    chosen = selection.choose(matrices, lambda matrix: modules.get(matrix.layer, model)).matrices
    shapes: dict[tuple[int, int], Any] = {}
    for matrix in chosen.values():
        if matrix.kind in (Kind.LINEAR, Kind.TRANSPOSED_LINEAR) and not matrix.reason:
            shapes.setdefault((matrix.shape[0], matrix.shape[1]), matrix.parameter)
    if not shapes:
        raise InvalidValueError(
            f"No linear layer of this {type(model).__name__} is left to measure; expected at least "
            "one. Check `include` and `exclude`."
        )
    table = {}
    for done, (shape, weight) in enumerate(shapes.items(), 1):
        table[shape] = _measured(shape, weight, tokens)
        if progress is not None:
            progress(done, len(shapes), f"{shape[0]} x {shape[1]}")
    first = next(iter(shapes.values()))
    settings = {
        "tokens": tokens, "dtype": str(first.dtype).removeprefix("torch."),
        "device": str(first.device), "threads": torch.get_num_threads(),
        "torch": versions("torch")["torch"],
    }  # fmt: skip
    return Costs(table, settings)


def _measured(shape: tuple[int, int], weight: torch.Tensor, tokens: int) -> Any:
    """Return the cost of a shape, every layer measured in turn with the others."""
    rows, columns = shape
    place = {"dtype": weight.dtype, "device": weight.device}
    ranks = sorted({max(1, round(part * min(shape))) for part in _PARTS})
    dense = nn.Linear(columns, rows, bias=False, **place).requires_grad_(False)
    layers: list[Any] = [dense]
    for form in (Form.PLAIN, Form.PIVOTED):
        layers += [_split(dense, rank, form) for rank in ranks]
    inputs = torch.randn(tokens, columns, device=weight.device).to(weight.dtype)
    found = _seconds([partial(layer, inputs) for layer in layers], weight.device)
    count = len(ranks)
    return measured_cost(found[0], ranks, found[1 : count + 1], found[count + 1 :])


def _split(dense: nn.Linear, rank: int, form: Form) -> nn.Module:
    """Return a split layer of that rank with arbitrary factors."""
    made = SplitLinear.empty_like(dense, rank, dense.weight.device, form)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made.requires_grad_(False)


@torch.no_grad()
def _seconds(calls: list[Callable[[], Any]], device: torch.device) -> list[float]:
    """Return the median seconds of each call, all of them repeated in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    start = time.perf_counter()
    while time.perf_counter() - start < _SECONDS * len(calls) and len(times[0]) < 200:
        for call, found in zip(calls, times, strict=True):
            found.append(_once(call, device))
    return [statistics.median(found) for found in times]


def _once(call: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
