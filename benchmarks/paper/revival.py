"""What revives lost classes: the parts of the published split, one at a time, on Example 4.4's net.

    python benchmarks/paper/revival.py --output-relu --seeds 0 1 2 --epochs 8

The published split does three things at once after epoch 3: it cuts away 55 % of the bulk, it
forgets the optimizer's state, and it steps on two factors as long as on one matrix. A control only
raises the learning rate.
"""

from typing import Any

from command import images, parser
from comparison import Record, Way, collect, print_table, rows, runner
from example_4_4 import EXAMPLE

EPOCHS = 8
CYCLE = 3
SPLIT = {"every": CYCLE, "fit_cutoff": EXAMPLE.fit_cutoff}
WAYS = (
    Way("unsplit", "unsplit"),
    Way("unsplit, optimizer fresh every 3 epochs", "fresh-optimizer", {"every": CYCLE}),
    *(
        Way(
            f"unsplit, {factor:g} times the learning rate",
            "raised-rate",
            {"after": CYCLE, "factor": factor},
        )
        for factor in (2.0, 4.0)
    ),
    Way("truncated, not split", options={**SPLIT, "mode": "truncate"}),
    Way("split, steps matched", options={**SPLIT, "match_step": True}),
    Way(
        "split, steps matched, optimizer fresh",
        options={**SPLIT, "match_step": True, "fresh_optimizer": True},
    ),
    Way("split, steps as they come", options={**SPLIT, "match_step": False}),
    Way("as published: split, as they come, fresh", "paper", EXAMPLE.options("paper")),
)


def table(found: dict[str, list[Record]]) -> list[dict[str, Any]]:
    """Return a row for each way: lost classes before the first cut and at the end, by seed."""
    shown = ("training", "seeds", "test accuracy, %", "train accuracy, %")
    made = []
    for row, records in zip(rows(found), found.values(), strict=True):
        lost = [[epoch["classes_never_predicted"] for epoch in r["epochs"]] for r in records]
        made.append(
            {key: row[key] for key in shown}
            | {
                f"lost after epoch {CYCLE}": " ".join(str(each[CYCLE - 1]) for each in lost),
                "lost at the end": " ".join(str(each[-1]) for each in lost),
            }
        )
    return made


def main() -> None:
    """Run what is missing, then print the table."""
    given = parser("What revives lost classes.").parse_args()
    run = runner(EXAMPLE.number, EXAMPLE.dims, given.epochs or EPOCHS, given, images(given))
    print_table(collect(WAYS, run, given.seeds))


if __name__ == "__main__":
    main()
