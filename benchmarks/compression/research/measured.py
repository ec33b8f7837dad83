"""Predicted losses rescaled by measured ones: one scale for a kind of layer, or for kind and depth.

All layers of one kind (in one part of the depth) are cut as the budget by predicted loss cuts them;
the divergence of the model's distribution from the dense one's, on calibration sequences, over the
predicted loss is their scale. The budget is then solved again with scaled losses.

    python measured.py FOLDER
"""

import sys
import time
from pathlib import Path
from typing import Any

import clipping
import cuts
import subject
import torch

SEQUENCES = 4  # of calibration, for each measurement


@torch.no_grad()
def states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model.model(ids).last_hidden_state


@torch.no_grad()
def divergence(model: Any, dense: torch.Tensor, ids: torch.Tensor) -> float:
    """Mean over tokens of KL(dense || cut)."""
    total = 0.0
    for before, after in zip(dense, states(model, ids), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            p, q = model.lm_head(before), model.lm_head(after)
        p, q = p.float().log_softmax(-1), q.float().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
    return total / ids.numel()


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    model, _ = subject.load()
    trial = cuts.Trial(model, torch.load(folder / "ids.pt"))
    m = clipping.Moments(folder)
    factors = trial.factors(m.best_moment(), m.best_weight())
    tails = {k: f.tail for k, f in factors.items()}
    torch.save(tails, folder / "tails.pt")
    ids = trial.ids["calibration"][-SEQUENCES:]
    dense = states(model, ids)
    scales: dict[str, Any] = {}
    for share, parts in ((0.8, 1), (0.6, 1), (0.8, 5), (0.6, 5)):
        what = f"scale of {'a kind' if parts == 1 else f'a kind in one of {parts} parts'}"
        start = time.time()
        ranks = cuts.allocate(tails, trial.shapes, share, pivoted=True)
        scaled = dict(tails)
        for kind in subject.KINDS:
            for part in range(parts):
                group = [
                    k
                    for k in tails
                    if k.endswith(kind) and int(k.split(".")[0]) * parts // 30 == part
                ]
                cut = {k: r for k in group if (r := ranks[k]) is not None}
                if not cut:
                    continue
                trial.install({k: factors[k].cut(r) for k, r in cut.items()})
                measured = divergence(model, dense, ids)
                predicted = sum(float(tails[k][r]) for k, r in cut.items())
                scale = measured / predicted
                scales[f"{what}, {share}, {kind} {part}"] = round(scale, 3)
                scaled |= {k: tails[k] * scale for k in group}
        print({k: v for k, v in scales.items() if f"{what}, {share}" in k}, flush=True)
        print(f"{time.time() - start:.0f} s of measurements", flush=True)
        if parts == 1:
            trial.run("predicted", factors, [share], pivoted=True)
        trial.run(f"predicted, {what}", factors, [share], tails=scaled, pivoted=True)
        subject.record("measured", trial.rows, scales=scales)


if __name__ == "__main__":
    main()
