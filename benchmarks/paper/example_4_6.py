"""Example 4.6 of the paper: a net of six layers, 21,975,510 parameters.

python benchmarks/paper/example_4_6.py --epochs 5 --seeds 0 1
"""

from command import Example, main

EXAMPLE = Example(
    "4.6", (784, 2500, 2500, 2500, 2500, 500, 10), paper_epochs=30, fit_cutoff=0.05, edge_after=3
)

if __name__ == "__main__":
    main(EXAMPLE)
