"""Compress SmolLM2-135M by every method to every size, one record a cell; what is done stays done.

    python benchmarks/compression/run.py [--only REGEX] [--cells]

A cell is a method, a share of the parameters of the blocks' linear layers, and a draw of the
calibration texts. Its record in results/cells has perplexities on two held-out texts, seconds and
sizes. Moments of a draw are kept in an ignored folder and shared by all methods. Threads: one.
"""

import argparse
import json
import platform
import re
import resource
import sys
import time
from pathlib import Path

import language_model as lm
import torch
from peers import four_bits, low_rank, modegpt

from rmtspec.adapters import torch as rt

HERE = Path(__file__).resolve().parent
CELLS = HERE / "results" / "cells"
CACHE = HERE / "cache"
SHARES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
#: Tokens whose gradients are taken: 16 sequences.
GRADIENTS = 8192


class Bench:
    """The model, the texts, and the moments of each draw, each made when it is first needed."""

    def __init__(self):
        self.model, self.tokenizer = lm.load()
        self.texts = lm.held_out(self.tokenizer)
        self.layers = list(lm.block_linears(self.model))
        self._batches, self._stats = {}, {}

    def batches(self, draw, count=32):
        if (draw, count) not in self._batches:
            self._batches[draw, count] = lm.draw(self.tokenizer, draw, count)
        return self._batches[draw, count]

    def stats(self, draw, moment="diagonal", tokens=GRADIENTS, count=32):
        """Return the calibration of a draw, from the cache if it is there."""
        key = f"draw{draw}-{moment}-{tokens}-{count}"
        if key not in self._stats:
            self._stats.clear()  # one in memory at a time
            file = CACHE / f"{key}.safetensors"
            if not file.exists():
                CACHE.mkdir(exist_ok=True)
                start = time.perf_counter()
                made = rt.calibrate(
                    self.model, self.batches(draw, count), include=lm.BLOCKS, holdout=0,
                    output_moment=moment, gradient_tokens=tokens,
                )  # fmt: skip
                made.save(file)
                seconds = time.perf_counter() - start
                file.with_suffix(".json").write_text(json.dumps({"seconds": round(seconds, 1)}))
            self._stats[key] = rt.Calibration.load(file)
        return self._stats[key]

    def moments(self, draw):
        stats = self.stats(draw)
        return {
            name: torch.from_numpy(stats.input_moments[stats.inputs[name]][0].copy())
            for name in self.layers
        }


def ours(bench, share, draw, *, moment="diagonal", tokens=GRADIENTS, count=32, **options):
    stats = bench.stats(draw, moment, tokens, count)
    model, report = rt.prune(
        bench.model, calibration=stats, budget=share, include=lm.BLOCKS, **options
    )
    losses = [row["predicted_loss"] or 0.0 for row in report.rows]
    return model, {"predicted_loss": sum(losses), "n_split": len(report.cut)}


def refitted(bench, share, draw, steps=80):
    model, more = ours(bench, share, draw)
    batches = lm.draw(bench.tokenizer, draw, 160)[32:]
    smaller, curve = rt.refit(model, bench.model, batches, steps=steps, precision="bfloat16")
    return smaller, more | {"steps": steps, "refit": curve.to_dict()["settings"]}


def stored(bench, share, draw, dtype, **options):
    model, more = ours(bench, share, draw, **options)
    more["share"] = lm.share_kept(model, bench.model)
    return rt.quantize_factors(model, dtype, inplace=True), more


def data_free(bench, share, draw):
    model, report = rt.prune(bench.model, budget=share, include=lm.BLOCKS, gate=None)
    return model, {"n_split": len(report.cut)}


def plain_svd(bench, share, draw):
    return low_rank.compressed(bench.model, bench.layers, share), {}


def svd_llm(bench, share, draw):
    rights = {name: low_rank.whitening(m) for name, m in bench.moments(draw).items()}
    return low_rank.compressed(bench.model, bench.layers, share, rights=rights), {}


def svd_llm_sequential(bench, share, draw):
    return low_rank.sequential(bench.model, "model.layers", share, bench.batches(draw)), {}


def asvd(bench, share, draw):
    rights = low_rank.mean_inputs(bench.model, bench.layers, bench.batches(draw)[:8])
    rights = {name: right.clamp_min(1e-6).sqrt() for name, right in rights.items()}
    return low_rank.compressed(bench.model, bench.layers, share, rights=rights), {}


def fwsvd(bench, share, draw):
    lefts = low_rank.fisher_rows(bench.model, bench.layers, bench.batches(draw)[:16])
    return low_rank.compressed(bench.model, bench.layers, share, lefts=lefts), {}


def rounded(bench, share, draw):
    model, bits = four_bits.four_bits(bench.model, bench.layers)
    return model, {"share": bits / 16, "bits": bits}


def mode_gpt(bench, share, draw):
    model, info = modegpt.modegpt(bench.model, bench.batches(draw), share)
    return model, {"share": info["share"]}


METHODS = {
    "loss": ours,
    "loss-pivoted": lambda *cell: ours(*cell, form="pivoted"),
    "loss-plain": lambda *cell: ours(*cell, form="plain"),
    "loss-4-gradients": lambda *cell: ours(*cell, tokens=2048),
    "loss-full": lambda *cell: ours(*cell, moment="full"),
    "loss-multiple-16": lambda *cell: ours(*cell, rank_multiple=16),
    "loss-8-sequences": lambda *cell: ours(*cell, count=8, tokens=4096),
    "outputs": lambda *cell: ours(*cell, objective="outputs"),
    "4-bit": rounded,
    "loss-plain-int8": lambda *cell: stored(*cell, "int8", form="plain"),
    "loss-int8": lambda *cell: stored(*cell, "int8"),
    "loss-bfloat16": lambda *cell: stored(*cell, "bfloat16"),
    "refit": refitted,
    "data-free": data_free,
    "svd-llm": svd_llm,
    "svd-llm-sequential": svd_llm_sequential,
    "modegpt": mode_gpt,
    "asvd": asvd,
    "fwsvd": fwsvd,
    "svd": plain_svd,
}


def cells():
    """Yield (method, share, draw), the most telling first."""
    yield from (("loss", share, 0) for share in (0.8, 0.6, 0.9, 0.7, 0.5, 0.95))
    yield from (("svd-llm", share, 0) for share in (0.8, 0.6, 0.9, 0.7, 0.5))
    yield from (("loss-plain", share, 0) for share in (0.8, 0.6, 0.9, 0.7, 0.5))
    yield from (("loss-pivoted", share, 0) for share in (0.8, 0.6, 0.9, 0.7, 0.5))
    yield from (
        (name, share, 0) for name in ("outputs", "loss-multiple-16") for share in (0.8, 0.6)
    )
    yield from ((name, 0.8, 0) for name in ("loss-int8", "loss-plain-int8", "loss-bfloat16"))
    yield ("4-bit", 0.25, 0)
    yield from (("loss-4-gradients", share, 0) for share in (0.8, 0.6, 0.9, 0.7, 0.5))
    for draw in (1, 2):
        yield from (("loss", share, draw) for share in (0.8, 0.6, 0.9, 0.7, 0.5))
        yield from (("svd-llm", share, draw) for share in (0.8, 0.6))
        yield from (("loss-plain", share, draw) for share in (0.8, 0.6, 0.9, 0.7, 0.5))
    yield from (("modegpt", share, 0) for share in (0.8, 0.6, 0.9))
    yield from (("refit", share, 0) for share in (0.8, 0.6, 0.9, 0.7, 0.5))
    yield from (("loss-full", share, 0) for share in (0.8, 0.6, 0.9, 0.7, 0.5))
    rest = ("data-free", "svd", "asvd", "fwsvd")
    yield from ((name, share, 0) for share in (0.8, 0.6) for name in rest)
    yield from (("modegpt", share, 0) for share in (0.7, 0.5))
    yield from (("svd-llm-sequential", share, 0) for share in (0.8, 0.6))
    yield from (("loss-8-sequences", share, 0) for share in (0.8,))
    for name in sorted(METHODS.keys() - {"4-bit"}):  # and all others
        yield from ((name, share, draw) for share in SHARES for draw in (0, 1, 2))


def file_of(method, share, draw):
    return CELLS / f"{method}-{share:g}-draw{draw}.json"


def run_cell(bench, method, share, draw):
    start = time.perf_counter()
    model, more = METHODS[method](bench, share, draw)
    seconds = time.perf_counter() - start
    found = {name: lm.perplexity(model, text) for name, text in bench.texts.items()}
    record = {
        "model": "SmolLM2-135M-Instruct", "method": method, "budget": share, "draw": draw,
        "share": lm.share_kept(model, bench.model),
        "perplexity": found,
        "seconds": round(seconds, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": time.strftime("%Y-%m-%d"), **more,
    }  # fmt: skip
    CELLS.mkdir(parents=True, exist_ok=True)
    file_of(method, share, draw).write_text(json.dumps(record, indent=1) + "\n")
    words = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    print(f"{method} {share:g} draw {draw}: {words} ({seconds:.0f} s)", flush=True)


def main():
    """Make the cells that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cells whose name matches this expression")
    parser.add_argument("--cells", action="store_true", help="list the cells, and which are done")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wanted = list(dict.fromkeys(cells()))
    wanted = [c for c in wanted if re.search(asked.only, f"{c[0]} {c[1]:g} draw{c[2]}")]
    if asked.cells:
        for cell in wanted:
            print(*cell, "done" if file_of(*cell).exists() else "-")
        return
    bench = Bench()
    dense = HERE / "results" / "dense.json"
    if not dense.exists():
        dense.parent.mkdir(exist_ok=True)
        found = {name: lm.perplexity(bench.model, text) for name, text in bench.texts.items()}
        dense.write_text(json.dumps({"perplexity": found}, indent=1) + "\n")
        print("dense", found, flush=True)
    for cell in wanted:
        if not file_of(*cell).exists():
            run_cell(bench, *cell)


if __name__ == "__main__":
    sys.exit(main())
