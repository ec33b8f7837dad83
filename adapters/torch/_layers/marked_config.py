"""A mark in the config of a transformers model whose layers were cut.

Without it, ``from_pretrained`` of a folder that ``save_pretrained`` of such a model wrote would
leave the layers random and only print so. With it, transformers refuses the folder, and
`from_pretrained` of this adapter finds which layers were cut.
"""

from dataclasses import asdict
from typing import Any

from torch import nn

from rmtspec.adapters.torch._layers.entries import entries_of

#: Key in ``quantization_config``, of which transformers refuses any without a ``quant_method``.
MARK = "rmtspec"
_HOW = "from rmtspec.adapters import torch as rt; model = rt.from_pretrained(folder)"


def mark(model: nn.Module) -> None:
    """Bring the mark in a model's config up to date with its layers; others have no such config."""
    config: Any = getattr(model, "config", None)
    if not callable(getattr(config, "save_pretrained", None)):
        return
    held = getattr(config, "quantization_config", None)
    if held is not None and not (isinstance(held, dict) and MARK in held):
        return  # that of a quantised model
    if entries := entries_of(model):
        splits = [asdict(entry) | {"shape": list(entry.shape)} for entry in entries]
        config.quantization_config = {MARK: {"splits": splits, "load": _HOW}}
    elif held is not None:
        del config.quantization_config
