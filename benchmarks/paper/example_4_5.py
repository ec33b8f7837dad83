"""Example 4.5 of the paper: the net of Example 4.4 with a weak fit test.

python benchmarks/paper/example_4_5.py --epochs 8 --seeds 0 1
"""

from command import Example, main

EXAMPLE = Example("4.5", (784, 1500, 1500, 500, 500, 10), paper_epochs=300, fit_cutoff=0.1)

if __name__ == "__main__":
    main(EXAMPLE)
