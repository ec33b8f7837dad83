"""fit_noise: false components, power, cost, memory, and layers of trained networks. Fixed seeds."""

import time
import tracemalloc

import numpy as np
import pytest
from known_noise import KINDS, planted

import rmtspec
from rmtspec import ensembles
from rmtspec.terms import Verdict

MODELS = ["auto", "equalized", "signflip"]
#: Kinds whose entries are symmetric about 0 and independent.
LEVEL_KINDS = [
    "Gaussian", "rank-one profile", "gamma rows", "gamma rows and columns", "Student t(3)",
    "Student t(5)", "blocks", "90 % zeros",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*LEVEL_KINDS, "skewed"])
def test_false_components_on_pure_noise(kind):
    """150 draws: the share's own standard error is .025 at .1, .008 at .01.

    The levels are .05 to .15 ("signflip"), at most .15 ("auto") and at most .05 ("equalized") at
    .1, and at most .03 at .01; two standard errors are allowed besides.
    """
    draws = 150
    raised = dict.fromkeys(MODELS, 0)
    raised_at_1 = dict.fromkeys(MODELS, 0)
    for seed in range(draws):
        W = KINDS[kind](300, 200, np.random.default_rng(seed))
        for model in MODELS:
            fit = rmtspec.fit_noise(W, model)
            raised[model] += fit.at_least > 0
            raised_at_1[model] += fit.components_low > 0
    assert raised["equalized"] <= 0.10 * draws
    assert raised["auto"] <= 0.20 * draws
    assert raised["signflip"] <= (0.25 if kind == "skewed" else 0.20) * draws
    if kind != "skewed":
        assert raised["signflip"] >= 0.03 * draws
    assert max(raised_at_1.values()) <= 0.045 * draws, raised_at_1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Gaussian", "rank-one profile", "blocks", "Student t(3)"])
@pytest.mark.parametrize(
    ("strengths", "least"),
    [
        ([2.0] * 5, {"auto": (0.83, 0.95), "signflip": (0.83, 0.95), "equalized": (0.90, 0.90)}),
        (np.linspace(1.5, 4, 20), {"auto": (0.80, 0.95), "signflip": (0.80, 0.95)}),
    ],
)
def test_exact_counts(kind, strengths, least):
    """60 draws, at .1 and .01; one standard error (.05 and .03) is allowed."""
    draws = 60
    exact = {(model, beta): 0 for model in least for beta in (0.1, 0.01)}
    for seed in range(draws):
        rng = np.random.default_rng(1000 + seed)
        W = planted(KINDS[kind](300, 200, rng), np.asarray(strengths), rng)
        for model, beta in exact:
            exact[model, beta] += rmtspec.fit_noise(W, model, beta).n_components == len(strengths)
    for model, (at_10, at_1) in least.items():
        assert exact[model, 0.1] >= (at_10 - 0.05) * draws, exact
        assert exact[model, 0.01] >= (at_1 - 0.03) * draws, exact


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("shape", "rank"), [
    ((1000, 784), 40), ((1000, 1000), 100), ((1000, 1000), 200), ((1000, 1000), 350),
])  # fmt: skip
def test_planted_ranks_at_full_size(shape, rank, model):
    W = ensembles.spiked(*shape, np.linspace(3, 10, rank), rng=0)
    rng = np.random.default_rng(1)
    rows, columns = (np.exp(rng.normal(size=side)) for side in shape)
    for given in (W, W * np.outer(rows, columns)):
        fit = rmtspec.fit_noise(given, model, 0.01)
        assert fit.n_components == rank
        assert fit.verdict == Verdict.NOISE_LIKE


def quickest(*calls, rounds=5):
    """The least time of the processor that each call takes, in turns."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.process_time()
            call()
            best[i] = min(best[i], time.process_time() - start)
    return best


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "rank", "equalized", "signflip"),
    [
        ((1000, 784), 40, 6, 12),
        ((1000, 784), 0, 4, 4),
        ((2000, 400), 0, 45, 45),
        ((2000, 400), 20, 45, 45),
        ((5000, 200), 0, 45, 60),
        ((5000, 200), 10, 45, 90),
        ((2000, 40), 0, 45, 45),
        ((2000, 40), 3, 60, 75),
    ],
)
def test_cost_in_eigenvalue_problems(shape, rank, equalized, signflip):
    """Against the eigenvalues alone of the same Gram matrix; on tall ones the entries cost more."""
    W = ensembles.spiked(*shape, np.linspace(3, 10, rank), rng=0)
    gram = W.T @ W
    unit, one, other = quickest(
        lambda: np.linalg.eigvalsh(gram),
        lambda: rmtspec.fit_noise(W, "equalized"),
        lambda: rmtspec.fit_noise(W, "signflip"),
        rounds=9,
    )
    assert one <= equalized * unit, one / unit
    assert other <= signflip * unit, other / unit


@pytest.mark.parametrize(
    ("shape", "rank"), [((600, 600), 0), ((600, 600), 20), ((700, 500), 20), ((4000, 100), 5)]
)
def test_memory_is_two_copies(monkeypatch, shape, rank):
    """Beside the matrix, a few blocks of rows and the vectors of the components."""
    block = 2**16
    monkeypatch.setattr("rmtspec.matrix.eigenvalues._BLOCK_BYTES", block)
    W = ensembles.spiked(*shape, np.linspace(3, 10, rank), rng=0)
    rmtspec.fit_noise(W[:50, :40]).verdict  # noqa: B018  (tables of the laws, made once)
    for model in MODELS:
        tracemalloc.start()
        fit = rmtspec.fit_noise(W, model)
        assert fit.verdict
        assert fit.flip_quantiles is not None
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 2 * W.nbytes + 3 * 8 * sum(shape) * (rank + 5) + 8 * block, model


@pytest.mark.slow
def test_trained_layer(data_folder):
    """784-1000-10 on MNIST: 70 by one variance, 64 by any, of 784."""
    from safetensors.numpy import load_file

    W = load_file(data_folder / "models" / "mlp-784-1000-10-mnist.safetensors")["0.weight"]
    counts = {model: rmtspec.fit_noise(W, model).n_components for model in ("mp", *MODELS)}
    assert counts["mp"] == 70
    assert abs(counts["equalized"] - 64) <= 2
    assert 58 <= counts["signflip"] <= 66
    fit = rmtspec.fit_noise(W)
    assert fit.energy_share == pytest.approx(0.59, abs=0.01)
    assert fit.bulk_ks < 0.008


def test_trained_convolution(data_folder):
    from safetensors.numpy import load_file

    kernels = load_file(data_folder / "models" / "resnet56-cifar10.safetensors")
    kernel = next(kernels[name] for name in kernels if "layer3.1.conv1" in name)
    W = kernel.reshape(len(kernel), -1)
    assert rmtspec.fit_noise(W, "equalized").n_components == 21
    for beta in (0.01, 0.1):
        assert 18 <= rmtspec.fit_noise(W, "signflip", beta).n_components <= 29
    assert rmtspec.fit_noise(W).verdict == Verdict.NOT_NOISE_LIKE
