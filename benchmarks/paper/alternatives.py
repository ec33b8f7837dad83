"""What the field does to the singular values of a net, and regularisers of its noise, in one table.

    python benchmarks/paper/alternatives.py --dims 784 1000 500 10 --seeds 0 1 2 --epochs 5

Every way trains the same net with the same batches and seeds (lr .05, momentum .9, batch 128).
Layers are split or truncated once, after epoch 2, with the step matched, unless the name says
otherwise. Penalties act before the split.
"""

from command import images, parser
from comparison import Way, collect, print_table, runner

EXAMPLE = "alternatives"
DIMS = (784, 1000, 500, 10)
EPOCHS = 5
ONCE = {"every": [2], "fit_cutoff": None}
STEPS = 469  # batches of 128 in an epoch of 60,000 images
EDGE = {**ONCE, "bulk_keep": 0.0}
WAYS = (
    Way("unsplit", "unsplit"),
    Way("keep 45 % of the bulk", options={**ONCE, "bulk_keep": 0.45}),
    Way("keep 55 % (remove 45 %, as the text says)", options={**ONCE, "bulk_keep": 0.55}),
    Way("keep 45 %, every 3 epochs", options={"every": 3, "fit_cutoff": None}),
    Way("remove all of the bulk", options=EDGE),
    Way("energy, 90 % of the squares", options={**ONCE, "rule": "energy", "keep": 0.9}),
    Way("energy, 50 % of the squares", options={**ONCE, "rule": "energy", "keep": 0.5}),
    Way("fraction, 25 % of the values", options={**ONCE, "rule": "fraction", "keep": 0.25}),
    Way("fraction, 5 % of the values", options={**ONCE, "rule": "fraction", "keep": 0.05}),
    Way("budget, 10 % of the parameters", options={**ONCE, "budget": 0.1}),
    Way("truncate to the edge, no split", options={**EDGE, "mode": "truncate"}),
    Way("truncate, every epoch", options={**EDGE, "every": 1, "mode": "truncate"}),
    *(
        Way(
            f"{norm.upper()} on the bulk {strength:g}, then remove it",
            "bulk-penalty",
            {**EDGE, "norm": norm, "strength": strength},
        )
        for norm, strength in (("l2", 1e-3), ("l2", 1e-2), ("l1", 1e-5), ("l1", 1e-4))
    ),
    *(
        Way(
            f"nuclear norm {strength:g}, then remove the bulk",
            "nuclear-norm",
            {**EDGE, "strength": strength, "steps": STEPS},
        )
        for strength in (1e-4, 1e-3)
    ),
)


def main() -> None:
    """Run what is missing, then print the table."""
    options = parser("Ways to cut and to regularise, compared.")
    options.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
    given = options.parse_args()
    run = runner(EXAMPLE, tuple(given.dims), given.epochs or EPOCHS, given, images(given))
    print_table(collect(WAYS, run, given.seeds))


if __name__ == "__main__":
    main()
