"""Which tokens the ends of a direction point at, in a model of language."""

import contextlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import Float64Array, Kind, Reading, nearest_rows, place_of
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError

_COUNT = 8
#: Roles of layers that read the stream of hidden states, and of those that write to it.
_READERS = (
    "query",
    "key",
    "value",
    "query-key-value",
    "key-value",
    "up",
    "gate",
    "gate-up",
    "head",
)
_WRITERS = ("attention output", "down")
#: Norms before a layer, by the end of their name: of the attention, and of the MLP.
_BEFORE = {
    True: ("input_layernorm", "ln_1", "ln_attn", "self_attn_layer_norm", "attention_norm",
           "layer_norm1"),
    False: ("post_attention_layernorm", "pre_feedforward_layernorm", "ln_2", "ffn_norm",
            "layer_norm2"),
}  # fmt: skip
_FINAL = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm")


@dataclass(frozen=True, slots=True)
class Table:
    """The embeddings that one end of a layer is read against, and the scale of the norm between."""

    weight: nn.Parameter
    scale: Float64Array | None
    words: str


class Tokens:
    """The vocabulary of a model, for the readings of its layers.

    Raises
    ------
    InvalidOptionTypeError
        `tokenizer` has no tokens, or the model no embeddings of tokens.
    InvalidOptionError
        The tokenizer has more tokens than the model has embeddings.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        if not callable(getattr(tokenizer, "decode", None)) or not hasattr(tokenizer, "__len__"):
            given = f"`tokenizer` is a {type(tokenizer).__name__}"
            raise InvalidOptionTypeError(given, "a tokenizer of transformers, with decode and len")
        self._model, self._tokenizer = model, tokenizer
        self.inputs = _table(model, "get_input_embeddings")
        if self.inputs is None:
            raise InvalidOptionTypeError(
                f"`tokenizer` is given for a {type(model).__name__}",
                "a model with get_input_embeddings(), as those of transformers have",
            )
        self.outputs = _table(model, "get_output_embeddings")
        self.size = len(tokenizer)
        if self.size > len(self.inputs):
            raise InvalidOptionError(
                f"`tokenizer` has {self.size} tokens, and the model {len(self.inputs)} embeddings",
                "the tokenizer of this model",
            )

    def word(self, token: int) -> str:
        """Return a token as text, between quotation marks."""
        return f"'{self._tokenizer.decode([token])}'"

    def tables(self, matrix: WeightMatrix) -> tuple[Table | None, Table | None, list[str]]:
        """Return what inputs and outputs of a layer are read against, and what to note of it."""
        place = place_of(matrix.layer, str(matrix.kind))
        width = self.inputs.shape[1]
        reads = place.role in _READERS and matrix.shape[1] == width
        writes = place.role in _WRITERS and matrix.shape[0] == width
        notes, read, written = [], None, None
        if reads and place.role != "head":
            attention = place.role in ("query", "key", "value", "query-key-value", "key-value")
            norm, scale = self._norm_before(matrix, attention)
            how = (
                f"with the scale of {norm}"
                if norm
                else "without the scale of a norm: none is known"
            )
            read = Table(self.inputs, scale, how)
            notes.append(f"Inputs are read against the input embeddings, {how}.")
        if writes:
            table = self.outputs if self.outputs is not None else self.inputs
            norm, scale = self._final_norm()
            whose = "output" if self.outputs is not None else "input"
            how = (
                f"with the scale of {norm}"
                if norm
                else "without the scale of a last norm: none is known"
            )
            written = Table(table, scale, how)
            notes.append(f"Outputs are read against the {whose} embeddings, {how}.")
        if read is None and written is None and matrix.kind != Kind.EMBEDDING:
            notes.append(
                f"As {place.role}, this layer neither reads nor writes the hidden states that "
                "tokens live in: its directions are shown by their largest entries."
            )
        return read, written, notes

    def readings(self, table: Table, directions: Float64Array, rng: Any) -> list[Reading]:
        """Return the nearest tokens of each direction."""
        rows = _Rows(table.weight, self.size)
        found = nearest_rows(rows, directions, _COUNT, scale=table.scale, rng=rng)
        return [
            Reading(
                "tokens",
                along=tuple((self.word(i), value) for i, value in each.along),
                against=tuple((self.word(i), value) for i, value in each.against),
                closest=each.closest, chance=each.chance,
            )
            for each in found
        ]  # fmt: skip

    def entries(self, direction: Float64Array) -> Reading:
        """Return the tokens of the largest entries of a direction over the vocabulary."""
        order = np.argsort(direction[: self.size], kind="stable")
        pairs = [(self.word(int(i)), float(direction[i])) for i in order]
        return Reading("tokens", tuple(pairs[::-1][:_COUNT]), tuple(pairs[:_COUNT]))

    def _norm_before(self, matrix: WeightMatrix, attention: bool) -> tuple[str, Any]:
        block = matrix.layer
        while "." in block:
            block = block.rpartition(".")[0]
            for ending in _BEFORE[attention]:
                found = _scale(self._model, f"{block}.{ending}", self.inputs.shape[1])
                if found is not None:
                    return f"{block}.{ending}", found
        return "", None

    def _final_norm(self) -> tuple[str, Any]:
        for name, _ in self._model.named_modules():
            inner = name.rpartition(".")[2]
            if inner in _FINAL and not re.search(r"\.\d+\.", f".{name}."):
                found = _scale(self._model, name, self.inputs.shape[1])
                if found is not None:
                    return name, found
        return "", None


class _Rows:
    """The rows of a table as arrays, a slice at a time."""

    def __init__(self, weight: torch.Tensor, size: int) -> None:
        self._weight, self._size = weight, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, which: slice) -> Float64Array:
        rows = range(self._size)[which]
        block = self._weight.detach()[rows.start : rows.stop]
        found: Float64Array = block.to("cpu", torch.float64).numpy()
        return found


def _table(model: nn.Module, method: str) -> Any:
    """Return the weight that a model's method gives, or None."""
    find = getattr(model, method, None)
    module = None
    with contextlib.suppress(RuntimeError, AttributeError):  # as of a model without a vocabulary
        module = find() if callable(find) else None
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) and weight.ndim == 2 else None


def _scale(model: nn.Module, name: str, width: int) -> Float64Array | None:
    """Return the scale of a norm as the model applies it; None if there is no such norm."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.shape != (width,):
        return None
    scale: Float64Array = weight.detach().to("cpu", torch.float64).numpy()
    # Gemma keeps the difference from 1.
    return 1.0 + scale if "Gemma" in type(module).__name__ else scale
