"""The sceptic's controls: is it the edge, the early full-rank epochs, or the step that does it?

    python benchmarks/paper/controls.py --dims 784 1000 500 10 --seeds 0 1 2 --epochs 5

Against the net of which all of the bulk is removed after epoch 2 with the step matched:
the same ranks from the first step on, at several learning rates, matched or not; the same ranks
after another epoch; as many parameters in other ranks: one share of the singular values in all
layers, the ranks turned round, ranks drawn at random; and the same without the matched step.
"""

import random
from collections.abc import Iterable
from typing import Any

from command import images, parser
from comparison import Record, Runs, Way, print_table, runner

EXAMPLE = "controls"
DIMS = (784, 1000, 500, 10)
EPOCHS = 5
ONCE = {"every": [2], "fit_cutoff": None}
EDGE = Way("edge, after epoch 2", options={**ONCE, "bulk_keep": 0.0})
#: Learning rates for nets that are thin from the start.
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)


def table(run: Runs, seeds: Iterable[int], dims: tuple[int, ...] = DIMS) -> dict[str, list[Record]]:
    """Return the records of each control, those that there are."""
    found: dict[str, list[Record]] = {}
    for seed in seeds:
        edge = run(EDGE, seed)
        if edge is None:
            continue
        ways = [Way("unsplit", "unsplit"), EDGE, *_controls(_ranks(edge), dims, seed)]
        for way in ways:
            record = run(way, seed)
            if record:
                found.setdefault(way.name, []).append(record)
    return found


def main() -> None:
    """Run what is missing, then print the table."""
    options = parser("The sceptic's controls.")
    options.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
    given = options.parse_args()
    dims = tuple(given.dims)
    run = runner(EXAMPLE, dims, given.epochs or EPOCHS, given, images(given))
    print_table(table(run, given.seeds, dims))


def _ranks(record: Record) -> dict[str, int]:
    """Return the ranks of the layers that were split."""
    change = next(row["change"] for row in record["epochs"] if "change" in row)
    return {m["name"]: m["rank"] for m in change["matrices"] if m["action"] == "split"}


def _controls(ranks: dict[str, int], dims: tuple[int, ...], seed: int) -> list[Way]:
    sides = {name: _sides(name, dims) for name in ranks}
    given: dict[str, Any] = {"fit_cutoff": None, "ranks": ranks}
    start = {**given, "every": [1], "from_start": True}
    ways = [
        Way(f"same ranks from the start, lr {rate:g}{mark}",
            options={**start, "match_step": match}, other={"lr": rate})
        for match, mark in ((False, ""), (True, ", matched")) for rate in RATES
    ]  # fmt: skip
    ways += [
        Way(f"same ranks, after epoch {epoch}", options={**given, "every": [epoch]})
        for epoch in (1, 3)
    ]
    parameters = sum(ranks[name] * sum(sides[name]) for name in ranks)
    for name, chosen in (
        ("as many parameters, one share for all", _even(sides, parameters)),
        ("as many parameters, ranks at random", _drawn(sides, parameters, seed)),
    ):
        ways.append(Way(name, options={**ONCE, "ranks": chosen}))
    ways.append(
        Way("edge, after epoch 2, not matched", options={**EDGE.options, "match_step": False})
    )
    ways.append(
        Way("one rank less than half the edge's", options={
            **ONCE, "ranks": {name: max(1, rank // 2 - 1) for name, rank in ranks.items()}})
    )  # fmt: skip
    return ways


def _sides(name: str, dims: tuple[int, ...]) -> tuple[int, int]:
    index = int(name.rpartition(".")[2])
    return dims[index], dims[index + 1]


def _even(sides: dict[str, tuple[int, int]], parameters: int) -> dict[str, int]:
    """Return one share of the singular values of each layer, for about as many parameters."""
    share = parameters / sum(min(pair) * sum(pair) for pair in sides.values())
    return {name: max(1, round(share * min(pair))) for name, pair in sides.items()}


def _drawn(sides: dict[str, tuple[int, int]], parameters: int, seed: int) -> dict[str, int]:
    """Return ranks that divide about as many parameters among the layers at random."""
    drawn = random.Random(seed)
    weights = {name: drawn.expovariate(1.0) for name in sides}
    total = sum(weights.values())
    return {
        name: max(1, min(min(pair), round(parameters * weights[name] / total / sum(pair))))
        for name, pair in sides.items()
    }


if __name__ == "__main__":
    main()
