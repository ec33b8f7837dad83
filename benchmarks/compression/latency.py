"""How long the pruned language model takes: one token after another, and a long prompt.

    python benchmarks/compression/latency.py

The models are the dense one and those that `prune` makes with its defaults, with plain factors, and
with a budget of measured seconds. Each is timed in turn, again and again, so that what else the
machine does falls on all alike; given is the median, and the ratio to the dense model's in the same
round. "decode": one token after a prompt of 32. "prefill": 32 prompts of 16 tokens at once.
"layers": one split layer, eager and compiled, against the dense one. One thread.
"""

import json
import platform
import statistics
import time
from pathlib import Path

import language_model as lm
import torch

from rmtspec.adapters import torch as rt

RESULTS = Path(__file__).resolve().parent / "results"
ROUNDS = 15


def models(dense, stats):
    """Yield names and pruned models, one at a time in memory besides the dense one."""
    costs = rt.measure_costs(dense, tokens=1, include=lm.BLOCKS)
    for share in (0.8, 0.6):
        for name, options in {
            "default": {},
            "multiples of 16": {"rank_multiple": 16},
            "plain factors": {"form": "plain"},
            "seconds": {"size": "latency", "costs": costs},
        }.items():
            smaller, _ = rt.prune(
                dense, calibration=stats, budget=share, include=lm.BLOCKS, **options
            )
            yield share, name, smaller


@torch.inference_mode()
def seconds(model, prompt, many):
    """Return the seconds of one token, and of the long prompt."""
    cache = model(prompt, use_cache=True).past_key_values
    times = []
    for given in ({"input_ids": prompt[:, -1:], "past_key_values": cache}, {"input_ids": many}):
        start = time.perf_counter()
        model(**given)
        times.append(time.perf_counter() - start)
    return times


def compared(dense, smaller, prompt, many):
    """Return medians of seconds and of ratios to the dense model, round by round."""
    rounds = [
        (seconds(dense, prompt, many), seconds(smaller, prompt, many)) for _ in range(ROUNDS + 1)
    ][1:]
    found = {}
    for place, what in enumerate(("decode", "prefill")):
        found[what] = {
            "dense_seconds": statistics.median(a[place] for a, _ in rounds),
            "seconds": statistics.median(b[place] for _, b in rounds),
            "ratio": statistics.median(b[place] / a[place] for a, b in rounds),
        }
    return found


def layers(dense):
    """Return, for the shapes of the model, the ratio of a split layer's time to the dense one's."""
    rows = []
    for kind in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
        layer = dense.get_submodule(f"model.layers.10.{kind}")
        columns = layer.in_features
        for share in (0.5, 0.8):
            rank = int(share * layer.weight.numel() / sum(layer.weight.shape))
            thin = rt.SplitLinear.from_layer(layer, rank)
            ways = {
                "eager": thin,
                "compiled": torch.compile(thin, mode="max-autotune-no-cudagraphs"),
            }
            for count in (1, 512):
                x = torch.randn(count, columns)
                row = {"layer": kind, "share": share, "rank": rank, "rows": count}
                for name, way in ways.items():
                    row[name] = ratio(layer, way, x)
                rows.append(row)
                print(row, flush=True)
    return rows


@torch.inference_mode()
def ratio(one, other, x):
    """Return the median ratio of two layers' times, timed in turn."""
    repeats = 200 if len(x) == 1 else 5
    found = []
    for _ in range(31):
        times = []
        for layer in (one, other):
            start = time.perf_counter()
            for _ in range(repeats):
                layer(x)
            times.append(time.perf_counter() - start)
        found.append(times[1] / times[0])
    return statistics.median(found[1:])


def main():
    """Time everything."""
    torch.set_num_threads(1)
    dense, tokenizer = lm.load()
    batches = lm.draw(tokenizer, 0)
    texts = torch.cat([batch["input_ids"] for batch in batches])
    prompt, many = texts[:1, :32], texts[:32, :16]
    record = {
        "layers": layers(dense), "models": [],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": time.strftime("%Y-%m-%d"), "threads": 1, "rounds": ROUNDS,
    }  # fmt: skip
    stats = rt.calibrate(dense, batches[:16], include=lm.BLOCKS, holdout=0)
    for share, name, smaller in models(dense, stats):
        row = {"budget": share, "way": name, "share": lm.share_kept(smaller, dense)}
        row |= compared(dense, smaller, prompt, many)
        record["models"].append(row)
        print(
            share, name, {k: round(row[k]["ratio"], 3) for k in ("decode", "prefill")}, flush=True
        )
        (RESULTS / "latency.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
