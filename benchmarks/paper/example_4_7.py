"""Example 4.7 of the paper: a net of four layers, 20,391,010 parameters.

python benchmarks/paper/example_4_7.py --epochs 5 --seeds 0 1
"""

from command import Example, main

EXAMPLE = Example(
    "4.7", (784, 3000, 3000, 3000, 10), paper_epochs=90, fit_cutoff=0.01, edge_after=3
)

if __name__ == "__main__":
    main(EXAMPLE)
