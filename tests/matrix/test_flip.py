"""Sign flips of the bulk: what stays, what turns, what is refused."""

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import rmtspec
from rmtspec.errors import InvalidOptionError, InvalidTypeError, InvalidValueError, OptionError
from rmtspec.matrix.flip import BulkFlip, flipped_bulk

W = rmtspec.ensembles.spiked(90, 60, [5, 9, 20], rng=0)


def leading(matrix, k):
    """Return the sum of the k leading components, from the full SVD."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :k] * values[:k]) @ right[:k]


@pytest.mark.parametrize("k", [0, 1, 3, 59])
@pytest.mark.parametrize("turned", [False, True])
def test_every_entry_of_the_bulk_keeps_its_size(k, turned):
    matrix = W.T if turned else W
    kept = matrix.copy()
    flipped = flipped_bulk(matrix, k, rng=1)
    signal = leading(matrix, k)
    same = flipped == matrix  # to the last bit
    assert 0.45 < same.mean() < 0.55
    assert_allclose(flipped[~same], (2 * signal - matrix)[~same], atol=1e-12)
    assert_array_equal(matrix, kept)
    assert flipped.dtype == np.float64


def test_no_bulk_is_left_to_flip():
    assert_allclose(flipped_bulk(W, 60), W, atol=1e-12)
    assert BulkFlip.of(W, 60).bulk_share == 0.0


def test_share_of_the_bulk():
    values = np.linalg.svd(W, compute_uv=False)
    expected = np.square(values[3:]).sum() / np.square(values).sum()
    assert_allclose(BulkFlip.of(W, 3).bulk_share, expected, rtol=1e-10)
    assert BulkFlip.of(W, 0).bulk_share == 1.0


def test_draws_are_independent_and_reproducible():
    assert_array_equal(flipped_bulk(W, 3, rng=7), flipped_bulk(W, 3, rng=7))
    assert_array_equal(flipped_bulk(W, 3), flipped_bulk(W, 3, rng=0))
    flip, generator = BulkFlip.of(W, 3), np.random.default_rng(0)
    first, second = flip.draw(W, generator), flip.draw(W, generator)
    assert 0.45 < (first == second).mean() < 0.55


@pytest.mark.parametrize("dtype", ["f2", "f4", ml_dtypes.bfloat16, "i4"])
def test_other_dtypes_and_layouts(dtype):
    matrix = np.asfortranarray(10 * W).astype(dtype)
    flipped = flipped_bulk(matrix[::2], 3, rng=1)
    expected = flipped_bulk(matrix[::2].astype("f8"), 3, rng=1)
    assert_array_equal(flipped, expected)
    assert np.isin(flipped, matrix[::2].astype("f8")).mean() > 0.4


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: flipped_bulk(W, 61), InvalidOptionError, r"`n_components` is 61; .* from 0 to 60"),
        (lambda: flipped_bulk(W, -1), InvalidOptionError, "`n_components` is -1"),
        (lambda: flipped_bulk(W, 2.5), OptionError, r"`n_components` is 2\.5"),
        (lambda: flipped_bulk(W[0], 1), InvalidValueError, "expected a matrix"),
        (lambda: flipped_bulk(W * 1j, 1), InvalidTypeError, "complex"),
        (lambda: flipped_bulk(np.full((5, 4), np.nan), 0), InvalidValueError, "20 nan"),
        (lambda: flipped_bulk(np.full((5, 4), np.nan), 2), InvalidValueError, "20 nan"),
        (lambda: flipped_bulk(W, 1, rng=-1), InvalidOptionError, "`rng` is -1; expected a whole"),
        (lambda: flipped_bulk(W, 1, rng="a"), OptionError, "`rng` is 'a'"),
        (lambda: flipped_bulk(W, 1, rng=0.5), OptionError, r"`rng` is 0\.5"),
        (lambda: flipped_bulk(W, 1, rng=object()), OptionError, "expected a whole number"),
    ],
)
def test_what_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_huge_seed():
    assert flipped_bulk(W, 1, rng=2**200).shape == W.shape
