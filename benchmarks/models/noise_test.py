"""Whether a pretrained sentence encoder needs the bulk of its weights, matrix by matrix.

    python benchmarks/models/noise_test.py FOLDER

FOLDER is as for sentence_encoder.py. The figure is the mean cosine of 100 sentence embeddings with
those of the unchanged model. The report goes to results/noise-test-encoder.json, with the distance
of each matrix's spectrum from the law that was fitted to it.
"""

import argparse
import json
from pathlib import Path

import torch
from sentence_encoder import batches, embeddings, sentences
from transformers import AutoModel, AutoTokenizer

from rmtspec.adapters import torch as rt

RESULTS = Path(__file__).parent / "results"
LAYERS = r"encoder\.layer\."


def main():
    """Run the test, print and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--draws", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(given.folder)
    model = AutoModel.from_pretrained(given.folder).float().eval()
    inputs = batches(tokenizer, sentences()[150:250])
    original = embeddings(model, inputs)

    def cosine(changed):
        return (embeddings(changed, inputs) * original).sum(1).mean()

    tested = rt.noise_test(
        model, cosine, draws=given.draws, include=LAYERS,
        progress=lambda done, total, name: print(f"{done}/{total} {name}", flush=True),
    )  # fmt: skip
    print(tested)
    statistics = {
        row["name"]: row["fit_statistic"] for row in rt.analyze(model, include=LAYERS).rows
    }
    for row in tested.rows:
        row["fit_statistic"] = statistics[row["name"]]
    tested.skipped.clear()  # biases and norms
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "noise-test-encoder.json"
    file.write_text(json.dumps(tested.to_dict(), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
