"""The optimizer through a split: groups, schedulers, state, steps and weight decay."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from small_training import (
    conv1d_of_transformers,
    give_gradients,
    gradients_of_product,
    network,
    pruner_of,
)
from torch import nn
from torch.optim import lr_scheduler

from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidTypeError, InvalidValueError, RmtspecWarning

LAYERS = {
    "linear": lambda: nn.Linear(40, 30),
    "transposed linear": lambda: conv1d_of_transformers(30, 40),
    "convolution": lambda: nn.Conv2d(32, 48, 3),
    "groups": lambda: nn.Conv2d(32, 48, 3, groups=2),
    "embedding": lambda: nn.Embedding(90, 40),
}
OPTIMIZERS = {
    "momentum": lambda p, **k: torch.optim.SGD(p, **{"lr": 0.1, "momentum": 0.9, **k}),
    "nesterov": lambda p, **k: torch.optim.SGD(
        p, **{"lr": 0.1, "momentum": 0.9, "nesterov": True, **k}
    ),
    "adam": lambda p, **k: torch.optim.Adam(p, **{"lr": 0.01, **k}),
    "amsgrad": lambda p, **k: torch.optim.Adam(p, **{"lr": 0.01, "amsgrad": True, **k}),
    "adamw": lambda p, **k: torch.optim.AdamW(p, **{"lr": 0.01, **k}),
}
FIRST, SECOND = ("momentum_buffer", "exp_avg"), ("exp_avg_sq", "max_exp_avg_sq")


def single(kind="linear", dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(LAYERS[kind]()).to(dtype)


def trained(optimizer, steps=3):
    model = nn.Module()
    for index, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"]):
        model.register_parameter(str(index), parameter)
    for seed in range(steps):
        give_gradients(model, seed)
        optimizer.step()


def copied_plain(model, optimizer):
    """Return a copy of a model with an optimizer that no pruner has ever touched."""
    twin = copy.deepcopy(model)
    plain = type(optimizer)(twin.parameters(), lr=0.1)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # which shares its tensors
    return twin, plain


def values(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def strengths(layer):
    """Return |column of B|^2 + |row of A|^2 of each direction, in rows by group."""
    inner, outer = layer.inner.weight.detach(), layer.outer.weight.detach()
    if isinstance(layer, rt.SplitEmbedding):
        inner, outer = outer.T, inner
    groups = getattr(layer, "groups", 1)
    inner, outer = inner.reshape(groups, layer.rank, -1), outer.reshape(groups, -1, layer.rank)
    return inner.square().sum(2) + outer.square().sum(1)


# ------------------------------------------------------------------------------- state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("kind", "how"),
    [*((kind, {}) for kind in LAYERS), ("linear", {"foreach": True}), ("linear", {"fused": True})],
)
def test_state_is_that_of_the_factors(kind, how, optimizer):
    model = single(kind)
    used = OPTIMIZERS[optimizer](model.parameters(), **how)
    trained(used)
    before = {key: copy.deepcopy(value) for key, value in used.state[model[0].weight].items()}
    pruner_of(model, used, ranks={"0": 7}).step()
    layer = model[0]
    after = [used.state[factor.weight] for factor in (layer.inner, layer.outer)]
    for key, value in before.items():
        if key in (*FIRST, *SECOND):
            expected = gradients_of_product(layer, value, 1 if key in FIRST else 2)
            for state, tensor in zip(after, expected, strict=True):
                torch.testing.assert_close(state[key], tensor, rtol=1e-4, atol=1e-5)
                assert key in FIRST or float(state[key].min()) >= 0.0
        else:
            assert key == "step"
            assert [float(state[key]) for state in after] == [3.0, 3.0]
            assert after[0][key] is not after[1][key]
    assert {*before} == {*after[0]} == {*after[1]}
    assert len(used.state) == len(list(model.parameters()))
    trained(used)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_maximum_of_second_moments_stays_one():
    model = single()
    used = OPTIMIZERS["amsgrad"](model.parameters())
    trained(used)
    pruner_of(model, used, ranks={"0": 7}).step()
    for factor in (model[0].inner.weight, model[0].outer.weight):
        state = used.state[factor]
        assert bool((state["max_exp_avg_sq"] >= state["exp_avg_sq"]).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_state_keeps_its_dtype(dtype):
    model = single(dtype=dtype)
    used = OPTIMIZERS["momentum"](model.parameters())
    trained(used)
    pruner_of(model, used, ranks={"0": 7}).step()
    for factor in (model[0].inner.weight, model[0].outer.weight):
        assert factor.dtype == used.state[factor]["momentum_buffer"].dtype == dtype
    trained(used)


def test_before_the_first_step_there_is_no_state():
    for name, make in OPTIMIZERS.items():
        model = single()
        used = make(model.parameters())
        pruner_of(model, used, ranks={"0": 7}).step()
        assert not used.state[model[0].inner.weight], name
        trained(used)


def test_a_factor_that_is_split_again_hands_its_state_on():
    model = single()
    used = OPTIMIZERS["adam"](model.parameters())
    pruner = pruner_of(model, used, ranks={"0": 20}, recut="factors")
    trained(used)
    pruner.step()
    trained(used, 1)
    pruner._ranks = {"0.inner": 5}
    before = {k: v.clone() for k, v in used.state[model[0].inner.weight].items()}
    pruner.step()
    layer = model[0].inner
    assert type(layer) is rt.SplitLinear
    expected = gradients_of_product(layer, before["exp_avg"])
    torch.testing.assert_close(used.state[layer.inner.weight]["exp_avg"], expected[0])
    torch.testing.assert_close(used.state[layer.outer.weight]["exp_avg"], expected[1])
    assert float(used.state[layer.inner.weight]["step"]) == 4.0
    assert len(used.param_groups[0]["params"]) == 4
    assert len(used.state) == 4


def test_sparse_gradients_of_a_table():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(100, 32, sparse=True), nn.Linear(32, 32))
    used = OPTIMIZERS["momentum"](model.parameters())
    pruner = pruner_of(model, used, ranks={"0": 5})

    def go():
        used.zero_grad()
        loss = model(torch.arange(10)).square().mean()
        loss.backward()
        used.step()
        return float(loss.detach())

    first = go()
    momentum = used.state[model[0].weight]["momentum_buffer"].to_dense()
    pruner.step()
    expected, _ = gradients_of_product(model[0], momentum)
    torch.testing.assert_close(used.state[model[0].inner.weight]["momentum_buffer"], expected)
    assert go() < first
    assert model[0].inner.weight.grad.is_sparse


# ------------------------------------------------------------------------------- groups


def test_factors_stand_where_the_weight_stood():
    model = network()
    first, second, third = model.layers
    optimizer = torch.optim.SGD(
        [
            {"params": [second.bias, first.weight, first.bias], "lr": 0.3, "weight_decay": 0.01},
            {"params": [third.weight, second.weight, third.bias], "momentum": 0.8},
        ],
        lr=0.1,
    )
    biases = [layer.bias for layer in model.layers]
    pruner_of(model, optimizer, ranks={"layers.0": 5, "layers.1": 6}).step()
    a, b, c = model.layers
    one, two = optimizer.param_groups
    expected = [biases[1], a.inner.weight, a.outer.weight, biases[0]]
    assert [id(p) for p in one["params"]] == [id(p) for p in expected]
    expected = [c.weight, b.inner.weight, b.outer.weight, biases[2]]
    assert [id(p) for p in two["params"]] == [id(p) for p in expected]
    assert (one["lr"], one["weight_decay"], one["momentum"]) == (0.3, 0.01, 0)
    assert (two["lr"], two["weight_decay"], two["momentum"]) == (0.1, 0, 0.8)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_names_in_the_groups_follow():
    model = network()
    optimizer = torch.optim.Adam(model.named_parameters())
    pruner_of(model, optimizer, ranks={"layers.1": 6}).step()
    names = optimizer.param_groups[0]["param_names"]
    assert names == [name for name, _ in model.named_parameters()]
    twin = torch.optim.Adam(model.named_parameters())
    twin.load_state_dict(optimizer.state_dict())


def _of(schedule):
    def make(optimizer):
        made = {
            "StepLR": lambda: lr_scheduler.StepLR(optimizer, 2, 0.5),
            "LambdaLR": lambda: lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
            "OneCycleLR": lambda: lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=12),
            "CosineAnnealingLR": lambda: lr_scheduler.CosineAnnealingLR(optimizer, 8),
            "ReduceLROnPlateau": lambda: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
        }
        return made[schedule]()

    return make


@pytest.mark.parametrize(
    "schedule", ["StepLR", "LambdaLR", "OneCycleLR", "CosineAnnealingLR", "ReduceLROnPlateau"]
)
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_schedulers_go_on(schedule, optimizer):
    rates = {}
    for cut in (False, True):
        model = network()
        used = OPTIMIZERS[optimizer](model.parameters())
        scheduler = _of(schedule)(used)
        pruner = pruner_of(model, used, every=[3], ranks={"layers.0": 5} if cut else {})
        rates[cut] = []
        for _ in range(8):
            trained(used, 1)
            scheduler.step(*([1.0] if schedule == "ReduceLROnPlateau" else []))
            pruner.step()
            group = used.param_groups[0]
            rates[cut].append((group["lr"], group.get("momentum"), group.get("betas")))
        assert (type(model.layers[0]) is rt.SplitLinear) is cut
    assert rates[True] == rates[False]
    assert len({lr for lr, *_ in rates[True]}) > 1


def test_accumulated_gradients_clipping_and_zero_grad():
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    pruner_of(model, optimizer, ranks={"layers.0": 5}).step()
    x = torch.ones(4, 40)
    factor = model.layers[0].inner.weight
    model(x).sum().backward()
    once = factor.grad.clone()
    model(x).sum().backward()
    torch.testing.assert_close(factor.grad, 2 * once)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    assert factor.grad is None


# ------------------------------------------------------------------------------- the step


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.02},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
        {"lr": 0.1, "maximize": True},
    ],
)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_factor_takes_its_share_of_the_plain_step(kind, options):
    model = single(kind, torch.float64)
    used = torch.optim.SGD(model.parameters(), **options)
    trained(used, 2)
    pruner_of(model, used, ranks={"0": 7}).step()
    share = 1.0 / float(strengths(model[0]).max())  # in a convolution with groups one for all
    for seed in range(3):
        twin, plain = copied_plain(model, used)
        old = values(model)
        for net, optimizer in ((model, used), (twin, plain)):
            give_gradients(net, seed)
            optimizer.step()
        bias = model[0].bias if kind != "embedding" else None
        for parameter, whole, start in zip(model.parameters(), twin.parameters(), old, strict=True):
            part = 1.0 if parameter is bias else share
            expected = part * (whole.detach() - start)
            torch.testing.assert_close(parameter.detach() - start, expected, rtol=1e-9, atol=1e-14)


def test_matched_steps_move_the_weight_no_further_than_the_optimizer_would():
    """To first order |dW| <= lr |G| for "largest", and plain steps on the factors exceed that."""
    for rule in (True, False):
        model = single(dtype=torch.float64)
        with torch.no_grad():
            model[0].weight.mul_(8.0)
        used = torch.optim.SGD(model.parameters(), lr=1e-4)
        pruner_of(model, used, ranks={"0": 20}, match_step=rule).step()
        layer = model[0]
        old = layer.weight.detach().clone()
        # Along the strongest direction, where a step on the factors goes furthest.
        left, _, right = torch.linalg.svd(old)
        G = torch.outer(left[:, 0], right[0])
        layer.inner.weight.grad, layer.outer.weight.grad = gradients_of_product(layer, G)
        used.step()
        moved = float((layer.weight.detach() - old).norm()) / 1e-4
        assert moved == pytest.approx(1.0 if rule else float(strengths(layer).max()), rel=1e-2)


def test_each_direction_has_its_own_share():
    laid = {
        "linear": lambda share: (share.T, share),
        "embedding": lambda share: (share, share),
        "groups": lambda share: (
            share.reshape(14, 1, 1, 1), share.repeat_interleave(24, 0)[:, :, None, None]
        ),
    }  # fmt: skip
    for kind, lay in laid.items():
        model = single(kind, torch.float64)
        used = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner_of(model, used, ranks={"0": 7}, match_step="each direction").step()
        layer = model[0]
        parts = lay(1.0 / strengths(layer))
        give_gradients(model, 1)
        old = [factor.weight.detach().clone() for factor in (layer.inner, layer.outer)]
        used.step()
        for factor, start, part in zip((layer.inner, layer.outer), old, parts, strict=True):
            expected = start - 0.1 * part * factor.weight.grad
            torch.testing.assert_close(factor.weight.detach(), expected, rtol=1e-9, atol=1e-12)


def test_other_rules():
    for rule, share_of in {
        "geometric mean": lambda e: float(torch.exp(-torch.log(e).mean())),
        "root of largest": lambda e: float((2 * e.max()) ** -0.5),
        "largest": lambda e: 1.0 / float(e.max()),
    }.items():
        model = single(dtype=torch.float64)
        used = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner = pruner_of(model, used, ranks={"0": 7}, match_step=rule)
        pruner.step()
        (entry,) = pruner.state_dict()["splits"]
        assert entry["share"] == [pytest.approx(share_of(strengths(model[0])), rel=1e-9)], rule


@pytest.mark.parametrize("rule", ["geometric mean", "each direction"])
def test_directions_of_nothing_take_no_boundless_step(rule):
    model = single()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[:3, :3] = torch.eye(3)
    used = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = pruner_of(model, used, ranks={"0": 9}, match_step=rule)
    pruner.step()
    assert np.isfinite(pruner.state_dict()["splits"][0]["share"]).all()
    used.zero_grad()
    model(torch.ones(2, 40)).square().sum().backward()
    used.step()
    assert bool(torch.isfinite(model[0].weight).all())


def test_a_factor_that_is_split_again_inherits_its_share():
    model = single(dtype=torch.float64)
    used = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = pruner_of(model, used, ranks={"0": 20}, recut="factors")
    pruner.step()
    first = 1.0 / float(strengths(model[0]).max())
    pruner._ranks = {"0.inner": 5}
    pruner.step()
    second = 1.0 / float(strengths(model[0].inner).max())
    shares = [entry["share"][0] for entry in pruner.state_dict()["splits"]]
    assert shares == [pytest.approx(first, rel=1e-9), pytest.approx(first * second, rel=1e-9)]
    old = values(model)
    give_gradients(model)
    used.step()
    parts = [first * second, first * second, first, 1.0]
    for parameter, start, part in zip(model.parameters(), old, parts, strict=True):
        expected = start - 0.1 * part * parameter.grad
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_unmatched_steps_are_the_optimizers_own_bit_for_bit(optimizer):
    model = single()
    used = OPTIMIZERS[optimizer](model.parameters(), weight_decay=0.01)
    trained(used)
    pruner_of(model, used, ranks={"0": 7}, match_step=False).step()
    twin, plain = copied_plain(model, used)
    for seed in range(4):
        for net, each in ((model, used), (twin, plain)):
            give_gradients(net, seed)
            each.step()
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_factor_without_gradient_stays():
    model = single()
    used = OPTIMIZERS["adamw"](model.parameters())
    pruner_of(model, used, ranks={"0": 7}, decay="weight").step()
    old = values(model)
    give_gradients(model)
    model[0].inner.weight.grad = None
    used.step()
    assert torch.equal(model[0].inner.weight, old[0])
    assert not torch.equal(model[0].outer.weight, old[1])


def test_a_step_that_does_not_move_leaves_every_bit():
    for dtype in (torch.float32, torch.bfloat16):
        model = single(dtype=dtype)
        used = torch.optim.SGD(model.parameters(), lr=0.0)
        pruner_of(model, used, ranks={"0": 7}).step()
        old = values(model)
        for seed in range(20):
            give_gradients(model, seed)
            used.step()
        assert all(map(torch.equal, model.parameters(), old))


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("decay", ["factors", "weight"])
def test_a_closure_makes_the_same_steps(decay, by_name):
    """Gradients are computed within the step; before it there are none, or old ones."""
    x, made = torch.linspace(-1, 1, 160, dtype=torch.float64).reshape(4, 40), []
    for closure in (False, True):
        model = single(dtype=torch.float64)
        used = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        pruner_of(model, used, ranks={"0": 7}, decay=decay).step()

        def loss(model=model, used=used):
            used.zero_grad()
            value = model(x).square().sum()
            value.backward()
            return value

        for _ in range(3):
            if closure:
                assert float((used.step(closure=loss) if by_name else used.step(loss)).detach()) > 0
                used.zero_grad()
            else:
                loss()
                used.step()
        made.append(values(model))
    for one, two in zip(*made, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=0)


def test_the_dtype_can_change_after_a_split():
    model = single()
    used = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner_of(model, used, ranks={"0": 7}, match_step="each direction").step()
    give_gradients(model)
    used.step()
    model.double()
    old = values(model)
    give_gradients(model)
    used.step()
    assert model[0].inner.weight.dtype == torch.float64
    moved = (model[0].inner.weight.detach() - old[0]) / (-0.1 * model[0].inner.weight.grad)
    assert float(moved.std(0).min()) > 0
    # rtol: shares were stored in float32
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------- weight decay


def penalty_gradients(layer):
    """Return the gradients of |product|^2 / 2, by autograd."""
    return gradients_of_product(layer, layer.weight.detach())


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_coupled_decay_of_the_product(kind, maximize):
    model = single(kind, torch.float64)
    used = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3, maximize=maximize)
    pruner_of(model, used, ranks={"0": 7}, decay="weight", match_step=False).step()
    layer = model[0]
    of_product = penalty_gradients(layer)
    give_gradients(model)
    old = [factor.weight.detach().clone() for factor in (layer.inner, layer.outer)]
    given = [factor.weight.grad.clone() for factor in (layer.inner, layer.outer)]
    used.step()
    for factor, start, gradient, penalty in zip(
        (layer.inner, layer.outer), old, given, of_product, strict=True
    ):
        gradient = -gradient if maximize else gradient
        expected = start - 0.1 * (gradient + 0.3 * penalty)
        torch.testing.assert_close(factor.weight.detach(), expected, rtol=1e-10, atol=1e-12)


def test_coupled_decay_with_adam_and_matched_steps():
    model = single(dtype=torch.float64)
    used = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.3)
    pruner = pruner_of(model, used, ranks={"0": 7}, decay="weight")
    pruner.step()
    (entry,) = pruner.state_dict()["splits"]
    layer = model[0]
    twin = copy.deepcopy(model)
    plain = torch.optim.Adam(twin.parameters(), lr=0.01)
    give_gradients(model)
    give_gradients(twin)
    for factor, penalty in zip((twin[0].inner, twin[0].outer), penalty_gradients(layer),
                               strict=True):  # fmt: skip
        factor.weight.grad += 0.3 * penalty
    old = values(model)
    used.step()
    plain.step()
    for index, name in enumerate(("inner", "outer")):
        whole = getattr(twin[0], name).weight.detach() - old[index]
        moved = getattr(layer, name).weight.detach() - old[index]
        torch.testing.assert_close(moved, entry["share"][0] * whole, rtol=1e-9, atol=1e-14)


def test_decay_of_a_product_with_a_factor_that_was_split_again():
    model = single(dtype=torch.float64)
    used = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3)
    pruner = pruner_of(
        model, used, ranks={"0": 20}, decay="weight", match_step=False, recut="factors"
    )
    pruner.step()
    pruner._ranks = {"0.inner": 5}
    pruner.step()
    layer = model[0]
    of_inner = penalty_gradients(layer.inner)
    outer, inner = layer.outer.weight.detach().clone(), layer.inner.weight.detach()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    old = [w.weight.detach().clone() for w in (layer.inner.inner, layer.inner.outer)]
    used.step()
    for factor, start, penalty in zip((layer.inner.inner, layer.inner.outer), old, of_inner,
                                      strict=True):  # fmt: skip
        torch.testing.assert_close(factor.weight.detach(), start - 0.03 * penalty)
    expected = outer - 0.03 * (outer @ inner @ inner.T)
    torch.testing.assert_close(layer.outer.weight.detach(), expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("match_step", [True, False, "each direction"])
def test_decoupled_decay_of_the_product(match_step, fused):
    model = single(dtype=torch.float64)
    used = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.2, fused=fused)
    pruner_of(model, used, ranks={"0": 7}, decay="weight", match_step=match_step).step()
    old = model[0].weight.detach().clone()
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        used.step()
    torch.testing.assert_close(
        model[0].weight.detach(), (1 - 0.1 * 0.2) ** 3 * old, rtol=1e-12, atol=1e-15
    )


def test_decay_of_the_factors_is_the_default():
    model = single(dtype=torch.float64)
    used = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3)
    pruner_of(model, used, ranks={"0": 7}, match_step=False).step()
    old = model[0].inner.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    used.step()
    torch.testing.assert_close(model[0].inner.weight.detach(), 0.97 * old)


# ------------------------------------------------------------------------------- scaled gradients


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("decay", ["factors", "weight"])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_a_gradient_scaler_changes_nothing(kind, decay, fused):
    """Powers of two scale exactly; with a fused step the gradients are still scaled in it."""
    x, made = torch.linspace(-1, 1, 160).reshape(4, 40), []
    for scaled in (False, True):
        model = single()
        make = getattr(torch.optim, kind)
        used = make(model.parameters(), lr=0.01, weight_decay=0.1, fused=fused)
        pruner_of(model, used, ranks={"0": 7}, decay=decay).step()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=scaled)
        for _ in range(3):
            used.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(used)
            scaler.update()
        made.append(values(model))
    for one, two in zip(*made, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("decay", ["factors", "weight"])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_step_that_the_scaler_leaves_out(kind, decay, fused):
    model = single()
    make = getattr(torch.optim, kind)
    used = make(model.parameters(), lr=0.1, weight_decay=0.1, fused=fused)
    pruner_of(model, used, ranks={"0": 7}, decay=decay).step()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    old = values(model)
    scaler.scale(model(torch.ones(2, 40)).square().mean()).backward()
    model[0].outer.weight.grad[0, 0] = float("inf")
    scaler.step(used)
    scaler.update()
    assert all(map(torch.equal, model.parameters(), old))
    assert scaler.get_scale() == 2.0**7
    used.zero_grad()
    scaler.scale(model(torch.ones(2, 40)).square().mean()).backward()
    scaler.step(used)
    assert not torch.equal(model[0].inner.weight, old[0])


# ------------------------------------------------------------------------------- other optimizers


@pytest.mark.parametrize(
    "kind",
    ["RMSprop", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "ASGD", "Rprop", "Adafactor"],
)
def test_other_optimizers_warn_and_train_on(kind):
    model = network()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01)
    with pytest.warns(RmtspecWarning, match=f"The state of {kind} is not carried") as caught:
        pruner = pruner_of(model, optimizer, ranks={"layers.0": 7})
    assert caught[0].filename == pruner_of.__code__.co_filename  # the line of the caller
    assert "nor its step matched" in str(caught[0].message)
    x, target = torch.linspace(-1, 1, 160).reshape(4, 40), torch.ones(4, 20)
    losses = []
    for epoch in range(30):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        if epoch == 9:
            pruner.step()
            assert not optimizer.state.get(model.layers[0].inner.weight)
        losses.append(float(loss.detach()))
    assert type(model.layers[0]) is rt.SplitLinear
    assert losses[29] < losses[10]
    assert optimizer.state[model.layers[0].inner.weight]


def test_an_unknown_optimizer_can_be_matched_on_request():
    model = network()
    optimizer = torch.optim.RMSprop(model.parameters())
    with pytest.warns(RmtspecWarning) as caught:
        pruner = pruner_of(model, optimizer, ranks={"layers.0": 7}, match_step="largest")
    assert "nor its step" not in str(caught[0].message)
    pruner.step()
    assert pruner.state_dict()["splits"][0]["share"] != [1.0]


def test_subclasses_count_as_their_kind():
    class Mine(torch.optim.SGD):
        pass

    model = single()
    used = Mine(model.parameters(), lr=0.1, momentum=0.9)
    trained(used)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner_of(model, used, ranks={"0": 7}).step()
    assert "momentum_buffer" in used.state[model[0].inner.weight]


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"match_step": "bigest"}, InvalidValueError, "'bigest'; expected one of largest"),
        ({"match_step": 2}, InvalidTypeError, "`match_step` is 2; expected True, False or one of"),
        ({"decay": "both"}, InvalidValueError, "`decay` is 'both'; expected one of factors"),
    ],
)
def test_bad_options(change, kind, message):
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    with pytest.raises(kind, match=message):
        pruner_of(model, optimizer, **change)
    assert not optimizer._optimizer_step_pre_hooks


def test_bad_optimizers():
    model = network()
    with pytest.raises(InvalidTypeError, match=r"is a list; expected a torch\.optim\.Optimizer"):
        pruner_of(model, [])
    with pytest.raises(InvalidValueError, match=r"LBFGS.*Use SGD, Adam or AdamW"):
        pruner_of(model, torch.optim.LBFGS(model.parameters()))
    used = torch.optim.RMSprop(model.parameters())
    with pytest.raises(InvalidValueError, match="decay='weight' is known for SGD, Adam"):
        pruner_of(model, used, decay="weight")
    assert not used._optimizer_step_pre_hooks


def test_a_weight_that_the_optimizer_does_not_hold():
    model = network()
    held = [p for name, p in model.named_parameters() if name != "layers.1.weight"]
    optimizer = torch.optim.SGD(held, lr=0.1)
    with pytest.raises(InvalidValueError, match=r"does not hold layers\.1\.weight; expected"):
        pruner_of(model, optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    model.layers[1].weight.requires_grad_(False)
    pruner_of(model, optimizer)
    many = nn.Sequential(*(nn.Linear(20, 20) for _ in range(6)))
    with pytest.raises(InvalidValueError, match=r"0\.weight, .*3\.bias and 3 more"):
        pruner_of(many, torch.optim.SGD([many[5].weight], lr=0.1))


def test_the_optimizer_can_be_copied_and_pickled():
    model = single()
    used = OPTIMIZERS["momentum"](model.parameters())
    trained(used)
    pruner_of(model, used, ranks={"0": 7}).step()
    read = pickle.loads(pickle.dumps(used))
    assert len(read.param_groups[0]["params"]) == 3
    both = copy.deepcopy((model, used))
    trained(both[1])
    assert not torch.equal(both[0][0].weight, model[0].weight)
    used.load_state_dict(used.state_dict())
    trained(used)
