"""When to remove the bulk, and how much of it: schedules tried on the net of Example 4.4.

python benchmarks/paper/schedules.py --seeds 0 1 --epochs 8
"""

from command import EDGE, images, parser
from comparison import Way, collect, print_table, runner
from example_4_4 import EXAMPLE

EPOCHS = 8
NONE = {"bulk_keep": 0.0}
WAYS = (
    Way("unsplit", "unsplit"),
    Way("after epoch 2, spikes counted once", "edge", {"every": [2], **EDGE}),
    Way("after epoch 2, spikes refined", options={"every": [2], **NONE}),
    Way("after epoch 1, refined", options={"every": [1], **NONE}),
    Way("after epoch 2, 2 % of the bulk kept", options={"every": [2], "bulk_keep": 0.02}),
    Way("after epoch 3, spikes counted once", options={"every": [3], **EDGE}),
    Way("after epochs 2 and 4, any fit", options={"every": [2, 2], **NONE, "fit_cutoff": None}),
)


def main() -> None:
    """Run what is missing, then print the table."""
    given = parser("Schedules, compared.").parse_args()
    run = runner("4.4", EXAMPLE.dims, given.epochs or EPOCHS, given, images(given))
    print_table(collect(WAYS, run, given.seeds))


if __name__ == "__main__":
    main()
