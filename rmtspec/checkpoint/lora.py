"""Adapters of LoRA: which tensors are pairs of factors, and the one matrix that a pair is.

PEFT calls the factors lora_A (rank x inputs) and lora_B (outputs x rank), for embeddings
lora_embedding_A (rank x rows) and lora_embedding_B (size x rank); the scripts of kohya call them
lora_down and lora_up, and store alpha beside them. The change of the weight is scale B A.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec._files.reading import bounded_json
from rmtspec.checkpoint.stored import StoredMatrix, StoredTensor, check_unchanged
from rmtspec.errors import FileError
from rmtspec.terms import Kind

#: Files of a PEFT adapter.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Before the names of the layers in an adapter of PEFT.
PREFIX = "base_model.model."
#: Names of the factors, with what the other one is called; the first reads, the second writes.
_FACTORS = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B", "lora_down": "lora_up"}
#: Between the two, in convolutions of kohya's scripts that LyCORIS splits in three.
_THIRD = "lora_mid"
#: A key of alpha_pattern that is a name, dots escaped or not; with ^ it is the whole name.
_NAME_AS_PATTERN = re.compile(r"(?P<start>\^?)(?P<name>(?:[\w.-]|\\\W)+)\$?")
_READING = re.compile(r"(?P<layer>.*)\.(?P<factor>lora_A|lora_embedding_A|lora_down)(?P<end>\..*)?")


class Pair(NamedTuple):
    """The two factors of one layer, and what multiplies their product."""

    layer: str  # without the prefix of PEFT
    reading: StoredTensor
    writing: StoredTensor
    scale: float
    embedding: bool

    @property
    def rank(self) -> int:
        """Number of directions that the factors have room for."""
        return self.reading.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight that is changed, as PEFT applies it."""
        rows, columns = self.writing.shape[0], math.prod(self.reading.shape[1:])
        return (columns, rows) if self.embedding else (rows, columns)

    def factors(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return two matrices whose product is the change of the weight, scale included."""
        reading = self.reading().astype(np.float64).reshape(self.rank, -1)
        writing = self.writing().astype(np.float64).reshape(-1, self.rank) * self.scale
        return (reading.T, writing.T) if self.embedding else (writing, reading)


@dataclass(frozen=True, slots=True)
class LoraProduct(StoredTensor):
    """The change of a weight, as the matrix that it is."""

    pair: Pair

    def _load(self) -> NDArray[Any]:
        """Return the product, in float32; what does not fit into it is infinite."""
        with np.errstate(over="ignore", invalid="ignore"):
            outer, inner = self.pair.factors()
            return (outer @ inner).astype(np.float32)

    def check_unchanged(self) -> None:
        """Raise `FileError` if a file of the factors was rewritten since it was listed."""
        check_unchanged((self.pair.reading, self.pair.writing))


def pairs_in(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> dict[str, Pair]:
    """Return the pairs of factors by the name of the factor that reads the inputs.

    `config` is the adapter's, or empty. Raises `FileError` for a factor without its partner, for
    two that do not fit, for a third one, and for two adapters of one layer.
    """
    found: dict[str, Pair] = {}
    layers: dict[str, str] = {}
    for name, tensor in tensors.items():
        match = _READING.fullmatch(name)
        if match is None or len(tensor.shape) < 2:
            continue
        other = f"{match['layer']}.{_FACTORS[match['factor']]}{match['end'] or ''}"
        writing = tensors.get(other)
        if writing is None:
            raise FileError(
                f"{tensor.path} holds {name!r} without {other!r}; expected both factors of an "
                "adapter. Save it again."
            )
        if len(writing.shape) != len(tensor.shape) or writing.shape[1] != tensor.shape[0]:
            raise FileError(
                f"{tensor.path} is damaged: {name!r} is {tensor.shape} and {other!r} "
                f"{writing.shape}; expected (rank, inputs) and (outputs, rank). Save it again."
            )
        middle = f"{match['layer']}.{_THIRD}.weight"
        if middle in tensors:
            raise FileError(
                f"{tensor.path} holds {middle!r}, a third factor; expected two factors a layer. "
                "Merge it into the model, and take the difference: rmtspec extract-lora."
            )
        layer = match["layer"].removeprefix(PREFIX)
        if layer in layers:
            raise FileError(
                f"{tensor.path} holds two adapters of {layer!r}: {layers[layer]!r} and {name!r}. "
                "Expected one adapter in a file; save each to a folder of its own."
            )
        layers[layer] = name
        alpha = tensors.get(f"{match['layer']}.alpha")
        rank = tensor.shape[0]
        scale = _scale(layer, rank, config) if alpha is None else _number(alpha) / rank
        found[name] = Pair(
            layer, tensor, writing, scale=scale, embedding="embedding" in match["factor"]
        )
    return found


def matrices_of(pairs: Mapping[str, Pair]) -> dict[str, StoredMatrix]:
    """Return the changes of the weights as matrices, named after the weights."""
    matrices: dict[str, StoredMatrix] = {}
    for pair in pairs.values():
        name = f"{pair.layer}.weight"
        product = LoraProduct(
            path=pair.reading.path, name=name, dtype="F32", numpy_name="<f4", shape=pair.shape,
            nbytes=4 * math.prod(pair.shape), pair=pair,
        )  # fmt: skip
        kind = Kind.EMBEDDING if pair.embedding else Kind.MATRIX
        matrices[name] = StoredMatrix(name, kind, product)
    return matrices


def adapter_config(folder: Path) -> dict[str, Any]:
    """Return the config of the PEFT adapter in a folder; empty if it is none."""
    try:
        config = bounded_json(folder / ADAPTER_CONFIG)
    except FileError:
        raise
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _number(alpha: StoredTensor) -> float:
    """Return the value of a tensor of one entry."""
    if math.prod(alpha.shape) != 1:
        raise FileError(
            f"{alpha.path} is damaged: {alpha.name!r} has the shape {alpha.shape}; expected one "
            "number. Save it again."
        )
    return float(alpha().reshape(()))


def _scale(layer: str, rank: int, config: Mapping[str, Any]) -> float:
    """Return what PEFT multiplies the product of a layer by; 1 if no config says it."""
    alpha = _of_pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha"))
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        return 1.0
    divisor = math.sqrt(rank) if config.get("use_rslora") is True else rank
    return float(alpha) / divisor


def _of_pattern(patterns: Any, layer: str, usual: Any) -> Any:
    """Return the value of the first pattern that the end of a name meets, as PEFT looks it up.

    PEFT takes regular expressions; what is written by it or by us is a name. Any other could take
    an adapter's author to keep this process busy for ever.
    """
    for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
        name = _NAME_AS_PATTERN.fullmatch(pattern)
        if name is None:
            raise FileError(
                f"alpha_pattern in {ADAPTER_CONFIG} has {pattern!r}; expected names of layers, or "
                "ends of them. Write one entry for each layer."
            )
        plain = re.sub(r"\\(\W)", r"\1", name["name"])
        if layer == plain or (not name["start"] and layer.endswith(f".{plain}")):
            return value
    return usual
