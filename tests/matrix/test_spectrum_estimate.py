"""The estimated spectrum of a large matrix, held against the exact one."""

import json
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import InvalidTypeError, InvalidValueError, OptionError
from rmtspec.matrix.block_lanczos import Gram, lanczos, ritz_values

SHAPES = [(300, 300, []), (512, 400, [3.0, 5.0, 20.0]), (400, 900, [4.0, 9.0])]


def within(W, rng):
    """Whether count and edge of the exact way are within the stated errors, and both results."""
    found = rmtspec.estimate_spectrum(W, rng=rng)
    fit = rmtspec.bema(rmtspec.spectrum(W))
    edge = abs(found.bulk_edge - fit.bulk_edge) <= 2.0 * found.bulk_edge_error
    return edge and found.n_spikes_low <= fit.n_spikes <= found.n_spikes_high, found, fit


@pytest.mark.parametrize(("rows", "columns", "strengths"), SHAPES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_edge_and_count_are_those_of_the_eigenvalues(rows, columns, strengths, dtype):
    W = ensembles.spiked(rows, columns, strengths, rng=1).astype(dtype)
    inside, found, fit = within(W, 0)
    assert inside, (found, fit)
    assert found.n_spikes == fit.n_spikes
    assert (found.n, found.p, found.shape) == (max(W.shape), min(W.shape), W.shape)
    assert abs(found.variance - 1.0) <= 2.0 * found.variance_error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "columns", "strengths"),
    [
        (1024, 1024, [3, 4, 6, 10, 20]), (2048, 1024, [2.2, 2.5, 3, 5, 8]), (512, 512, []),
        (3000, 600, list(np.linspace(1.9, 12, 30))), (1000, 784, [1.3, 1.5, 1.8, 2.0, 4.0]),
        (2048, 2048, list(np.linspace(2.2, 30, 40))), (1024, 1024, list(np.geomspace(3, 300, 120))),
        (1500, 1000, list(np.geomspace(2.5, 30, 300))),
    ],
)  # fmt: skip
def test_the_stated_errors_hold_on_19_of_20_seeds(rows, columns, strengths):
    held = [
        within(ensembles.spiked(rows, columns, strengths, rng=s).astype(np.float32), 1000 + s)[0]
        for s in range(20)
    ]
    assert sum(held) >= 19


@pytest.mark.slow
def test_a_trained_layer(data_folder):
    from safetensors.numpy import load_file

    W = load_file(data_folder / "models" / "mlp-784-1000-10-mnist.safetensors")["0.weight"]
    assert all(within(W, seed)[0] for seed in range(20))


def test_the_distribution_is_that_of_the_eigenvalues():
    W = ensembles.spiked(700, 500, [3.0, 8.0], rng=2)
    found, spec = rmtspec.estimate_spectrum(W, probes=32), rmtspec.spectrum(W)
    points = np.linspace(0.1, 2.8, 40)
    off = np.abs(found.cdf(points) - spec.cdf(points))
    errors = found.cdf_error(points)
    assert (off <= 4.0 * errors + 2e-3).all()
    assert errors.max() < 0.02
    assert found.cdf(-1.0) == 0.0
    assert found.cdf(1e9) == 1.0
    assert math.isnan(found.cdf(math.nan))
    assert isinstance(found.cdf(1.0), float)
    assert found.cdf([[1.0, 2.0]]).shape == (1, 2)


def test_an_eigenvalue_lies_within_each_residual():
    W = ensembles.spiked(600, 400, [2.0, 3.0, 6.0], rng=3)
    found, exact = rmtspec.estimate_spectrum(W), rmtspec.spectrum(W).eigenvalues
    for value, residual in zip(found.largest, found.residuals, strict=True):
        assert np.abs(exact - value).min() <= residual * (1 + 1e-9) + 1e-9 * exact[-1]
    # No Ritz value is above the eigenvalue of its rank.
    assert (found.largest <= exact[::-1][: len(found.largest)] * (1 + 1e-12)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e15])
def test_scale(scale):
    W = ensembles.spiked(400, 300, [4.0], rng=4).astype(np.float32)
    one, other = rmtspec.estimate_spectrum(W), rmtspec.estimate_spectrum(W * np.float32(scale))
    assert other.n_spikes == one.n_spikes == 1
    assert_allclose(other.variance / scale**2, one.variance, rtol=1e-4)
    assert_allclose(other.largest[0] / scale**2, one.largest[0], rtol=1e-4)


def test_a_power_of_two_changes_nothing_else():
    W = ensembles.spiked(400, 300, [4.0], rng=4)
    one, other = rmtspec.estimate_spectrum(W), rmtspec.estimate_spectrum(W * 2.0**40)
    assert other.variance == one.variance * 2.0**80
    assert_array_equal(other.largest, one.largest * 2.0**80)


def test_the_same_seed_gives_the_same_and_transposes_agree():
    W = ensembles.spiked(400, 300, [4.0], rng=5)
    one, again, turned = (rmtspec.estimate_spectrum(A, rng=7) for A in (W, W, W.T))
    assert_array_equal(one.largest, again.largest)
    assert_allclose(turned.variance, one.variance, rtol=1e-12)
    assert rmtspec.estimate_spectrum(W, rng=8).variance_error != one.variance_error


def test_zero_rows_and_columns_are_left_out():
    W = ensembles.spiked(400, 300, [4.0], rng=6)
    padded = np.zeros((420, 330))
    padded[10:410, 5:305] = W
    found = rmtspec.estimate_spectrum(padded)
    assert (found.n, found.p, found.shape, found.n_spikes) == (400, 300, (420, 330), 1)
    assert abs(found.variance - 1.0) <= 3.0 * found.variance_error


def test_a_bulk_that_is_no_noise_is_fitted_by_its_quantiles():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((900, 600)) * np.geomspace(0.05, 3.0, 900)[:, None]
    found = rmtspec.estimate_spectrum(W, probes=48)
    assert found.source == "quantiles"


def test_errors_fall_with_the_probes():
    W = ensembles.spiked(900, 600, [4.0], rng=8)
    few, many = (np.mean([rmtspec.estimate_spectrum(W, probes=probes, rng=s).variance_error
                          for s in range(6)]) for probes in (8, 64))  # fmt: skip
    assert many < 0.6 * few


def test_memory_is_no_square_of_the_smaller_side():
    W = np.random.default_rng(0).standard_normal((3000, 2500), dtype=np.float32)
    rmtspec.estimate_spectrum(W[:300, :300])
    tracemalloc.start()
    rmtspec.estimate_spectrum(W, probes=4, steps=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2500**2  # a few blocks of rows and the vectors: no Gram matrix


def test_it_says_that_it_is_an_estimate():
    found = rmtspec.estimate_spectrum(ensembles.spiked(400, 300, [4.0], rng=9))
    assert "not tested" in repr(found)
    assert "stochastic" in repr(found)
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["method"] == "stochastic"
    assert "accepted" not in written
    assert written["n_spikes"] == 1


@pytest.mark.parametrize(
    ("W", "words"),
    [
        (np.ones((300, 255)), "smaller side of at least 256"),
        (np.zeros((300, 300)), "smaller side of at least 256"),
        (np.ones(300), "dimension"),
        (np.full((300, 300), np.nan), "nan"),
        (np.full((300, 300), np.inf), "inf"),
    ],
)
def test_wrong_matrices(W, words):
    with pytest.raises(InvalidValueError, match=words):
        rmtspec.estimate_spectrum(W)


def test_wrong_types():
    with pytest.raises(InvalidTypeError):
        rmtspec.estimate_spectrum("model.npy")
    with pytest.raises(InvalidTypeError):
        rmtspec.estimate_spectrum(np.ones((300, 300)) * 1j)


@pytest.mark.parametrize(
    "options", [{"probes": 3}, {"steps": 9}, {"steps": 401}, {"alpha": 0.6}, {"beta": 0.0},
                {"probes": 4.5}, {"rng": -1}],
)  # fmt: skip
def test_wrong_options(options):
    with pytest.raises((OptionError, InvalidValueError, InvalidTypeError)):
        rmtspec.estimate_spectrum(np.ones((300, 300)), **options)


def test_lanczos_and_ritz_values_against_the_matrix():
    W = np.random.default_rng(1).standard_normal((60, 40))
    gram = Gram(W, 60, 1.0)
    start = np.random.default_rng(2).standard_normal((40, 3))
    start /= np.linalg.norm(start, axis=0)
    exact = np.linalg.eigvalsh(W.T @ W / 60)
    made = lanczos(gram, start, 40, start[:, :0])
    for a, b in zip(made.diagonals, made.beside, strict=True):
        T = np.diag(a) + np.diag(b, 1) + np.diag(b, -1)
        assert_allclose(np.linalg.eigvalsh(T), exact, atol=1e-10)
    values, residuals, vectors = ritz_values(gram, made.basis[:10], 5)
    assert_allclose(values, exact[::-1][:5], atol=1e-5)
    assert residuals.max() < 1e-2
    assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-12)


def test_without_known_vectors_the_operator_is_that_of_the_other_eigenvalues():
    W = np.random.default_rng(1).standard_normal((60, 40))
    exact, vectors = np.linalg.eigh(W.T @ W / 60)
    start = np.random.default_rng(2).standard_normal((40, 3))
    made = lanczos(Gram(W, 60, 1.0), start, 34, vectors[:, 34:])
    for a, b in zip(made.diagonals, made.beside, strict=True):
        T = np.diag(a) + np.diag(b, 1) + np.diag(b, -1)
        assert_allclose(np.linalg.eigvalsh(T), exact[:34], atol=1e-10)


@pytest.mark.parametrize(
    ("count", "highest"), [(60, 300.0), (100, 30.0), (200, 300.0), (330, 30.0), (450, 30.0)]
)
def test_many_spikes_hide_neither_each_other_nor_the_bulk(count, highest):
    W = ensembles.spiked(1200, 1000, list(np.geomspace(3.0, highest, count)), rng=1)
    inside, found, fit = within(W.astype(np.float32), 0)
    assert inside, (found, fit)
    assert found.n_removed > 0
    assert len(found.spikes) == found.n_spikes
    exact = rmtspec.spectrum(W).eigenvalues
    assert_allclose(found.spikes.sum(), exact[exact > fit.threshold].sum(), rtol=0.02)
    points = np.geomspace(0.1, 30.0, 40)
    off = np.abs(found.cdf(points) - rmtspec.spectrum(W).cdf(points))
    assert (off <= 4.0 * found.cdf_error(points) + 0.01).all()
