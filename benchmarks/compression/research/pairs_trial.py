"""Hidden units of the MLPs and coordinates of the values against low rank, alone and together.

python pairs_trial.py FOLDER
"""

import sys
import time
from pathlib import Path
from typing import Any

import clipping
import cuts
import pairs
import subject
import torch

MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def best_low_rank(
    tail: torch.Tensor, shape: tuple[int, int], price: float, pivoted: bool
) -> tuple[float, float, int | None]:
    """Loss, size and rank (None: dense) of one layer at a price of a parameter."""
    m, n = shape
    sizes = cuts.size_of(m, n, torch.arange(len(tail)), pivoted)
    cost = tail + price * sizes
    k = int(cost.argmin())
    if price * m * n <= cost[k]:
        return 0.0, m * n, None
    return float(tail[k]), float(sizes[k]), k


def allocate(
    factors: dict[str, cuts.Factors],
    shapes: dict[str, tuple[int, int]],
    units: dict[str, pairs.Elimination],
    share: float,
    *,
    low_rank: bool,
    pivoted: bool = False,
) -> tuple[dict[str, int | None], dict[str, int], float]:
    """Ranks of layers, counts of units that leave of blocks, predicted loss.

    A block's MLP is either three layers with ranks of their own or three dense layers with fewer
    units, whichever is cheaper at the price. Without ``low_rank`` only units may leave.
    """
    total = sum(m * n for m, n in shapes.values())

    def at(price: float) -> tuple[dict[str, int | None], dict[str, int], float, float]:
        ranks: dict[str, int | None] = {}
        leave: dict[str, int] = {}
        loss = size = 0.0
        alone = {
            name: best_low_rank(factors[name].tail, shape, price, pivoted)
            if low_rank
            else (0.0, float(shape[0] * shape[1]), None)
            for name, shape in shapes.items()
        }
        for block, found in units.items():
            names = [f"{block}.{kind}" for kind in MLP]
            m, n = shapes[names[0]]
            sizes = 3.0 * n * (m - torch.arange(len(found.loss)))
            cost = found.loss + price * sizes
            i = int(cost.argmin())
            if float(cost[i]) < sum(alone[k][0] + price * alone[k][1] for k in names):
                leave[block] = i
                loss += float(found.loss[i])
                size += float(sizes[i])
                for name in names:
                    del alone[name]
        for name, (lost, parameters, k) in alone.items():
            ranks[name] = k
            loss += lost
            size += parameters
        return ranks, leave, loss, size

    low, high = 1e-14, 1.0
    for _ in range(80):
        middle = (low * high) ** 0.5
        if at(middle)[3] > share * total:
            low = middle
        else:
            high = middle
    return at(high)[:3]


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    model, _ = subject.load()
    trial = cuts.Trial(model, torch.load(folder / "ids.pt"))
    m = clipping.Moments(folder)
    moment = m.best_moment()
    weight = m.best_weight()
    start = time.time()
    factors = trial.factors(moment, weight)
    print(f"{time.time() - start:.0f} s of decompositions", flush=True)
    start = time.time()
    units = {}
    for block in range(len(model.model.layers)):
        name = f"{block}.mlp.down_proj"
        units[str(block)] = pairs.eliminate(trial.dense[name], moment(name), weight(name), step=32)
    print(f"{time.time() - start:.0f} s of eliminations", flush=True)
    rows: list[dict[str, Any]] = []
    for what, options in (
        ("low rank", {"units": {}, "low_rank": True}),
        ("units", {"units": units, "low_rank": False}),
        ("low rank or units", {"units": units, "low_rank": True}),
        ("low rank, pivoted", {"units": {}, "low_rank": True, "pivoted": True}),
        ("low rank or units, pivoted", {"units": units, "low_rank": True, "pivoted": True}),
    ):
        for share in (0.8, 0.6):
            if what == "units" and share < 0.7:
                continue  # the MLPs are three quarters of the parameters
            ranks, leave, loss = allocate(factors, trial.shapes, share=share, **options)
            weights = {k: factors[k].cut(r) for k, r in ranks.items() if r is not None}
            for block, count in leave.items():
                name = f"{block}.mlp.down_proj"
                gone = set(units[block].order[:count].tolist())
                kept = torch.tensor([i for i in range(trial.shapes[name][1]) if i not in gone])
                if count:
                    weights[name] = pairs.refit(trial.dense[name], moment(name), kept)
            trial.install(weights)
            row = {
                "what": what,
                "share": share,
                "wiki": round(subject.perplexity(model, trial.ids["wiki"]), 2),
                "predicted": round(loss, 4),
                "blocks with fewer units": sum(count > 0 for count in leave.values()),
                "units that left": sum(leave.values()),
                "dense layers": sum(r is None for r in ranks.values()),
            }
            rows.append(row)
            print(row, flush=True)
            subject.record("pairs", rows, gradients="16 sequences")


if __name__ == "__main__":
    main()
