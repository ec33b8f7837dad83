"""Cutting factors again: what the second cycle does to a net, by what it treats as a matrix.

    python benchmarks/paper/recut.py --seeds 11 12 --epochs 7

A net [784, 1200, 700, 10] whose whole bulk goes after epoch 3. After epoch 6 a split layer is one
matrix, or else each factor is a layer of its own, as published. The gate on the fit is the
pruner's own, 0.1.
"""

from typing import Any

from command import images, parser
from comparison import Record, Way, changed, collect, runner

EXAMPLE = "recut"
DIMS = (784, 1200, 700, 10)
EPOCHS = 7
SPLIT = {"every": 3, "bulk_keep": 0.0}
WAYS = (
    Way("unsplit", "unsplit"),
    Way("each factor is a layer (published)", options={**SPLIT, "recut": "factors"}),
    Way("a split layer is one matrix", options={**SPLIT, "recut": False}),
)


def rows(table: dict[str, list[Record]]) -> list[dict[str, Any]]:
    """Return a row for each way and seed: test accuracy around the second cut, and what it cut."""
    made = []
    for name, records in table.items():
        for record in records:
            epochs = record["epochs"]
            sixth = epochs[5]
            cut = [
                "{name} at rank {rank} (statistic {fit_statistic:.3f})".format(**matrix)
                for matrix in sixth.get("change", {}).get("matrices", ())
                if matrix["action"] != "keep"
            ]
            made.append(
                {
                    "training": name,
                    "seed": record["setup"]["seed"],
                    "epoch 6, %": round(sixth["test_accuracy"], 2),
                    "after the second cycle, %": round(
                        sixth["change"]["test_accuracy"]
                        if changed(sixth)
                        else sixth["test_accuracy"],
                        2,
                    ),
                    "epoch 7, %": round(epochs[6]["test_accuracy"], 2),
                    "parameters": f"{record['parameters']:,}",
                    "cut in the second cycle": ", ".join(cut) or "nothing",
                }
            )
    return made


def main() -> None:
    """Run what is missing, then print the table."""
    given = parser("Whether factors are cut again.").parse_args()
    run = runner(EXAMPLE, DIMS, given.epochs or EPOCHS, given, images(given))
    for row in rows(collect(WAYS, run, given.seeds)):
        print("  ".join(f"{value!s:30}" for value in row.values()))


if __name__ == "__main__":
    main()
