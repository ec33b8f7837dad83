"""Factors against pivoted rows at equal size: perplexity, rounding, time.

python pivoting_trial.py FOLDER
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clipping
import cuts
import numpy as np
import pivoting
import subject
import torch
from torch import nn


def bfloat16(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


def int8(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return (x / scale).round() * scale


def balanced(factor: cuts.Factors, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outer and inner factor whose columns and rows have equal norms."""
    outer, inner = factor.outer[:, :rank], factor.inner[:rank]
    scale = (inner.norm(dim=1) / outer.norm(dim=0)).sqrt()
    return outer * scale, inner / scale[:, None]


def rounded(
    factor: cuts.Factors, rank: int, pivoted: bool, by: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """The matrix that rounded parts make, and the largest entry of the mixing."""
    outer, inner = balanced(factor, rank)
    if not pivoted:
        return by(outer) @ by(inner), 0.0
    found = pivoting.pivoted(outer.numpy(), inner.numpy())
    kept, mixing = (by(torch.as_tensor(x).float()) for x in (found.kept, found.mixing))
    rows = torch.empty(len(outer), inner.shape[1])
    rows[found.pivots], rows[found.others] = kept, mixing @ kept
    return rows, float(np.abs(found.mixing).max(initial=0))


def seconds(model: Any, ids: torch.Tensor) -> dict[str, float]:
    """Best of five: a forward pass over 512 tokens, and one over one token."""
    found = {}
    with torch.no_grad():
        for what, part in (("512 tokens", ids[:1]), ("1 token", ids[:1, :1])):
            times = []
            for _ in range(5):
                start = time.perf_counter()
                model(part)
                times.append(time.perf_counter() - start)
            found[what] = round(min(times), 4)
    return found


def put(model: Any, layers: dict[str, nn.Module]) -> None:
    for name, layer in layers.items():
        model.model.layers.set_submodule(name, layer)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    model, _ = subject.load()
    trial = cuts.Trial(model, torch.load(folder / "ids.pt"))
    m = clipping.Moments(folder)
    factors = trial.factors(m.best_moment(), m.best_weight())
    tails = {k: f.tail for k, f in factors.items()}
    shares, texts = (0.9, 0.8, 0.7, 0.6, 0.5), ("wiki", "news")
    trial.run("factors", factors, shares, texts)
    trial.run("pivoted", factors, shares, texts, pivoted=True)
    rows: list[dict[str, Any]] = []
    for share in (0.8, 0.6):
        for pivoted in (False, True):
            given = cuts.allocate(tails, trial.shapes, share, pivoted)
            ranks = {k: r for k, r in given.items() if r is not None}
            for by in (bfloat16, int8):
                made = {k: rounded(factors[k], r, pivoted, by) for k, r in ranks.items()}
                trial.install({k: W for k, (W, _) in made.items()})
                row = {
                    "share": share,
                    "pivoted": pivoted,
                    "rounded to": by.__name__,
                    "wiki": round(subject.perplexity(model, trial.ids["wiki"]), 2),
                    "largest entry of the mixing": round(max(x for _, x in made.values()), 2),
                }
                rows.append(row)
                print(row, flush=True)
    trial.install({})
    layers = subject.linears(model)
    times = [{"what": "dense", **seconds(model, trial.ids["wiki"])}]
    for share in (0.8, 0.6):
        for pivoted in (False, True):
            given = cuts.allocate(tails, trial.shapes, share, pivoted)
            new: dict[str, nn.Module] = {}
            for name, rank in given.items():
                if rank is None:
                    continue
                outer, inner = balanced(factors[name], rank)
                if pivoted:
                    new[name] = pivoting.PivotedLinear(outer, inner)
                else:
                    pair = [nn.Linear(*x.T.shape, bias=False) for x in (inner, outer)]
                    for layer, x in zip(pair, (inner, outer), strict=True):
                        layer.weight.data.copy_(x)
                    new[name] = nn.Sequential(*pair)
            put(model, new)
            times.append(
                {"what": "pivoted" if pivoted else "factors", "share": share}
                | seconds(model, trial.ids["wiki"])
            )
            put(model, {name: layers[name] for name in new})
            print(times[-1], flush=True)
    subject.record("pivoting", trial.rows, rounding=rows, times_float32_one_thread=times)


if __name__ == "__main__":
    main()
