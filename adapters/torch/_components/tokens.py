"""Which tokens the sides of a matrix can be read against: embeddings on the way in, head out.

A matrix that reads the residual stream of a transformer has right singular vectors in the space of
the embeddings; one that writes to it has left ones in the space that the head reads. The norm in
between is applied: on the way in, to each embedding, as if it alone were the stream; on the way
out, to the direction, as the logit lens does. Which norm that is, a run of the model shows.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._components.run import run, run_on_tokens
from rmtspec.adapters.torch._components.vocabulary import Vocabulary
from rmtspec.adapters.torch._weights.matrices import memory_of
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Kind, TokenTable, is_head, place_of
from rmtspec.errors import InvalidValueError

#: Roles of layers that write to the residual stream, and of those that read it.
_WRITES = ("attention output", "down")
_READS = ("query", "key", "value", "query-key-value", "key-value", "up", "gate", "gate-up")
#: Tokens to run the model on, rows of a table at a time.
_FEW, _ROWS = 8, 4096
_FAILURES = (TypeError, ValueError, AttributeError, LookupError, RuntimeError)


class _Table(NamedTuple):
    """A layer whose weight has a row for each token."""

    name: str
    module: nn.Module
    weight: torch.Tensor


class _Seen(NamedTuple):
    """What a run showed: the norm whose output a layer reads, and that which the head reads."""

    norm: tuple[str, nn.Module] | None
    reads_embeddings: bool
    last_norm: tuple[str, nn.Module] | None
    failure: str


def token_tables(
    model: nn.Module, layer: nn.Module, matrix: WeightMatrix, vocabulary: Vocabulary, *, batch: Any
) -> tuple[list[TokenTable], list[str]]:
    """Return what each side of a matrix can be read against, and notes on both sides."""
    table = _embeddings(model, vocabulary)
    head = _head(model)
    if head is not None:
        vocabulary.check_table(len(head.weight), f"the output head {head.name!r}")
    ours = None if matrix.parameter is None else memory_of(matrix.parameter)
    if ours in [memory_of(each.weight) for each in (table, head) if each is not None]:
        note = "rows: each row of the matrix is a token; its entry in the left singular vector"
        return [TokenTable(side="rows", text=vocabulary.text)], [note]
    if matrix.kind == Kind.EMBEDDING:
        return [], [f"no tokens: its {matrix.shape[0]:,} rows are no tokens of this tokenizer"]
    seen = _watched(model, layer, table, head, batch=batch)
    notes = [seen.failure] if seen.failure else []
    tables: list[TokenTable] = []
    for found, note in (
        _way_in(matrix, table, seen, vocabulary),
        _way_out(matrix, head or table, seen, vocabulary, no_head=head is None),
    ):
        tables += [found] if found is not None else []
        notes.append(note)
    return tables, notes


def _way_in(
    matrix: WeightMatrix, table: _Table, seen: _Seen, vocabulary: Vocabulary
) -> tuple[TokenTable | None, str]:
    """Return the table for the right singular vectors, and what it is or why there is none."""
    role, columns, width = _role(matrix), matrix.shape[1], table.weight.shape[1]
    if role in _WRITES:
        return None, "in: it reads values inside its block, not the residual stream: no tokens"
    if columns != width:
        return None, f"in: {columns} columns, and embeddings have {width}: no tokens"
    if seen.norm is not None:
        name, norm = seen.norm
        blocks, words = _rows(table, norm), f"each through the norm {name!r} that the layer reads"
    elif seen.reads_embeddings:
        blocks, words = _rows(table, None), "which it reads without a norm"
    elif role in _READS:
        blocks, words = _rows(table, None), "no norm of the layer was seen, so none is applied"
    else:
        return None, "in: it reads neither a norm of the residual stream nor embeddings: no tokens"
    note = f"in: right singular vectors, against the embeddings {table.name!r}, {words}"
    return TokenTable(side="in", text=vocabulary.text, blocks=blocks), note


def _way_out(
    matrix: WeightMatrix, table: _Table, seen: _Seen, vocabulary: Vocabulary, *, no_head: bool
) -> tuple[TokenTable | None, str]:
    """Return the table for the left singular vectors, and what it is or why there is none."""
    rows, width = matrix.shape[0], table.weight.shape[1]
    if _role(matrix) not in _WRITES:
        return None, "out: what it puts out stays inside its block: no tokens"
    if rows != width:
        return None, f"out: {rows} rows, and the table of tokens has {width} columns: no tokens"
    which = f"the output head {table.name!r}"
    if no_head:
        which = f"the embeddings {table.name!r}, as the model has no output head"
    seen_as: Callable[[NDArray[Any]], NDArray[Any]] = _unchanged
    words = "without a norm"
    if seen.last_norm is not None:
        name, norm = seen.last_norm
        seen_as, words = _normed(norm), f"with the norm {name!r} before it"
    note = f"out: left singular vectors, against {which}, {words}; later blocks are left out"
    found = TokenTable(
        side="out", text=vocabulary.text, blocks=_rows(table, None), seen=seen_as
    )  # fmt: skip
    return found, note


def _role(matrix: WeightMatrix) -> str:
    return place_of(matrix.name, matrix.kind).role


def _embeddings(model: nn.Module, vocabulary: Vocabulary) -> _Table:
    """Return the embeddings of tokens: by the model's own word, or the one that fits in size."""
    known = _asked(model, "get_input_embeddings")
    tables = [
        _Table(name, module, weight)
        for name, module in model.named_modules()
        if (module is known if known is not None else isinstance(module, nn.Embedding))
        and (weight := _weight(module)) is not None
    ]
    if known is None and len(tables) > 1:
        fitting = [each for each in tables if len(each.weight) >= vocabulary.size]
        tables = fitting if len(fitting) == 1 else tables
    if len(tables) != 1:
        what = f"{len(tables)} tables of embeddings" if tables else "no table of embeddings"
        raise InvalidValueError(
            f"`tokenizer` is given, and the model has {what} that can be read; expected one. "
            "Give the model a method get_input_embeddings that returns it, or leave `tokenizer` "
            "out."
        )
    vocabulary.check_table(len(tables[0].weight), f"the table of embeddings {tables[0].name!r}")
    return tables[0]


def _head(model: nn.Module) -> _Table | None:
    """Return the output head: by the model's own word, or by its name; None if there is none."""
    known = _asked(model, "get_output_embeddings")
    for name, module in model.named_modules():
        if module is known or (known is None and isinstance(module, nn.Linear) and is_head(name)):
            weight = _weight(module)
            return None if weight is None else _Table(name, module, weight)
    return None


def _asked(model: nn.Module, method: str) -> Any:
    ask: Any = getattr(model, method, None)
    with contextlib.suppress(*_FAILURES):  # not every class has an answer
        return ask() if callable(ask) else None
    return None


def _weight(module: nn.Module) -> torch.Tensor | None:
    """Return the weight of a table, if it is a matrix with values."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.ndim == 2 and not weight.is_meta:
        return weight
    return None


def _watched(
    model: nn.Module, layer: nn.Module, table: _Table, head: _Table | None, *, batch: Any
) -> _Seen:
    """Run the model on a few tokens, or on the batch, and see which norms are read."""
    made: dict[int, tuple[str, nn.Module]] = {}  # by the memory of what was put out
    held: list[Any] = []  # so that no memory is used twice
    read: dict[nn.Module, int] = {}
    names = {module: name for name, module in model.named_modules()}

    def watch(module: nn.Module, inputs: torch.Tensor | None, output: Any) -> None:
        if inputs is not None:
            held.append(inputs)
            read.setdefault(module, _memory(inputs))
        if isinstance(output, torch.Tensor) and (_is_norm(module) or module is table.module):
            held.append(output)
            made[_memory(output)] = names[module], module

    norms = [module for module in names if _is_norm(module)]
    watched = dict.fromkeys([*norms, layer, table.module, *([head.module] if head else [])], watch)
    failure = ""
    try:
        if batch is None:
            run_on_tokens(model, min(_FEW, len(table.weight)), watched)
        else:
            run(model, batch, watched)
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        first = str(error).partition("\n")[0][:200]
        failure = f"the model did not run on tokens alone ({first}): pass `batch` to see its norms"
    before = made.get(read.get(layer, 0))
    last = made.get(read.get(head.module, 0)) if head else None
    return _Seen(
        norm=before if before and _is_norm(before[1]) else None,
        reads_embeddings=before is not None and before[1] is table.module,
        last_norm=last if last and _is_norm(last[1]) else None, failure=failure,
    )  # fmt: skip


def _memory(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_nested else int(tensor.untyped_storage().data_ptr())


def _is_norm(module: nn.Module) -> bool:
    """Tell whether a module normalises the last side of a tensor: LayerNorm, RMSNorm, ..."""
    name = type(module).__name__.lower()
    others = ("batch", "group", "instance", "local", "spectral")
    return "norm" in name and not any(map(name.__contains__, others)) and not module._modules


def _double(norm: nn.Module) -> nn.Module:
    return copy.deepcopy(norm).to(device="cpu", dtype=torch.float64)


def _rows(table: _Table, norm: nn.Module | None) -> Callable[[], Iterator[NDArray[Any]]]:
    """Return what yields the rows of a table in pieces, each row through a norm if there is one."""
    exact = None if norm is None else _double(norm)

    def blocks() -> Iterator[NDArray[Any]]:
        for start in range(0, len(table.weight), _ROWS):
            rows = table.weight[start : start + _ROWS].detach().to("cpu", torch.float64)
            with torch.no_grad():
                yield np.asarray((rows if exact is None else exact(rows)).to(torch.float64))

    return blocks


def _unchanged(directions: NDArray[Any]) -> NDArray[Any]:
    return directions


def _normed(norm: nn.Module) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what applies a norm to directions, without its bias, which all share."""
    exact = _double(norm)

    def through(directions: NDArray[Any]) -> NDArray[Any]:
        rows = torch.from_numpy(np.ascontiguousarray(directions.T))
        rows = rows * rows.shape[1] ** 0.5  # as large as a norm leaves its input
        with torch.no_grad():
            moved = exact(rows) - exact(torch.zeros_like(rows[:1]))
        return np.asarray(moved.to(torch.float64)).T

    return through
