"""Spectrum: the same eigenvalues by every route, and errors for what has none."""

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles


def svd_eigenvalues(W):
    """The definition: s^2 / n by a full-precision SVD."""
    return np.sort(np.linalg.svd(np.asarray(W, dtype=float), compute_uv=False) ** 2) / max(W.shape)


@pytest.fixture(scope="module")
def noise():
    return ensembles.wishart(300, 200, rng=0)


@pytest.mark.parametrize("method", ["auto", "gram", "svd"])
def test_routes_agree_with_the_definition(noise, method):
    assert_allclose(rmtspec.spectrum(noise, method).eigenvalues, svd_eigenvalues(noise), rtol=1e-11)


@pytest.mark.parametrize(
    "change",
    [
        np.transpose,
        np.asfortranarray,
        lambda W: np.repeat(W, 2, axis=1)[:, ::2],  # strided
        lambda W: W[::-1, ::-1],  # negative strides
        lambda W: np.vstack([W, np.zeros((7, 200))]),  # zero rows are no observation
        lambda W: np.insert(W, [3, 50], 0.0, axis=1),  # nor are zero columns
        lambda W: W.tolist(),
        lambda W: W.astype(np.longdouble),
    ],
)
def test_layout_and_padding_change_nothing(noise, change):
    spec = rmtspec.spectrum(change(noise))
    assert (spec.n, spec.p, spec.ratio) == (300, 200, 200 / 300)
    assert_allclose(spec.eigenvalues, svd_eigenvalues(noise), rtol=1e-11)


def test_padding_that_turns_the_longer_side_into_the_shorter():
    inner = ensembles.wishart(60, 90, rng=1)
    padded = np.zeros((300, 120))
    padded[40:100, 10:100] = inner
    for W in (padded, padded.T):
        spec = rmtspec.spectrum(W)
        assert (spec.n, spec.p, spec.shape) == (90, 60, W.shape)
        assert {spec.dropped_rows, spec.dropped_columns} == {240, 30}
        assert_allclose(spec.eigenvalues, svd_eigenvalues(inner), rtol=1e-11)


@pytest.mark.parametrize("scale", [1e-4, 1e4, 1e-100, 1e100])
def test_scale(noise, scale):
    expected = svd_eigenvalues(noise)
    assert_allclose(rmtspec.spectrum(noise * scale).eigenvalues / scale**2, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [("float32", 1e-5), ("float16", 1e-2), (ml_dtypes.bfloat16, 1e-1), (ml_dtypes.float8_e5m2, 2)],
)
def test_low_precision_input_is_read_exactly(noise, dtype, rtol):
    low = noise.astype(dtype)
    spec = rmtspec.spectrum(low)
    assert spec.dtype == str(np.dtype(dtype))
    assert_allclose(spec.eigenvalues, svd_eigenvalues(low.astype(float)), rtol=1e-11)
    assert_allclose(spec.eigenvalues, svd_eigenvalues(noise), rtol=rtol)


def test_integers_are_converted():
    W = np.random.default_rng(0).integers(-9, 9, (50, 40))
    assert_allclose(rmtspec.spectrum(W).eigenvalues, svd_eigenvalues(W), rtol=1e-10, atol=1e-12)


def test_wide_dynamic_range_leaves_the_gram_route():
    W = ensembles.wishart(200, 100, rng=0)
    W[:, 0] *= 1e9
    spec = rmtspec.spectrum(W)
    assert spec.method == "svd"
    without = svd_eigenvalues(W[:, 1:])
    assert_allclose(spec.eigenvalues[:50], without[:50], rtol=0.1)  # interlaced, not rounding
    gram_only = rmtspec.spectrum(W, "gram")
    assert gram_only.method == "gram"


def test_float32_is_taken_only_where_it_holds(noise):
    single = rmtspec.spectrum(noise, precision="float32")
    assert single.method == "gram32"
    assert_allclose(single.eigenvalues, svd_eigenvalues(noise), rtol=1e-3)
    example = ensembles.example_3_3(200, rng=0)
    assert rmtspec.spectrum(example, precision="float32").method == "gram"


def test_blocks_give_what_one_block_gives(monkeypatch, noise, tmp_path):
    path = tmp_path / "W.npy"
    np.save(path, noise)
    expected = svd_eigenvalues(noise)
    monkeypatch.setattr("rmtspec.matrix.eigenvalues._BLOCK_BYTES", 8 * 200 * 37)
    for W in (np.load(path, mmap_mode="r"), noise.T, np.asfortranarray(noise)):
        for method in ("gram", "svd"):
            assert_allclose(rmtspec.spectrum(W, method).eigenvalues, expected, rtol=1e-11)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("method", ["gram", "svd"])
def test_the_matrix_is_left_as_it_was(noise, order, method):
    W = np.array(noise, order=order)
    before = W.copy()
    for given in (W, W.T):
        rmtspec.spectrum(given, method)
        rmtspec.split(given, 3)
    np.testing.assert_array_equal(W, before)


def test_eigensolver_gets_the_whole_gram_matrix(noise):
    def solver(gram):
        assert_allclose(gram, noise.T @ noise, rtol=1e-10, atol=1e-9)
        return np.linalg.eigvalsh(gram)[::-1]

    spec = rmtspec.spectrum(noise, eigensolver=solver)
    assert_allclose(spec.eigenvalues, svd_eigenvalues(noise), rtol=1e-11)
    with pytest.raises(rmtspec.RmtspecError, match="returned shape"):
        rmtspec.spectrum(noise, eigensolver=lambda gram: gram)
    with pytest.raises(rmtspec.RmtspecError, match="needs the Gram matrix"):
        rmtspec.spectrum(noise, "svd", eigensolver=solver)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16])
def test_numerical_rank(dtype):
    rng = np.random.default_rng(0)
    product = rng.standard_normal((500, 57)) @ rng.standard_normal((57, 300))
    assert rmtspec.spectrum(product.astype(dtype)).numerical_rank == 57
    full = rmtspec.spectrum(rng.standard_normal((500, 300)).astype(dtype))
    assert full.numerical_rank == 300


def test_all_zero_and_constant():
    zero = rmtspec.spectrum(np.zeros((40, 30)))
    assert (zero.n, zero.p, zero.numerical_rank) == (40, 30, 0)
    assert not zero.eigenvalues.any()
    assert rmtspec.spectrum(np.full((40, 30), 2.5)).numerical_rank == 1


@pytest.mark.parametrize(
    ("W", "error", "words"),
    [
        (np.zeros((0, 5)), ValueError, "empty"),
        (np.float64(3.0), ValueError, r"has shape \(\)"),
        (np.ones(5), ValueError, r"has shape \(5,\)"),
        (np.ones((2, 3, 4)), ValueError, "reshape"),
        (np.ones((3, 3)) * 1j, TypeError, "complex"),
        (np.ones((3, 3), dtype=bool), TypeError, "bool"),
        (np.full((3, 3), "a"), TypeError, "floating"),
        ("weights.npy", TypeError, "matrices_in"),
        (None, TypeError, "None; expected a matrix"),
        (np.array([[1, None], [2, 3]], dtype=object), TypeError, "object"),
        ([[1.0, 2.0], [3.0]], TypeError, "array"),
        (np.full((4, 3), 1e200), ValueError, "float64"),
        (np.full((4, 3), 1e-200), ValueError, "float64"),
    ],
)
def test_bad_matrices(W, error, words):
    with pytest.raises(rmtspec.RmtspecError, match=words) as caught:
        rmtspec.spectrum(W)
    assert isinstance(caught.value, error)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_not_finite_entries_are_named(transposed, dtype):
    W = np.ones((6, 4), dtype=dtype)
    W[2, 1], W[5, 3] = np.nan, np.inf
    shown = r"\[1, 2\], \[3, 5\]" if transposed else r"\[2, 1\], \[5, 3\]"
    with pytest.raises(rmtspec.RmtspecError, match=rf"1 nan and 1 infinite.*{shown}"):
        rmtspec.spectrum(W.T if transposed else W)


def test_a_signalling_nan_is_a_nan():
    """NumPy warns when it widens one."""
    W = np.ones((6, 5), "f4")
    W.view("u4")[2, 1] = 0x7F800001
    with pytest.raises(rmtspec.RmtspecError, match=r"1 nan and 0 infinite entries"):
        rmtspec.spectrum(W)
    with pytest.raises(rmtspec.RmtspecError, match=r"1 nan and 0 infinite entries"):
        rmtspec.analyze(W)


def test_bad_options(noise):
    with pytest.raises(ValueError, match="auto, gram, svd"):
        rmtspec.spectrum(noise, "qr")
    with pytest.raises(ValueError, match="float64, float32"):
        rmtspec.spectrum(noise, precision="half")
    with pytest.raises(TypeError, match="already"):
        rmtspec.spectrum(rmtspec.spectrum(noise))


class TestGivenEigenvalues:
    def test_sorted_and_clipped(self):
        spec = rmtspec.Spectrum([3.0, -1e-17, 1.0], n=5)
        assert spec.eigenvalues.tolist() == [0.0, 1.0, 3.0]
        assert (spec.n, spec.p, spec.shape, spec.method) == (5, 3, (5, 3), "given")
        with pytest.raises(ValueError, match="read-only"):
            spec.eigenvalues[0] = 1.0

    def test_same_as_from_the_matrix(self, noise):
        made = rmtspec.spectrum(noise)
        given = rmtspec.Spectrum(made.eigenvalues[::-1], n=300)
        assert rmtspec.bema(given).variance == rmtspec.bema(made).variance

    @pytest.mark.parametrize(
        ("values", "n", "words"),
        [
            ([1.0, -0.1], 4, "never negative"),
            ([1.0, np.nan], 4, "index 1"),
            ([1.0, 2.0], 1, "whole number at least 2"),
            ([1.0, 2.0], 2.5, "whole number"),
            ([], 3, "non-empty"),
            ([[1.0, 2.0]], 3, "one dimension"),
            ([1j, 2.0], 3, "real"),
        ],
    )
    def test_bad(self, values, n, words):
        with pytest.raises(rmtspec.RmtspecError, match=words):
            rmtspec.Spectrum(values, n)


def test_cdf_and_singular_values():
    spec = rmtspec.Spectrum([1.0, 2.0, 2.0, 4.0], n=9)
    assert_allclose(spec.singular_values, [3.0, 18**0.5, 18**0.5, 6.0])
    assert spec.cdf(2.0) == 0.75
    assert_allclose(spec.cdf([[0.0, 1.0], [5.0, np.nan]]), [[0.0, 0.25], [1.0, np.nan]])
    assert spec.to_dict()["eigenvalues"] == [1.0, 2.0, 2.0, 4.0]
    assert "numerical rank" in repr(spec)


def test_memory_is_one_block_and_the_smaller_side_squared(tmp_path, monkeypatch):
    """A memory-mapped matrix of 48 MB as float32, 96 MB as float64, in blocks of 4 MB."""
    import tracemalloc

    block = 2**22
    monkeypatch.setattr("rmtspec.matrix.eigenvalues._BLOCK_BYTES", block)
    mapped = np.lib.format.open_memmap(tmp_path / "W.npy", "w+", np.float32, (200_000, 60))
    rng = np.random.default_rng(0)
    for start in range(0, 200_000, 20_000):
        mapped[start : start + 20_000] = rng.standard_normal((20_000, 60))
    mapped.flush()
    mapped = np.load(tmp_path / "W.npy", mmap_mode="r")
    for W, method, allowed in [(mapped, "gram", 2), (mapped.T, "gram", 2), (mapped, "svd", 6)]:
        tracemalloc.start()
        rmtspec.spectrum(W, method)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < allowed * block  # the block, the QR's copies of it, one flag a row
