"""Penalties on the bulk and on singular values, against NumPy."""

import numpy as np
import pytest
import torch
from small_training import conv1d_of_transformers, network, pruner_of
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidTypeError, InvalidValueError

#: A layer, and its weight as the matrices it holds.
LAYERS = {
    "linear": (lambda: nn.Linear(60, 80), lambda w: [w]),
    "transposed linear": (lambda: conv1d_of_transformers(80, 60), lambda w: [w.T]),
    "convolution": (lambda: nn.Conv2d(40, 60, 3), lambda w: [w.reshape(60, -1)]),
    "channels last": (
        lambda: nn.Conv2d(40, 60, 3).to(memory_format=torch.channels_last),
        lambda w: [w.reshape(60, -1)],
    ),
    "groups": (
        lambda: nn.Conv2d(64, 80, 3, groups=2),
        lambda w: [w[:40].reshape(40, -1), w[40:].reshape(40, -1)],
    ),
    "embedding": (lambda: nn.Embedding(90, 40), lambda w: [w]),
}


def with_spikes(kind, dtype=torch.float64, strengths=(4.0, 6.0, 9.0)):
    """Return a model of one layer with spikes in each matrix, and its matrices in NumPy."""
    make, matrices_of = LAYERS[kind]
    torch.manual_seed(0)
    model = nn.Sequential(make()).to(dtype)
    rng = np.random.default_rng(0)
    weight = model[0].weight.detach().contiguous(memory_format=torch.contiguous_format)
    for matrix in matrices_of(weight):  # views of it
        spread = float(matrix.double().std()) * np.sqrt(max(matrix.shape))
        for strength in strengths:
            u, v = rng.standard_normal(matrix.shape[0]), rng.standard_normal(matrix.shape[1])
            spike = np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
            matrix += torch.from_numpy(strength * spread * spike).to(dtype)
    with torch.no_grad():
        model[0].weight.copy_(weight)
    return model, arrays(model, kind)


def arrays(model, kind, of="weight"):
    tensor = model[0].weight.detach() if of == "weight" else model[0].weight.grad
    contiguous = tensor.contiguous(memory_format=torch.contiguous_format)
    return [matrix.double().numpy().copy() for matrix in LAYERS[kind][1](contiguous)]


def bulk_of(W):
    """Return W - U U^T W with U the left singular vectors of the spikes."""
    spikes = rmtspec.analyze(W).fit.n_spikes
    U = np.linalg.svd(W)[0][:, :spikes]
    return W - U @ (U.T @ W), U


# ------------------------------------------------------------------------------- the bulk


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("kind", LAYERS)
def test_value_and_gradient(kind, norm):
    model, matrices = with_spikes(kind)
    penalty = rt.BulkPenalty(model, 0.3, norm=norm)
    value = penalty()
    value.backward()
    expected = 0.0
    for W, gradient in zip(matrices, arrays(model, kind, "gradient"), strict=True):
        R, U = bulk_of(W)
        assert U.shape[1] >= 3
        expected += 0.3 * (np.abs(R).sum() if norm == "l1" else 0.5 * (R**2).sum())
        S = np.sign(R) if norm == "l1" else R
        slope = 0.3 * (S - U @ (U.T @ S))
        # The sign of an entry that is nearly zero may differ: an entry of slope 2 * 0.3 then.
        off = np.abs(gradient - slope) > 1e-6
        assert off.sum() <= (off.size // 1000 if norm == "l1" else 0)
        np.testing.assert_allclose(U.T @ gradient, 0.0, atol=1e-9)  # the spikes are free
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(expected, rel=1e-7)
    if model[0].weight.shape[0] != 90:
        assert model[0].bias.grad is None


def test_a_matrix_of_noise_is_all_bulk():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 100))
    W = model[0].weight.detach().double().numpy()
    assert rmtspec.analyze(W).fit.n_spikes == 0
    value = rt.BulkPenalty(model, 2.0)()
    assert value.item() == pytest.approx((W**2).sum(), rel=1e-5)


def test_the_penalty_leaves_the_spikes_and_shrinks_the_bulk():
    model, (W,) = with_spikes("linear")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty = rt.BulkPenalty(model, 1.0)
    for _ in range(30):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    R, U = bulk_of(W)
    (now,) = arrays(model, "linear")
    np.testing.assert_allclose(U.T @ now, U.T @ W, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(now - U @ (U.T @ now), 0.9**30 * R, rtol=1e-7, atol=1e-12)


def test_refresh_looks_for_the_spikes_anew():
    model, _ = with_spikes("linear")
    penalty = rt.BulkPenalty(model, 1.0)
    other = nn.Sequential(nn.Linear(60, 80)).double()
    with torch.no_grad():
        model[0].weight.copy_(other[0].weight)
    stale = penalty().item()
    W = other[0].weight.detach().numpy()
    assert stale < 0.499 * (W**2).sum()
    penalty.refresh()
    assert penalty().item() == pytest.approx(0.5 * (bulk_of(W)[0] ** 2).sum(), rel=1e-9)


def test_after_a_split():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty = rt.BulkPenalty(model, 0.1)
    pruner_of(model, optimizer, ranks={"layers.0": 20}).step()
    penalty.refresh()
    penalty().backward()
    layer = model.layers[0]
    assert bool(layer.inner.weight.grad.any())
    assert bool(layer.outer.weight.grad.any())
    optimizer.step()


def test_include_and_exclude_choose():
    model = network()
    only = rt.BulkPenalty(model, 1.0, include=r"layers\.1")
    rest = rt.BulkPenalty(model, 1.0, exclude=r"layers\.1")
    only().backward()
    assert model.layers[0].weight.grad is None
    assert model.layers[1].weight.grad is not None
    total = only() + rest()
    assert total.item() == pytest.approx(rt.BulkPenalty(model, 1.0)().item(), rel=1e-6)


def test_frozen_layers_and_matrices_without_a_bulk_are_no_part():
    model = nn.Sequential(nn.Linear(60, 80), nn.Linear(60, 80), nn.Linear(3, 2))
    whole = rt.BulkPenalty(model, 1.0, include="0")().item()
    model[1].requires_grad_(False)
    with torch.no_grad():
        model[2].weight.zero_()
    penalty = rt.BulkPenalty(model, 1.0)
    assert penalty().item() == pytest.approx(whole, rel=1e-6)


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    model[1].weight = model[0].weight
    alone = rt.BulkPenalty(nn.Sequential(model[0]), 1.0)().item()
    assert rt.BulkPenalty(model, 1.0)().item() == pytest.approx(alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    model, (W,) = with_spikes("linear", dtype)
    penalty = rt.BulkPenalty(model, 1.0)
    penalty().backward()
    assert model[0].weight.grad.dtype == dtype
    # rtol: 60 x 80 squares summed in that dtype
    assert penalty().item() == pytest.approx(0.5 * (bulk_of(W)[0] ** 2).sum(), rel=5e-2)


def test_options_of_the_analysis_are_used():
    model, (W,) = with_spikes("linear", strengths=(1.2, 1.4))
    penalties = [rt.BulkPenalty(model, 1.0, beta=beta)().item() for beta in (0.9, 1e-6)]
    spikes = [rmtspec.analyze(W, beta=beta).fit.n_spikes for beta in (0.9, 1e-6)]
    assert spikes[0] > spikes[1]
    assert penalties[0] < penalties[1]


def test_a_refresh_that_fails_changes_nothing():
    model = network()
    penalty = rt.BulkPenalty(model, 1.0)
    before = penalty().item()
    kept = model.layers[2].weight.detach().clone()
    with torch.no_grad():
        model.layers[2].weight[0, 0] = float("nan")
    with pytest.raises(InvalidValueError, match=r"'layers\.2' has nan or infinite entries; exp"):
        penalty.refresh()
    with torch.no_grad():
        model.layers[2].weight.copy_(kept)
    assert penalty().item() == before


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"strength": 0}, InvalidValueError, "`strength` is 0; expected a positive number"),
        ({"strength": float("nan")}, InvalidValueError, "`strength` is nan"),
        ({"strength": "1"}, InvalidTypeError, "`strength` is '1'"),
        ({"norm": "l3"}, InvalidValueError, "`norm` is 'l3'; expected one of l1, l2"),
        ({"include": "nowhere"}, InvalidValueError, "no name matches include='nowhere'"),
        ({"alpha": 9}, InvalidValueError, "`alpha` is 9"),
        ({"alfa": 0.2}, InvalidTypeError, "`alfa` is not an option of the analysis"),
    ],
)
def test_bad_options(options, kind, message):
    with pytest.raises(kind, match=message):
        rt.BulkPenalty(network(), **{"strength": 1.0, **options})


def test_bad_models():
    frozen = network().requires_grad_(False)
    for call in (lambda m: rt.BulkPenalty(m, 1.0), lambda m: rt.shrink_singular_values(m, 0.1)):
        with pytest.raises(InvalidTypeError, match=r"expected a torch\.nn\.Module"):
            call([network()])
        with pytest.raises(InvalidTypeError, match=r"wrapped in DataParallel.*model\.module"):
            call(nn.DataParallel(network()))
        with pytest.raises(InvalidValueError, match="No weight matrix of this MLP is trained"):
            call(frozen)
        with pytest.raises(InvalidValueError, match="it has no parameters"):
            call(nn.Sequential(nn.ReLU()))


# ------------------------------------------------------------------------------- singular values


@pytest.mark.parametrize("kind", LAYERS)
def test_singular_values_are_lowered(kind):
    model, matrices = with_spikes(kind)
    weight = model[0].weight
    amount = 0.8 * float(np.median(np.linalg.svd(matrices[0], compute_uv=False)))
    rt.shrink_singular_values(model, amount)
    assert model[0].weight is weight
    for W, now in zip(matrices, arrays(model, kind), strict=True):
        left, values, right = np.linalg.svd(W, full_matrices=False)
        lowered = np.maximum(values - amount, 0.0)
        assert 0 < (lowered == 0).sum() < len(values)
        np.testing.assert_allclose(now, (left * lowered) @ right, rtol=0, atol=1e-10)
    assert weight.requires_grad
    assert weight.grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_singular_values_in_other_dtypes(dtype):
    model, (W,) = with_spikes("linear", dtype)
    left, values, right = np.linalg.svd(W, full_matrices=False)
    rt.shrink_singular_values(model, 0.5)
    assert model[0].weight.dtype == dtype
    expected = (left * np.maximum(values - 0.5, 0.0)) @ right
    # float32: the SVD itself; the others: one rounding to the dtype
    atol = 16 * torch.finfo(dtype).eps * np.abs(expected).max()
    np.testing.assert_allclose(arrays(model, "linear")[0], expected, rtol=0, atol=atol)


def test_only_what_is_chosen_and_trained_is_lowered():
    model = network()
    model.layers[2].requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    rt.shrink_singular_values(model, 0.05, exclude=r"layers\.1")
    same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert same == [False, True, True, True, True, True]


def test_it_is_the_proximal_step_of_the_nuclear_norm():
    """It minimises |X - W|^2 / 2 + amount |X|_*, so that no direction lowers that."""
    model, (W,) = with_spikes("linear")
    rt.shrink_singular_values(model, 0.7)
    (X,) = arrays(model, "linear")

    def cost(Y):
        return 0.5 * ((Y - W) ** 2).sum() + 0.7 * np.linalg.svd(Y, compute_uv=False).sum()

    rng = np.random.default_rng(0)
    for _ in range(20):
        assert cost(X + 1e-2 * rng.standard_normal(X.shape)) > cost(X)
    assert cost(0.99 * X) > cost(X) < cost(1.01 * X)


def test_attention_is_lowered_part_by_part():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(32, 4)
    whole = model.in_proj_weight.detach().clone()
    rt.shrink_singular_values(model, 0.2, include=r"\[k\]")
    changed = (model.in_proj_weight.detach() != whole).any(1)
    assert changed.tolist() == [False] * 32 + [True] * 32 + [False] * 32


def test_nan_anywhere_lowers_nothing():
    model = network()
    with torch.no_grad():
        model.layers[1].weight[3, 4] = float("inf")
    before = model.layers[0].weight.detach().clone()
    with pytest.raises(InvalidValueError, match=r"'layers\.1' has nan or infinite entries"):
        rt.shrink_singular_values(model, 0.1)
    assert torch.equal(model.layers[0].weight, before)


@pytest.mark.parametrize(
    ("amount", "kind"),
    [(0, InvalidValueError), (-1, InvalidValueError), (float("nan"), InvalidValueError),
     ("1", InvalidTypeError), (None, InvalidTypeError), (True, InvalidTypeError)],
)  # fmt: skip
def test_bad_amounts(amount, kind):
    with pytest.raises(kind, match="`amount` is"):
        rt.shrink_singular_values(network(), amount)
