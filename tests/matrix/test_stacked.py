"""Eigenvalues of many small matrices in one call, against each of them alone."""

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import rmtspec
from rmtspec.matrix.eigenvalues import matrix_eigenvalues
from rmtspec.matrix.stacked import is_small, stacked_eigenvalues

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


def drawn(shape, count=5, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (20, 20), (30, 20), (20, 30), (128, 90)])
def test_each_is_what_it_is_by_its_gram_matrix(shape, dtype):
    matrices = drawn(shape, dtype=dtype)
    for found, W in zip(stacked_eigenvalues(matrices), matrices, strict=True):
        alone = matrix_eigenvalues(W, "gram", "float64", None)
        if found is None:  # a square matrix may be singular, or a short dtype hold a zero row
            continue
        assert_allclose(found.values, alone.values, rtol=0, atol=1e-13 * alone.values[-1])
        assert_allclose(found.moments, alone.moments, rtol=1e-9, atol=1e-12)
        assert found._replace(values=0, moments=0) == alone._replace(values=0, moments=0)


@pytest.mark.parametrize("shape", [(64, 64), (17, 40), (100, 16)])
def test_the_last_digit_does_not_depend_on_the_others(shape):
    matrices = drawn(shape, 40)
    together = stacked_eigenvalues(matrices)
    for index in (0, 7, 39):
        (alone,) = stacked_eigenvalues([matrices[index]])
        assert_array_equal(together[index].values, alone.values)
        assert together[index].moments == alone.moments
        spec = rmtspec.spectrum(matrices[index])
        assert_array_equal(spec.eigenvalues, alone.values)


def spoiled(kind):
    W = drawn((30, 20), 1)[0]
    if kind == "nan":
        W[3, 4] = np.nan
    elif kind == "inf":
        W[3, 4] = -np.inf
    elif kind == "zero row":
        W[5] = 0.0
    elif kind == "zero column":
        W[:, 5] = 0.0
    elif kind == "large":
        W *= 1e100
    elif kind == "small":
        W *= 1e-100
    elif kind == "zero":
        W[:] = 0.0
    elif kind == "one value dwarfs the others":
        W += 1e12 * np.outer(W[:, 0], W[0])
    return W


@pytest.mark.parametrize(
    "kind",
    ["nan", "inf", "zero row", "zero column", "large", "small", "zero",
     "one value dwarfs the others"],
)  # fmt: skip
def test_what_needs_more_is_left_to_the_way_of_one(kind):
    usual = drawn((30, 20), 3)
    found = stacked_eigenvalues([usual[0], spoiled(kind), *usual[1:]])
    assert found[1] is None
    for mine, alone in zip([found[0], *found[2:]], stacked_eigenvalues(usual), strict=True):
        assert_array_equal(mine.values, alone.values)


@pytest.mark.parametrize("scale", [1e-65, 1e-30, 1e30, 1e65])
def test_scales_that_are_usual_scale_all(scale):
    matrices = drawn((30, 20), 3)
    for found, alone in zip(
        stacked_eigenvalues([W * scale for W in matrices]),
        stacked_eigenvalues(matrices),
        strict=True,
    ):
        assert_allclose(found.values / scale / scale, alone.values, rtol=1e-12)
        assert_allclose(found.moments, alone.moments, rtol=1e-12)


def test_what_is_small():
    assert is_small((128, 1024))
    assert is_small((1024, 128))
    assert not is_small((129, 129))
    assert not is_small((1025, 3))
    assert not is_small((0, 3))
    assert not is_small((3,))
    assert not is_small((2, 3, 4))
