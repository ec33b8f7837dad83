"""Time of whole steps against the linear algebra they cannot do without. BLAS on one thread."""

import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.linalg import eigh, eigvalsh
from scipy.linalg.blas import dsyrk

import rmtspec


def gram(W):
    return dsyrk(1.0, np.asarray(W, dtype=np.float64).T, trans=0)


def test_analyze_against_syrk_and_eigvalsh(paired):
    W = np.random.default_rng(0).standard_normal((4096, 1024)).astype(np.float32)
    paired(
        "analyze(4096x1024 float32, noise='mp') / syrk + eigvalsh",
        lambda: rmtspec.analyze(W, noise="mp"),
        lambda: eigvalsh(gram(W), lower=False),
        limit=1.15,
    )


def test_split_against_gram_and_top_vectors(paired):
    W = np.random.default_rng(0).standard_normal((2000, 1000))
    paired(
        "split(2000x1000, 50) / Gram + scipy eigh of the top 50",
        lambda: rmtspec.split(W, 50),
        lambda: eigh(gram(W), lower=False, subset_by_index=(950, 999)),
        limit=1.3,
    )


def test_split_against_thin_svd(paired):
    W = np.random.default_rng(0).standard_normal((2000, 1000))
    paired(
        "split(2000x1000, 50) / numpy thin SVD",
        lambda: rmtspec.split(W, 50),
        lambda: np.linalg.svd(W, full_matrices=False),
        limit=1 / 4,
        rounds=3,
    )


@pytest.mark.parametrize("n_spikes", [0, 400])
def test_bema_and_fit_test_on_given_eigenvalues(n_spikes):
    levels = (np.arange(4096 - n_spikes) + 0.5) / (4096 - n_spikes)
    values = np.append(rmtspec.MarchenkoPastur(0.5).ppf(levels), np.linspace(5, 50, n_spikes))
    spec = rmtspec.Spectrum(values, n=8192)

    def both():
        return rmtspec.fit_test(spec, rmtspec.bema(spec))

    both()
    best = []
    for _ in range(50):
        start = time.perf_counter()
        both()
        best.append(time.perf_counter() - start)
    median = float(np.median(best))
    print(f"\nbema + fit_test, 4096 eigenvalues, {n_spikes} spikes: {median * 1e3:.3f} ms")
    assert median <= 3e-3


def seconds_in_a_fresh_process(code):
    program = f"import time\n{code}"
    found = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                             check=True).stdout)
        for _ in range(5)
    ]  # fmt: skip
    return float(np.median(found))


def test_import_against_numpy():
    timed = "t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    ours = seconds_in_a_fresh_process(timed.format("rmtspec"))
    numpy = seconds_in_a_fresh_process(timed.format("numpy"))
    print(f"\nimport rmtspec {ours * 1e3:.1f} ms, import numpy {numpy * 1e3:.1f} ms")
    assert ours <= 2 * numpy


def test_first_analysis_of_a_process():
    """Loading scipy and numba and the kernels from their disk cache, beyond the algebra itself."""
    code = (
        "import numpy as np, rmtspec\n"
        "W = np.random.default_rng(0).standard_normal((1000, 784))\n"
        "t = time.perf_counter(); rmtspec.analyze(W); first = time.perf_counter() - t\n"
        "t = time.perf_counter(); rmtspec.analyze(W); again = time.perf_counter() - t\n"
        "print(first - again)"
    )
    extra = seconds_in_a_fresh_process(code)
    print(f"\nfirst analyze beyond the second: {extra:.2f} s")
    assert extra < 1.0
