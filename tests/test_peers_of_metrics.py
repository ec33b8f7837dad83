"""Metrics against WeightWatcher itself, on the same matrices (`make bench` installs it)."""

import contextlib
import io
import logging
import math
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file

import rmtspec
from rmtspec import ensembles

pytestmark = pytest.mark.slow
#: Where the meaning is the same, so are the numbers.
SAME = (
    "norm", "log_norm", "spectral_norm", "log_spectral_norm", "sv_max", "stable_rank",
    "matrix_rank",
)  # fmt: skip
#: The fit of the tail, which it makes otherwise with fewer than 20 eigenvalues.
TAIL = ("alpha", "xmin", "D", "sigma", "num_pl_spikes", "alpha_weighted", "log_alpha_norm")


def matrices():
    rng = np.random.default_rng(0)
    yield "noise", rng.standard_normal((300, 200))
    yield "planted", ensembles.spiked(250, 400, [3, 5, 20], rng=0)
    yield "heavy", rng.pareto(2.2, (200, 150))
    yield "small", rng.standard_normal((40, 12))


def layers(folder):
    for file in sorted(folder.glob("models/*.safetensors")):
        for name, tensor in load_file(file).items():
            if tensor.ndim in (2, 4) and "resnet56" not in file.name:  # as those of resnet20
                yield f"{file.stem}:{name}", tensor.reshape(len(tensor), -1)


@contextlib.contextmanager
def quiet():
    """Without what the package prints, logs and warns of when imported and used."""
    text = io.StringIO()
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(text):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


@pytest.fixture(scope="module")
def pairs(data_folder):
    """Its row and our metrics of each matrix, by name."""
    torch = pytest.importorskip("torch")
    with quiet():
        weightwatcher = pytest.importorskip("weightwatcher")
    found = {}
    for name, W in (*matrices(), *layers(data_folder)):
        W = np.ascontiguousarray(W, dtype=np.float32)
        layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
        layer.weight.data = torch.from_numpy(W.copy())
        with quiet():
            watcher = weightwatcher.WeightWatcher(model=torch.nn.Sequential(layer))
            rows = watcher.analyze(mp_fit=True, plot=False, min_evals=0)
        found[name] = rows.iloc[0], rmtspec.analyze(W, noise="mp", metrics=True).metrics
    return found


def test_norms_and_ranks(pairs):
    for name, (theirs, ours) in pairs.items():
        for column in SAME:
            assert getattr(ours, column) == pytest.approx(theirs[column], rel=1e-6), (name, column)
        # It adds 1e-10 to every share, 1e-7 for a thousand of them.
        assert ours.entropy == pytest.approx(theirs["entropy"], rel=1e-6), name


def test_the_tail(pairs):
    compared = 0
    for name, (theirs, ours) in pairs.items():
        if ours.matrix_rank < 20 or theirs["num_evals"] != ours.matrix_rank:
            continue
        compared += 1
        for column in TAIL:
            assert getattr(ours, column) == pytest.approx(theirs[column], rel=1e-6), (name, column)
    assert compared >= 10


def test_the_tail_of_few_values_differs_by_its_correction(pairs):
    """With fewer than 20 it divides n - 1, not n, by the sum of logarithms."""
    theirs, ours = pairs["small"]
    squares = np.linalg.svd(dict(matrices())["small"].astype("f4").astype(float), compute_uv=False)
    squares = np.sort(squares**2)
    tail = squares[squares >= theirs["xmin"] * (1 - 1e-9)]
    plain = 1 + len(tail) / np.log(tail / tail[0]).sum()
    assert theirs["alpha"] == pytest.approx(plain - 1 / np.log(tail / tail[0]).sum(), rel=1e-6)
    assert math.isfinite(ours.alpha)


def test_the_soft_rank_of_noise_is_one_in_both(pairs):
    theirs, ours = pairs["noise"]
    assert theirs["mp_softrank"] == pytest.approx(1, abs=0.05)  # 1.016
    assert ours.mp_softrank == pytest.approx(1, abs=0.05)  # 1.022
    theirs, ours = pairs["planted"]
    assert theirs["num_spikes"] == ours.num_spikes == 3
    assert ours.mp_softrank == pytest.approx(theirs["mp_softrank"], rel=0.01)
