"""Known rounding: against the errors made, entry by entry and in the largest singular value."""

import json
import math

import ml_dtypes
import numpy as np
import pytest

import rmtspec
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import InvalidTypeError, InvalidValueError

FORMATS = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def rounded(W, name):
    return W.astype(np.float16 if name == "float16" else getattr(ml_dtypes, name))


def uneven(seed=0, shape=(400, 300)):
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(0, 0.7, (shape[0], 1)) + rng.normal(0, 0.7, shape[1]))
    return rng.standard_normal(shape) * scales


@pytest.mark.parametrize("name", FORMATS)
def test_edge_is_the_norm_of_the_errors(name):
    """Rows and columns differ tenfold in scale, so that few entries decide: sd of the norm 5 %."""
    W = uneven()
    stored = rounded(W, name)
    errors = W - stored.astype(float)
    noise = rmtspec.rounding_noise(stored)
    assert noise.method == name
    assert noise.note == ""
    assert noise.edge == pytest.approx(np.linalg.norm(errors, 2), rel=0.12)
    assert noise.variance == pytest.approx(np.mean(errors**2), rel=0.08)
    for axis, found in ((1, noise.row_variances), (0, noise.column_variances)):
        assert np.median(found / (errors**2).mean(axis=axis)) == pytest.approx(1.0, abs=0.1)
    assert noise.edge_eigenvalue == pytest.approx(noise.edge**2 / 400)


@pytest.mark.parametrize("name", FORMATS)
def test_variance_at_every_number_of_the_format(name):
    """Against the errors of the numbers between the neighbours of each value."""
    grid = rounded(np.array([0.0, 0.001, 1.0, 1.0625, 1.9, 2.0, -4.0, 0.3]), name)
    noise = [rmtspec.rounding_noise(value.reshape(1, 1)) for value in grid if value != 0]
    for value, found in zip([v for v in grid if v != 0], noise, strict=True):
        fine = float(value) * np.linspace(0.4, 1.6, 1_200_001)
        here = fine[rounded(fine, name) == value]
        assert found.variance == pytest.approx(np.mean((here - float(value)) ** 2), rel=1e-2)


def test_rounded_low_rank_has_the_others_below():
    rng = np.random.default_rng(0)
    product = rng.standard_normal((300, 20)) @ rng.standard_normal((20, 200))
    for name, below in (("float16", 180), ("bfloat16", 180), ("float32", 180)):
        stored = product.astype(np.float32) if name == "float32" else rounded(product, name)
        assert abs(rmtspec.rounding_noise(stored).n_below - below) <= 1
        assert abs(rmtspec.rounding_noise(stored.T).n_below - below) <= 1


def test_steps_of_a_quantised_matrix():
    rng = np.random.default_rng(1)
    W = rng.standard_normal((256, 192))
    blocks = rng.uniform(0.1, 0.8, (256, 6))  # one per 32 entries
    step = blocks.repeat(32, axis=1)
    stored = np.round(W / step) * step
    truth = np.linalg.norm(W - stored, 2)
    noise = rmtspec.rounding_noise(stored, step=blocks)
    assert noise.method == "step"
    assert noise.edge == pytest.approx(truth, rel=0.04)
    assert noise.variance == pytest.approx(np.mean(step**2) / 12)
    assert rmtspec.rounding_noise(stored, step=step).edge == noise.edge
    scalar = rmtspec.rounding_noise(np.round(3 * W) / 3, step=1 / 3)
    assert scalar.variance == pytest.approx(1 / 108)
    assert scalar.edge == pytest.approx(
        (math.sqrt(256) + math.sqrt(192)) / math.sqrt(108), rel=0.03
    )


def test_matrix_not_yet_rounded_is_as_if_it_were():
    W = uneven()
    before = rmtspec.rounding_noise(W, "float16")
    assert before.note == ""
    after = rmtspec.rounding_noise(rounded(W, "float16"))
    assert before.edge == pytest.approx(after.edge, rel=0.02)


def test_entries_that_are_exact_or_coarser_are_noted():
    W = np.random.default_rng(0).standard_normal((60, 40)).astype(np.float32)
    assert "float8" in rmtspec.rounding_noise(np.sign(W)).note
    kept = rounded(W, "bfloat16").astype(np.float32)
    assert "dtype='bfloat16'" in rmtspec.rounding_noise(kept).note
    assert rmtspec.rounding_noise(kept, "bfloat16").note == ""
    assert "dtype='float32'" in rmtspec.rounding_noise(W.astype(float)).note
    even = (W.view(np.int32) & ~1).view(np.float32)
    assert "may be exact" in rmtspec.rounding_noise(even).note
    W[np.abs(W) < 0.5] = 0.0
    assert "of the entries are 0" in rmtspec.rounding_noise(W).note
    assert "note" in repr(rmtspec.rounding_noise(W))


def test_zero_rows_and_columns_have_no_noise():
    W = np.random.default_rng(0).standard_normal((60, 40)).astype(np.float16)
    padded = np.zeros((70, 50), np.float16)
    padded[5:65, 3:43] = W
    small, large = rmtspec.rounding_noise(W), rmtspec.rounding_noise(padded)
    assert (large.n, large.p) == (60, 40)
    assert large.variance == pytest.approx(small.variance, rel=1e-12)
    assert large.row_variances[:5].tolist() == [0.0] * 5
    assert large.edge == pytest.approx(small.edge, rel=0.1)
    zeros = rmtspec.rounding_noise(np.zeros((4, 3), np.float16))
    assert (zeros.edge, zeros.variance, zeros.n_below) == (0.0, 0.0, 3)
    json.dumps(zeros.to_dict(), allow_nan=False)


def test_deterministic():
    W = np.random.default_rng(0).standard_normal((60, 40)).astype(np.float16)
    before = W.copy()
    assert rmtspec.rounding_noise(W).edge == rmtspec.rounding_noise(W).edge
    assert rmtspec.rounding_noise(W).edge != rmtspec.rounding_noise(W, rng=1).edge
    assert (before == W).all()


def test_bad_input():
    W = np.random.default_rng(0).standard_normal((6, 4))
    with pytest.raises(InvalidTypeError, match="whole numbers"):
        rmtspec.rounding_noise(np.ones((4, 4), np.int8))
    with pytest.raises(InvalidTypeError, match="name of a floating format"):
        rmtspec.rounding_noise(W, "float17")
    with pytest.raises(InvalidValueError, match="largest float8_e4m3fn"):
        rmtspec.rounding_noise(500.0 * np.ones((4, 4)), "float8_e4m3fn")
    with pytest.raises(InvalidValueError, match="one of the two"):
        rmtspec.rounding_noise(W, "float16", step=1.0)
    for step in (-1.0, [[np.nan]], np.ones((4, 4, 4)), np.ones(3), np.ones((5, 2))):
        with pytest.raises(InvalidValueError, match="step"):
            rmtspec.rounding_noise(W, step=step)
    W[0, 1] = np.inf
    with pytest.raises(InvalidValueError, match=r"\[0, 1\]"):
        rmtspec.rounding_noise(W)
    with pytest.raises(InvalidValueError, match="draws"):
        rmtspec.rounding_noise(np.ones((2, 2)), draws=0)


def test_errors_below_a_power_of_two_are_the_smaller_ones():
    """Equal entries have errors of one mean, a quarter of (above - below), of the entries' sign."""
    ones = np.ones((60, 40), np.float16)
    up, down = rmtspec.rounding_noise(ones), rmtspec.rounding_noise(-ones)
    assert up.edge == pytest.approx(down.edge, rel=1e-3)
    assert up.edge > math.sqrt(60 * 40) * 2.0**-10 / 8


def test_trained_weights(data_folder):
    """An MNIST layer of 1000 x 784: within 1 % here; the norm itself has an sd of .3 %."""
    [load] = [
        load
        for name, load in matrices_in(data_folder / "models/mlp-784-1000-10-mnist.safetensors")
        if name == "0.weight"
    ]
    W = np.asarray(load(), dtype=np.float64)
    stored = rounded(W, "bfloat16")
    truth = math.sqrt(1000) * rmtspec.spectrum(W - stored.astype(float)).eigenvalues[-1] ** 0.5
    assert rmtspec.rounding_noise(stored).edge == pytest.approx(truth, rel=0.03)
