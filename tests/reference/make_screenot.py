"""Print the numbers of tests/matrix/test_rules.py, from ScreeNOT's authors' own package.

pip install screenot==0.0.2 && python tests/reference/make_screenot.py
"""

import sys

import numpy as np
from screenot import ScreeNOT, adaptiveHardThresholding

CASES = ((60, 90, 5, 20), (90, 60, 3, 10), (200, 200, 20, 40), (40, 300, 0, 5), (50, 80, 4, 0))


def singular_values(p, signals):
    """Return a bulk of a soft edge and signals beyond it, without a random number."""
    bulk = 1.0 + np.cos(np.pi * (np.arange(p - signals) + 0.5) / p)
    return np.concatenate([np.linspace(9.0, 2.4, signals), bulk])


for rows, columns, signals, bound in CASES:
    values = singular_values(min(rows, columns), signals)
    W = np.zeros((rows, columns))
    np.fill_diagonal(W, values)
    _, threshold, rank = adaptiveHardThresholding(W, bound)
    noise = ScreeNOT.createPseudoNoise(values, bound)
    level = ScreeNOT.F(threshold, noise, min(rows, columns) / max(rows, columns))
    numbers = f"{float(threshold)!r}, {int(rank)}, {float(noise.sum())!r}, {float(level)!r}"
    sys.stdout.write(f"    ({rows}, {columns}, {signals}, {bound}, {numbers}),\n")
