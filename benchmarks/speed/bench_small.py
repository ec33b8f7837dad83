"""Many small matrices against one stacked call of NumPy."""

import numpy as np
import pytest

import rmtspec
from rmtspec.matrix.small_symmetric import stacked_eigvalsh


@pytest.mark.parametrize("p", [16, 32, 64, 128])
def test_eigenvalues_of_stacks(paired, p):
    tall = np.random.default_rng(0).standard_normal((512 * 32 // p, 2 * p, p))
    grams = np.matmul(tall.transpose(0, 2, 1), tall)
    paired(
        f"eigenvalues of stacks of {p}x{p} / numpy eigvalsh",
        lambda: stacked_eigvalsh(grams.copy()),
        lambda: np.linalg.eigvalsh(grams),
        limit=0.65,
    )


def test_a_thousand_small_matrices(paired):
    stack = np.random.default_rng(0).standard_normal((1000, 64, 64)).astype(np.float32)
    matrices = {str(index): matrix for index, matrix in enumerate(stack)}

    def stacked():
        wide = stack.astype(np.float64)
        return np.linalg.eigvalsh(np.matmul(wide.transpose(0, 2, 1), wide))

    paired(
        "analyze_many(1000 of 64x64, noise='mp') / stacked eigvalsh",
        lambda: rmtspec.analyze_many(matrices, noise="mp"),
        stacked,
        limit=1.8,
    )
