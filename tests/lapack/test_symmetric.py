"""Eigenvalues of symmetric matrices in one stage and in two, and the libraries that have two."""

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

import rmtspec
from rmtspec._lapack import eigvalsh, library, symmetric, used
from rmtspec._lapack.two_stage import Library, UnusableError
from rmtspec._records import versions
from rmtspec.report.parallel import blas_threads

LIMIT = {"float64": 1e-13, "float32": 2e-5}


@pytest.fixture
def small_limits(monkeypatch):
    """Two stages for matrices that a test can afford."""
    monkeypatch.setattr(symmetric, "FROM", {"float64": 100, "float32": 100})


def gram(p, dtype="float64", seed=0):
    W = np.random.default_rng(seed).standard_normal((2 * p, p))
    return (W.T @ W).astype(dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("p", [1, 2, 99, 100, 160, 333])
def test_two_stages_find_the_eigenvalues_of_numpy(small_limits, p, order, dtype):
    given = np.array(gram(p, dtype), order=order)
    kept = given.copy()
    expected = np.linalg.eigvalsh(given.astype(np.float64))
    values = eigvalsh(given)
    assert values.dtype == dtype
    assert np.abs(values - expected).max() <= LIMIT[dtype] * expected[-1]
    np.testing.assert_array_equal(given, kept)
    assert (np.diff(values) >= 0).all()


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_the_upper_triangle_is_read(small_limits, overwrite):
    full = gram(150)
    upper = np.asfortranarray(np.triu(full) + np.tril(np.full_like(full, np.nan), -1))
    values = eigvalsh(upper, overwrite=overwrite)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(full), rtol=1e-11)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-101, 1e99, 1e101, 1e300])
def test_very_large_and_small_entries_lose_nothing(small_limits, scale):
    ordinary = np.linalg.eigvalsh(gram(120))
    values = eigvalsh(gram(120) / ordinary[-1] * scale)
    np.testing.assert_allclose(values / scale, ordinary / ordinary[-1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_very_large_and_small_entries_in_single_precision(small_limits, scale):
    ordinary = np.linalg.eigvalsh(gram(120))
    values = eigvalsh((gram(120) / ordinary[-1] * scale).astype(np.float32))
    np.testing.assert_allclose(values / scale, ordinary / ordinary[-1], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "matrix",
    [np.zeros((130, 130)), np.eye(130), np.diag(np.arange(130.0)), np.ones((130, 130))],
    ids=["zeros", "identity", "diagonal", "ones"],
)
def test_matrices_of_few_entries(small_limits, matrix):
    values = eigvalsh(matrix)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), atol=1e-12)


def test_the_largest_of_one_matrix_dwarfs_the_rest(small_limits):
    spiked = gram(200) + 1e9 * np.ones((200, 200))
    values, expected = eigvalsh(spiked), np.linalg.eigvalsh(spiked)
    assert np.abs(values - expected).max() <= 1e-14 * expected[-1]


def test_the_spectrum_is_the_same_by_both_ways(monkeypatch):
    W = np.random.default_rng(3).standard_normal((300, 200))
    one = rmtspec.spectrum(W)
    single = rmtspec.spectrum(W, precision="float32")
    monkeypatch.setattr(symmetric, "FROM", {"float64": 100, "float32": 100})
    np.testing.assert_allclose(rmtspec.spectrum(W).eigenvalues, one.eigenvalues, rtol=1e-11)
    again = rmtspec.spectrum(W, precision="float32")
    assert again.method == single.method == "gram32"
    np.testing.assert_allclose(again.eigenvalues, single.eigenvalues, atol=1e-5)


def test_small_matrices_take_one_stage(monkeypatch):
    monkeypatch.setattr(Library, "eigenvalues", lambda *_: pytest.fail("two stages"))
    assert not symmetric.in_two_stages(2000)
    eigvalsh(gram(200))


def test_a_failure_of_the_last_step_is_made_good(small_limits, monkeypatch):
    call = Library._call

    def failing(self, routine, arguments):
        if routine == "sterf":
            raise ArithmeticError("sterf failed: info 3")
        call(self, routine, arguments)

    monkeypatch.setattr(Library, "_call", failing)
    full = gram(140)
    np.testing.assert_allclose(eigvalsh(full), np.linalg.eigvalsh(full), rtol=1e-11)


def test_reports_say_which_library_is_used():
    assert used() == versions()["eigenvalues"]
    assert "two stages" in used() or "one stage" in used()
    report = rmtspec.analyze_many({"a": gram(40)}, noise="mp")
    assert report.to_dict()["versions"]["eigenvalues"] == used()


class Spoiled(Library):
    def eigenvalues(self, matrix):
        return super().eigenvalues(matrix) + 1e-3


def test_a_library_that_is_wrong_is_not_used():
    path = next(iter(library._loaded()))[0]
    with pytest.raises(UnusableError, match=r"off by 0\.001"):
        Spoiled(path, "spoiled").check()


def test_a_library_without_the_routines_is_not_used():
    gfortran = next(Path(np.__file__).parents[1].glob("numpy.libs/*gfortran*"), None)
    if gfortran is None:
        pytest.skip("NumPy brought no other library")
    with pytest.raises(UnusableError, match="no two-stage reduction"):
        Library(str(gfortran), "gfortran")


PROGRAM = """
import sys
import numpy as np
import rmtspec
from rmtspec._lapack import used
W = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)
import rmtspec._lapack.symmetric as symmetric
symmetric.FROM = {"float64": 100, "float32": 100}
report = rmtspec.analyze_many({"W": W}, noise="mp")
print(report.versions["eigenvalues"])
print(report.rows[0]["n_spikes"])
print("scipy_openblas64" in sys.modules)
"""


def a_package(folder, number, content):
    """Write a package of this version; the content is that of its library."""
    inside = Path(folder, "scipy_openblas64", "lib")
    inside.mkdir(parents=True)
    Path(inside.parent, "__init__.py").write_text("raise RuntimeError('imported')\n")
    if content is not None:
        Path(inside, "libscipy_openblas64_.so").write_bytes(content)
    named = Path(folder, f"scipy_openblas64-{number}.dist-info")
    named.mkdir()
    Path(named, "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: scipy-openblas64\nVersion: {number}\n"
    )
    return folder


@pytest.mark.parametrize(
    ("number", "content", "said"),
    [
        ("0.3.34.1.0", b"\\x7fELF not a library", "scipy-openblas64 cannot be loaded: "),
        ("0.3.34.1.0", b"", "scipy-openblas64 cannot be loaded: "),
        ("0.3.34.1.0", None, "scipy-openblas64 is not used: its files are not there"),
        ("0.3.20", b"", "scipy-openblas64 is not used: version 0.3.20 is too old, expected 0.3.26"),
        ("", b"", "scipy-openblas64 is not used: version "),
    ],
    ids=["garbage", "empty", "no-files", "old", "no-version"],
)
def test_a_broken_package_is_noted_and_not_used(tmp_path, number, content, said):
    folder = a_package(tmp_path, number, content)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words, count, imported = done.stdout.splitlines()
    assert said in words
    assert (count, imported) == ("0", "False")


def test_scipy_is_left_as_it_is(tmp_path):
    # The package, imported before SciPy, would make SciPy's float32 solvers fail.
    program = """
        from rmtspec._lapack import used
        words = used()
        from scipy.linalg import lapack
        print(lapack.ssyevr_lwork(512, lower=0)[0] < 1e6, words)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.startswith("True "), done.stdout


def test_where_no_library_has_two_stages(monkeypatch):
    library.found.cache_clear()
    monkeypatch.setattr(library, "_of_the_package", lambda: None)
    monkeypatch.setattr(library, "_loaded", list)
    try:
        assert used() == "SciPy's, one stage"
        assert not symmetric.in_two_stages(10**6)
        full = gram(100)
        np.testing.assert_allclose(eigvalsh(full), np.linalg.eigvalsh(full), rtol=1e-11)
    finally:
        library.found.cache_clear()


def test_the_library_of_numpy_is_used_where_the_package_is_not_installed(monkeypatch):
    if not library._loaded():
        pytest.skip("NumPy and SciPy use no OpenBLAS here")
    library.found.cache_clear()
    monkeypatch.setattr(library, "version", raising_not_found)
    try:
        assert used().startswith("OpenBLAS 0.3")
        assert used().endswith(", two stages")
    finally:
        library.found.cache_clear()


def raising_not_found(name):
    raise library.PackageNotFoundError(name)


@pytest.fixture
def package():
    own = library.found().library
    if own is None or not own._follows:
        pytest.skip("the package scipy-openblas64 is not installed")
    return own


def pools():
    return threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers


def test_the_package_follows_the_number_of_threads_of_the_others(
    small_limits, package, monkeypatch
):
    seen = []
    band = Library._band

    def seeing(self, *given):
        seen.extend(pool.num_threads for pool in pools() if pool.filepath == self._path)
        return band(self, *given)

    monkeypatch.setattr(Library, "_band", seeing)
    for threads in (2, 1):
        with contextlib.ExitStack() as stack:
            for pool in pools():
                if pool.filepath != package._path:
                    stack.callback(pool.set_num_threads, pool.num_threads)
                    pool.set_num_threads(threads)
            eigvalsh(gram(110))
    assert seen == [2, 1]


def test_one_thread_once_is_no_limit_for_later(small_limits, package):
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        (own,) = (pool for pool in pools() if pool.filepath == package._path)
        own.set_num_threads(package._own_threads)
        with blas_threads(1):
            eigvalsh(gram(110))
        assert own.num_threads == package._own_threads
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            eigvalsh(gram(110))
        assert own.num_threads == package._own_threads


@pytest.mark.parametrize(("threads", "taken"), [(1, True), (4, True), (5, False), (64, False)])
def test_many_threads_take_one_stage(monkeypatch, threads, taken):
    monkeypatch.setattr(Library, "threads", lambda self: threads)
    assert symmetric.in_two_stages(5000) == taken


@pytest.mark.slow
def test_two_stages_are_faster_where_they_are_taken():
    side = 4096
    full = np.asfortranarray(gram(side))
    start = time.perf_counter()
    values = eigvalsh(full)
    middle = time.perf_counter()
    expected = np.linalg.eigvalsh(full)
    took = middle - start, time.perf_counter() - middle
    assert np.abs(values - expected).max() <= 1e-12 * expected[-1]
    assert took[0] < 0.85 * took[1]
