"""Example 4.3 of the paper: a net of four layers, 12,863,510 parameters.

python benchmarks/paper/example_4_3.py --epochs 6 --seeds 0 1
"""

from command import Example, main

EXAMPLE = Example("4.3", (784, 3000, 3000, 500, 10), paper_epochs=90, fit_cutoff=0.15, edge_after=3)

if __name__ == "__main__":
    main(EXAMPLE)
