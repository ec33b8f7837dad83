"""Example 4.4 of the paper: a net of five layers with a strict fit test.

python benchmarks/paper/example_4_4.py --epochs 8 --seeds 0 1
"""

from command import Example, main

EXAMPLE = Example("4.4", (784, 1500, 1500, 500, 500, 10), paper_epochs=300, fit_cutoff=0.012)

if __name__ == "__main__":
    main(EXAMPLE)
