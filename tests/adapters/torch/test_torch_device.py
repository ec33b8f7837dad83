"""Eigenvalues on a torch device: the core's numbers, its refusals, and the seam between the two."""

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import rmtspec
from rmtspec import ensembles
from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch._pruning import eigensolver as _eigensolver
from rmtspec.adapters.torch._pruning.eigensolver import DeviceEigensolver, usable_device
from rmtspec.errors import InvalidValueError, RmtspecWarning

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]


def spectra(W, **options):
    """The spectrum by the core, and by torch on the CPU."""
    return rmtspec.spectrum(W, **options), rmtspec.spectrum(
        W, eigensolver=DeviceEigensolver("cpu"), **options
    )


def assert_same(core, device, rtol=1e-8):
    """Equal fields and moments; eigenvalues equal in the bulk, where Gram is good to 1e-8."""
    assert_allclose(
        device.eigenvalues, core.eigenvalues, rtol=rtol, atol=1e-14 * core.eigenvalues.max()
    )
    for name in ("n", "p", "shape", "method", "dtype", "dropped_rows", "dropped_columns"):
        assert getattr(device, name) == getattr(core, name), name
    assert device.numerical_rank == core.numerical_rank
    assert_allclose(np.array(device.moments, float), np.array(core.moments, float), rtol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", [(150, 60), (60, 150), (80, 80)])
def test_the_cores_numbers(dtype, shape):
    W = ensembles.spiked(*shape, [4.0, 9.0, 30.0], rng=0).astype(dtype)
    core, device = spectra(W)
    assert_same(core, device)
    one, other = rmtspec.bema(core), rmtspec.bema(device)
    assert_allclose(other.variance, one.variance, rtol=1e-9)
    assert_array_equal(other.n_spikes, one.n_spikes)  # nan where a short dtype leaves no bulk


@pytest.mark.parametrize("shape", [(150, 60), (60, 150)])
def test_zero_rows_and_columns(shape):
    W = ensembles.wishart(*shape, rng=1)
    W[3], W[:, [5, 7]] = 0.0, 0.0
    core, device = spectra(W)
    assert (device.dropped_rows, device.dropped_columns) == (1, 2)
    assert_same(core, device)
    assert_same(*spectra(np.zeros((5, 4))))
    tall_with_few_rows = np.zeros((90, 40))
    tall_with_few_rows[:20] = ensembles.wishart(20, 40, rng=2)
    assert_same(*spectra(tall_with_few_rows))


def test_the_gram_matrix_is_sent_once(monkeypatch):
    sent = []
    monkeypatch.setattr(np, "ascontiguousarray", lambda a: sent.append(a.shape) or a.copy())
    W = ensembles.wishart(60, 40, rng=3).astype(np.float32)
    rmtspec.spectrum(W, eigensolver=DeviceEigensolver("cpu"))
    assert sent == [(60, 40)]
    solver = DeviceEigensolver("cpu")
    first, second = solver.gram(W), solver.gram(2.0 * W)
    # The first is not the last: it is sent again.
    assert_allclose(solver(first), np.linalg.eigvalsh(first), rtol=1e-12)
    assert_allclose(solver(second), np.linalg.eigvalsh(second), rtol=1e-12)


def test_many_blocks(monkeypatch):
    W = ensembles.wishart(150, 60, rng=3)
    whole = rmtspec.spectrum(W, eigensolver=DeviceEigensolver("cpu"))
    monkeypatch.setattr(_eigensolver, "_BLOCK_BYTES", 8 * 60 * 7)
    assert_allclose(spectra(W)[1].eigenvalues, whole.eigenvalues, rtol=1e-11)
    monkeypatch.setattr(_eigensolver, "_BLOCK_BYTES", 1)  # at least a row at a time
    assert_allclose(spectra(W)[1].eigenvalues, whole.eigenvalues, rtol=1e-11)


def test_a_range_too_wide_for_the_gram_matrix():
    core, device = spectra(ensembles.example_3_3(300, rng=0))  # 6e7 times the bulk: still wide
    assert device.method == "gram"
    assert_same(core, device)
    W = ensembles.wishart(150, 60, rng=0)
    W[:, 0] *= 1e6
    core, device = spectra(W)
    assert device.method == "svd"
    assert_same(core, device)
    assert spectra(W, method="gram")[1].method == "gram"


def test_arrays_of_other_kinds():
    W = ensembles.wishart(50, 30, rng=4)
    frozen = W.copy()
    frozen.flags.writeable = False  # torch would warn
    big_endian = W.astype(">f4")
    integers = np.arange(600).reshape(30, 20) % 17
    for array in (frozen, big_endian, integers, W.astype(np.longdouble), np.asfortranarray(W),
                  W[::2, ::3], np.broadcast_to(W[:1], (40, 30))):  # fmt: skip
        core, device = spectra(array)
        assert_allclose(device.eigenvalues, core.eigenvalues, rtol=1e-8,
                        atol=1e-13 * core.eigenvalues.max())  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_same_refusal_of_nan(value):
    W = ensembles.wishart(50, 30, rng=5)
    W[4, 6] = value
    with pytest.raises(InvalidValueError) as by_core:
        rmtspec.spectrum(W)
    with pytest.raises(InvalidValueError) as by_device:
        rmtspec.spectrum(W, eigensolver=DeviceEigensolver("cpu"))
    assert str(by_device.value) == str(by_core.value)
    assert "the first at [4, 6]" in str(by_core.value)


class Solver:
    """A solver with a Gram matrix of its own."""

    def __init__(self, gram):
        self.made = gram

    def gram(self, tall):
        return self.made(tall)

    def __call__(self, gram):
        return np.linalg.eigvalsh(gram)


def test_the_seam_checks_what_comes_back():
    W = ensembles.wishart(50, 30, rng=6)
    good = rmtspec.spectrum(W.T, eigensolver=Solver(lambda tall: tall.T @ tall))
    assert_same(rmtspec.spectrum(W.T), good)
    with pytest.raises(InvalidValueError, match=r"`eigensolver.gram` returned shape \(50, 50\); "
                       r"expected \(30, 30\)"):  # fmt: skip
        rmtspec.spectrum(W, eigensolver=Solver(lambda tall: tall @ tall.T))
    with pytest.raises(InvalidValueError, match=r"returned shape \(30,\)"):
        rmtspec.spectrum(W, eigensolver=Solver(lambda tall: np.ones(30)))


@pytest.mark.parametrize("stage", ["_gram", "_eigenvalues"])
def test_a_device_without_memory_leaves_the_matrix_to_the_cpu(stage, monkeypatch):
    """A stand-in for a GPU: it works as the CPU does until one stage runs out of memory."""
    for name in ("_gram", "_eigenvalues"):
        own = getattr(_eigensolver, name)

        def on(array, device, own=own, fails=name == stage, **options):
            if device.type == "cuda" and fails:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return own(array, torch.device("cpu"), **options)

        monkeypatch.setattr(_eigensolver, name, on)
    solver = DeviceEigensolver("cpu")
    solver.device = torch.device("cuda")
    W = ensembles.wishart(50, 30, rng=6)
    with pytest.warns(RmtspecWarning, match=r"cuda has too little free memory.* on the CPU"):
        device = rmtspec.spectrum(W, eigensolver=solver)
    assert_same(rmtspec.spectrum(W), device)


def test_a_gram_matrix_with_nan_is_no_spectrum():
    W = ensembles.wishart(50, 30, rng=6)
    with pytest.raises((InvalidValueError, np.linalg.LinAlgError)):
        rmtspec.spectrum(W, eigensolver=Solver(lambda tall: np.full((30, 30), np.nan)))


def test_eigensolver_and_svd_exclude_each_other():
    with pytest.raises(InvalidValueError, match="`eigensolver` needs the Gram matrix"):
        rmtspec.spectrum(np.eye(20), "svd", eigensolver=DeviceEigensolver("cpu"))


def without_seconds(report):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report.rows]


def test_analyze_on_the_cpu():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.Conv2d(8, 40, 3))
    plain = rt.analyze(model)
    assert without_seconds(rt.analyze(model, device="cpu")) == without_seconds(plain)
    assert without_seconds(rt.analyze(model, torch.device("cpu"))) == without_seconds(plain)
    own = rt.analyze(model, eigensolver=DeviceEigensolver("cpu"))
    assert own.settings["eigensolver"] == "DeviceEigensolver"
    for row, expected in zip(own.rows, plain.rows, strict=True):
        assert_allclose(row["variance"], expected["variance"], rtol=1e-9)
        assert row["n_spikes"] == expected["n_spikes"]


@pytest.mark.parametrize("device", ["cuda:99", "meta", "nowhere", 3.5, "mps"])
def test_unusable_devices(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("here it is a device, and it has no float64")
    for function in (usable_device, DeviceEigensolver):
        with pytest.raises(InvalidValueError, match=r"cannot be used in float64.*'cpu' or 'cuda'"):
            function(device)
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU here: torch.cuda.is_available() is False"
)
def test_on_a_gpu():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(400, 300), torch.nn.Conv2d(16, 64, 3))
    plain = rt.analyze(model)
    device = rt.analyze(model, device="cuda")
    assert device.settings["eigensolver"] == "DeviceEigensolver"
    moved = rt.analyze(model.cuda())  # where the weights are
    assert moved.settings["eigensolver"] == "DeviceEigensolver"
    for report in (device, moved):
        for row, expected in zip(report.rows, plain.rows, strict=True):
            assert_allclose(row["variance"], expected["variance"], rtol=1e-9)
            assert row["n_spikes"] == expected["n_spikes"]
    for dtype in DTYPES:
        W = ensembles.spiked(200, 90, [4.0, 30.0], rng=0).astype(dtype)
        assert_same(rmtspec.spectrum(W), rmtspec.spectrum(W, eigensolver=DeviceEigensolver("cuda")))
    linear = torch.nn.Sequential(model[0])
    smaller, _ = rt.prune(linear, ranks={"0": 9}, calibration=[torch.randn(50, 400)])
    assert {p.device.type for p in smaller.parameters()} == {"cuda"}
