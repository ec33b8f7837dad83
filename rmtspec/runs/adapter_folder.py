"""Writing a folder that PEFT loads: adapters of LoRA, one rank for each layer."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._files.writing import PathLike, check_space, finished_folder
from rmtspec.checkpoint.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX
from rmtspec.checkpoint.safetensors_writer import Outgoing, write_safetensors
from rmtspec.matrix.in_dtype import in_dtype

#: How a weight is stored: outputs first, as a table whose rows are looked up, or inputs first, as
#: in the Conv1D of GPT-2.
LINEAR, TABLE, TURNED = "linear", "table", "turned"


@dataclass(frozen=True)
class LayerFactors:
    """The factors of one layer: `load` returns outer and inner, whose product is the change.

    Attributes
    ----------
    layer : str
        Name of the layer in the model.
    how : str
        "linear", "table" or "turned".
    shape : tuple of int
        Of the weight, as stored; a convolution has more than two sides.
    rank : int
        Number of columns of outer.
    """

    layer: str
    how: str
    shape: tuple[int, ...]
    rank: int
    load: Callable[[], tuple[NDArray[Any], NDArray[Any]]]

    def outgoing(self) -> list[Outgoing]:
        """Return both factors as PEFT names and shapes them; each is computed when written."""
        waiting: dict[str, NDArray[Any]] = {}
        kernel = self.shape[2:]
        rows, columns = self.shape[0], int(np.prod(self.shape[1:]))
        inputs, outputs = (columns, rows) if self.how == LINEAR else (rows, columns)
        part = "lora_embedding_" if self.how == TABLE else "lora_"
        end = "" if self.how == TABLE else ".weight"
        shapes: dict[str, tuple[int, ...]] = {
            f"{part}A{end}": (self.rank, inputs),
            f"{part}B{end}": (outputs, self.rank),
        }
        if kernel:
            shapes = {
                f"{part}A{end}": (self.rank, *self.shape[1:]),
                f"{part}B{end}": (outputs, self.rank, *(1 for _ in kernel)),
            }

        def take(name: str) -> NDArray[Any]:
            if name not in waiting:
                outer, inner = self.load()
                reading, writing = (inner, outer) if self.how == LINEAR else (outer.T, inner.T)
                for key, factor in zip(shapes, (reading, writing), strict=True):
                    waiting[key] = in_dtype(np.ascontiguousarray(factor), np.float32).reshape(
                        shapes[key]
                    )
            return waiting.pop(name)

        return [
            Outgoing(f"{PREFIX}{self.layer}.{name}", "F32", shape, load=partial(take, name))
            for name, shape in shapes.items()
        ]


def write_adapter(
    out: PathLike, layers: list[LayerFactors], config: Mapping[str, Any], more: list[Outgoing]
) -> None:
    """Write the factors, `more` tensors, and a config in which every scale is 1, into a new folder.

    `config` has what the adapter needs besides ("base_model_name_or_path", "task_type").
    """
    ranks = {f"^{re.escape(layer.layer)}": layer.rank for layer in layers}
    usual = max(ranks.values(), default=1)
    content = {
        "peft_type": "LORA", "bias": "none", "inference_mode": True, **config,
        "r": usual, "lora_alpha": usual, "rank_pattern": ranks, "alpha_pattern": ranks,
        "use_rslora": False, "target_modules": [layer.layer for layer in layers],
    }  # fmt: skip
    tensors = [tensor for layer in layers for tensor in layer.outgoing()] + more
    check_space(out, sum(tensor.nbytes for tensor in tensors))
    with finished_folder(out) as work:
        write_safetensors(work / ADAPTER_WEIGHTS, tensors, {"format": "pt"})
        text = json.dumps(content, indent=2) + "\n"
        Path(work / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
