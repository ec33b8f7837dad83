"""What calibration and pruning cost, against running the model forward and backward.

    python benchmarks/compression/cost.py [--sequences 4]

Writes results/cost.json: seconds on one thread of forward and backward of the sequences, of one
symmetric eigendecomposition for each layer, of calibrate, and of prune; and the peak memory.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import language_model as lm
import numpy as np
import torch

from rmtspec.adapters import torch as rt

HERE = Path(__file__).resolve().parent


def main():
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=4)
    count = parser.parse_args().sequences
    torch.set_num_threads(1)
    model, tokenizer = lm.load()
    batches = lm.draw(tokenizer, 0, count)
    found = {}

    def timed(name, work):
        start, processor = time.perf_counter(), time.process_time()
        result = work()
        found[name] = round(time.perf_counter() - start, 2)
        found[f"{name}, processor"] = round(time.process_time() - processor, 2)
        print(name, found[name], found[f"{name}, processor"], flush=True)
        return result

    def forward_and_backward():
        for batch in batches:
            model(**batch, labels=batch["input_ids"]).loss.backward()
            model.zero_grad()

    def eigendecompositions():
        for layer in lm.block_linears(model).values():
            weight = layer.weight.detach().double().numpy()
            gram = weight.T @ weight if weight.shape[0] > weight.shape[1] else weight @ weight.T
            np.linalg.eigh(gram)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timed("forward and backward", forward_and_backward)
    timed("eigendecompositions", eigendecompositions)
    options = {"include": lm.BLOCKS, "gradient_tokens": 512 * count}
    stats = timed("calibrate", lambda: rt.calibrate(model, batches, **options))
    timed("prune", lambda: rt.prune(model, calibration=stats, budget=0.8, include=lm.BLOCKS))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = {
        "sequences": count, "tokens": 512 * count, "seconds": found,
        "gib": {"model": before / 2**20, "peak": after / 2**20, "stats": stats.nbytes / 2**30},
        "ratio": (found["calibrate, processor"] + found["prune, processor"])
        / (
            1.3 * found["forward and backward, processor"]
            + found["eigendecompositions, processor"]
        ),
        "versions": {"torch": torch.__version__}, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    (HERE / "results" / "cost.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
