"""Which rule for the steps on the factors is best: accuracy around a split, by rule and seed.

    python benchmarks/paper/step_matching.py --seeds 0 1 2 3 4 --optimizers sgd adam

A net [784, 1000, 500, 10] is trained as it is, and split after epoch 2 with each rule, once
keeping 45 % of the bulk and once none of it. Rates: SGD .05 with momentum .9, Adam .001.
"""

import statistics
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from command import images, parser
from comparison import Runs, Way, collect, runner

EXAMPLE = "step"
EPOCHS = 5
DIMS = (784, 1000, 500, 10)
SPLIT_AFTER = 2
RATES = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001}
RULES = (False, "largest", "geometric mean", "each direction", "root of largest")


def main() -> None:
    """Run what is missing, then print one table per optimizer and share of the bulk."""
    options = parser("Rules for the steps on the factors.")
    options.add_argument("--optimizers", nargs="+", choices=tuple(RATES), default=["sgd", "adam"])
    options.add_argument("--bulk-keep", type=float, nargs="+", default=[0.0, 0.45])
    given = options.parse_args()
    loaded = images(given)

    run = runner(EXAMPLE, DIMS, given.epochs or EPOCHS, given, loaded)

    for optimizer in given.optimizers:
        for keep in given.bulk_keep:
            print(f"\n{optimizer}, bulk_keep {keep}")
            for row in rows(run, given.seeds, optimizer, keep):
                print("  ".join(f"{value!s:16}" for value in row.values()))


def rows(run: Runs, seeds: Iterable[int], optimizer: str, keep: float) -> list[dict[str, Any]]:
    """Return the mean accuracy of each epoch by rule, and the worst fall of all seeds."""
    other = {"optimizer": optimizer, "lr": RATES[optimizer]}
    how = {"every": [SPLIT_AFTER], "bulk_keep": keep, "fit_cutoff": None}
    ways = [Way("not split", "unsplit", other=other)]
    ways += [
        Way(rule or "no matching", options={**how, "match_step": rule}, other=other)
        for rule in RULES
    ]
    made = []
    for name, records in collect(ways, run, seeds).items():
        curves = [[row["test_accuracy"] for row in record["epochs"]] for record in records]
        row: dict[str, Any] = {"rule": name, "seeds": len(records)}
        for epoch, values in enumerate(zip(*curves, strict=True), start=1):
            row[f"epoch {epoch}"] = f"{statistics.mean(values):.2f}"
        falls = [a - b for curve in curves for a, b in pairwise(curve[SPLIT_AFTER - 1 :])]
        row["worst fall"] = f"{max(falls):.2f}"
        made.append(row)
    return made


if __name__ == "__main__":
    main()
