"""Which rule for the steps on the factors is best: accuracy around a split, by rule and seed.

    python benchmarks/paper/step_matching.py --seeds 0 1 2 3 4 --optimizers sgd adam

A net [784, 1000, 500, 10] is trained as it is, and split after epoch 2 with each rule, once
keeping 45 % of the bulk and once none of it. Rates: SGD .05 with momentum .9, Adam .001.
"""

import statistics
from typing import Any

from command import images, parser
from comparison import Way, runner

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

    run = runner("step", DIMS, given.epochs or 6, given, loaded)

    for optimizer in given.optimizers:
        other = {"optimizer": optimizer, "lr": RATES[optimizer]}
        unsplit = [run(Way("unsplit", "unsplit", other=other), seed) for seed in given.seeds]
        for keep in given.bulk_keep:
            print(f"\n{optimizer}, bulk_keep {keep}: mean test accuracy over {given.seeds}")
            print_row("unsplit", unsplit)
            for rule in RULES:
                how = {"every": [SPLIT_AFTER], "bulk_keep": keep, "fit_cutoff": None}
                way = Way(rule or "no matching", options={**how, "match_step": rule}, other=other)
                print_row(way.name, [run(way, seed) for seed in given.seeds])


def print_row(name: str, records: list[dict[str, Any]]) -> None:
    """Print the mean accuracy of each epoch, and the worst fall from one epoch to the next."""
    curves = [[row["test_accuracy"] for row in record["epochs"]] for record in records]
    means = [statistics.mean(values) for values in zip(*curves, strict=True)]
    falls = [curve[i] - curve[i + 1] for curve in curves for i in range(1, len(curve) - 1)]
    shown = " ".join(f"{mean:6.2f}" for mean in means)
    print(f"{name:16} {shown}   worst fall {max(falls):.2f}", flush=True)


if __name__ == "__main__":
    main()
