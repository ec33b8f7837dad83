"""How much of a pretrained sentence encoder's function a pruned one keeps, with and without data.

    python benchmarks/models/sentence_encoder.py FOLDER

FOLDER holds a BERT-like sentence encoder and its tokenizer as transformers save them
(all-MiniLM-L6-v2 for one). The sentences are those of this repository's own documentation: 150 to
calibrate, 100 to compare mean-pooled embeddings with the original's by their cosine.
"""

import argparse
import random
import re
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from rmtspec.adapters import torch as rt

ROOT = Path(__file__).resolve().parents[2]


def sentences():
    """Return sentences of the documentation, shuffled with a fixed seed."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = " ".join(page.read_text("utf-8") for page in pages)
    found = [part.strip() for part in re.split(r"(?<=[.!?])\s+", text)]
    found = [part for part in found if 30 < len(part) < 300]
    random.Random(0).shuffle(found)
    return found


def batches(tokenizer, texts):
    """Return model inputs, twenty sentences each."""
    options = {"padding": True, "truncation": True, "max_length": 64, "return_tensors": "pt"}
    return [dict(tokenizer(texts[i : i + 20], **options)) for i in range(0, len(texts), 20)]


@torch.no_grad()
def embeddings(model, inputs):
    """Return unit-length mean-pooled embeddings."""
    rows = []
    for batch in inputs:
        mask = batch["attention_mask"][..., None]
        mean = (model(**batch)[0] * mask).sum(1) / mask.sum(1)
        rows.append(torch.nn.functional.normalize(mean, dim=-1))
    return torch.cat(rows)


def main():
    """Print one line per way to prune."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    texts = sentences()
    inputs, held_out = batches(tokenizer, texts[:150]), batches(tokenizer, texts[150:250])
    original = embeddings(model, held_out)
    _, report = rt.prune(model, include="encoder")
    passed = [row["name"] for row in report.rows if row["verdict"] == "noise-like bulk"]
    accepted = sum(row["accepted"] for row in report.rows)
    print(f"the law fits {accepted} of {len(report.rows)} encoder matrices")
    print(f"{len(passed)} have a noise-like bulk {passed}; {len(report.cut)} are cut by default")
    ways = [{"bulk_keep": 0.45}, {"budget": 0.76}, {"budget": 0.5}]
    for options in ways:
        line = f"{options}:"
        for calibration in (None, inputs):
            smaller, done = rt.prune(
                model,
                include="encoder",
                gate=None,
                calibration=calibration,
                objective="outputs" if calibration else None,
                **options,
            )
            kept = done.parameters_after / done.parameters_before
            cosine = float((embeddings(smaller, held_out) * original).sum(-1).mean())
            line += f"  {'with' if calibration else 'without'} data {cosine:.2f}"
        print(f"{line}  ({kept:.2f} of the encoder's parameters)")


if __name__ == "__main__":
    main()
