"""RMTPruner at later cycles: a split layer is one matrix, or each factor a layer of its own."""

import copy

import numpy as np
import pytest
import torch
from small_training import conv1d_of_transformers, give_gradients, network, pruner_of
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch.callbacks._pruned_training import _unsplit
from rmtspec.errors import InvalidOptionError, InvalidValueError
from rmtspec.terms import Why


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, **options})


def planted(rows, columns, strengths, seed=0):
    """Return a model of one layer, noise with a signal of known rank."""
    layer = nn.Linear(columns, rows)
    W = rmtspec.ensembles.spiked(rows, columns, strengths, rng=seed) / np.sqrt(max(rows, columns))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(W))
    return nn.Sequential(layer)


def lucky():
    """Return a model whose signal of rank 40 gives an inner factor that looks like noise.

    Its singular values are those of the factor: the square roots of those of the product.
    """
    rng = np.random.default_rng(3)
    factor = np.linalg.svd(rng.standard_normal((40, 300)), compute_uv=False) / 12
    factor[:4] *= 2
    left = np.linalg.qr(rng.standard_normal((500, 40)))[0]
    right = np.linalg.qr(rng.standard_normal((300, 40)))[0]
    noise = 0.002 * rng.standard_normal((500, 300))
    layer = nn.Linear(300, 500)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy((left * factor**2) @ right.T + noise))
    return nn.Sequential(layer)


def error(model, weight):
    """Return the share of the weight that the model has lost."""
    return float((rt.merge(model)[0].weight.detach() - weight).norm() / weight.norm())


def test_a_factor_that_passes_the_gate_by_luck_is_not_cut():
    """The signal of 40 directions survives; with "factors" most of them are taken for noise."""
    ranks, lost = {}, {}
    for recut in (False, "factors"):
        model = lucky()
        weight = model[0].weight.detach().clone()
        pruner = rt.RMTPruner(model, sgd(model), every=1, bulk_keep=0, recut=recut)
        pruner.step()
        assert model[0].rank == 40
        report = pruner.step()
        ranks[recut], lost[recut] = model[0].inner, error(model, weight)
        if recut:
            row = report.row("0.inner")
            assert (row["action"], row["fit_statistic"] < 0.1) == ("split", True)
        else:
            row = report.row("0")
            assert [row["action"], row["reason"], row["rank"]] == [
                "keep", "split before, at rank 40: its product has no bulk", 0
            ]  # fmt: skip
            assert row["parameters_before"] == row["parameters_after"] == 40 * 800
            assert Why.of(row["reason"]) == (Why.SPLIT_NO_BULK,)
    assert type(ranks["factors"]) is rt.SplitLinear
    assert type(ranks[False]) is nn.Linear
    assert lost[False] < 0.1
    assert lost["factors"] > 0.3


def test_no_rule_and_no_cutoff_cuts_a_product_without_a_bulk():
    rules = ({"bulk_keep": 0.3}, {"rule": "energy", "keep": 0.5}, {"rule": "fraction", "keep": 0.1})
    for options in rules:
        model = network([200, 300, 10])
        pruner = rt.RMTPruner(model, sgd(model), every=1, fit_cutoff=None, **options)
        pruner.step()
        dims, values = rt.layer_dims(model), copy.deepcopy(model.state_dict())
        for _ in range(2):
            report = pruner.step()
            assert rt.layer_dims(model) == dims
            assert Why.of(report.row("layers.0")["reason"]) == (Why.SPLIT_NO_BULK,)
            assert report.totals["parameters_before"] == report.totals["parameters_after"]
        assert all(torch.equal(values[key], value) for key, value in model.state_dict().items())
        assert [entry["name"] for entry in pruner.state_dict()["splits"]] == ["layers.0"]


def wide(seed=0):
    """Return a model split at rank 90 of 100, where the product still has its bulk."""
    return planted(3000, 100, [6, 9, 30], seed)


def test_the_rank_is_lowered_where_the_product_has_a_bulk():
    model = wide()
    weight = model[0].weight.detach().clone()
    pruner = rt.RMTPruner(model, sgd(model), every=1, bulk_keep=0, beta=0.01, ranks={"0": 90})
    pruner.step()
    assert model[0].rank == 90
    bias, count = model[0].outer.bias, rt.count_parameters(model)
    report = pruner.step()
    row = report.row("0")
    assert (row["action"], row["n_spikes"], row["rank"], model[0].rank) == ("split", 3, 3, 3)
    assert row["fit_statistic"] < 0.1
    assert (row["parameters_before"], row["parameters_after"]) == (90 * 3100, 3 * 3100)
    assert row["bytes_before"] == 4 * 90 * 3100
    assert row["saves"] is True
    assert (report.totals["parameters_before"], report.totals["parameters_after"]) == (
        count, rt.count_parameters(model)
    )  # fmt: skip
    assert count - rt.count_parameters(model) == 87 * 3100
    assert model[0].outer.bias is bias
    assert type(model[0].inner) is nn.Linear
    W = weight.double().numpy()
    best = rmtspec.split(W, 3)
    merged = rt.merge(model)[0].weight.detach().numpy()
    np.testing.assert_allclose(merged, best.outer @ best.inner, atol=1e-5)  # float32
    third = pruner.step().row("0")
    assert (third["action"], Why.of(third["reason"])) == ("keep", (Why.SPLIT_NO_BULK,))
    assert [entry["rank"] for entry in pruner.state_dict()["splits"]] == [90, 3]


def test_the_gate_and_the_rank_hold_for_products_too():
    """A fit that is rejected, and a rank that is not below the present one."""
    steep = planted(3000, 100, [])
    with torch.no_grad():
        left, _, right = torch.linalg.svd(steep[0].weight, full_matrices=False)
        steep[0].weight.copy_((left * torch.linspace(2.0, 0.1, 100) ** 3) @ right)
    for model, options, why in (
        (steep, {"bulk_keep": 0.1}, Why.FIT_REJECTED),
        (wide(), {"bulk_keep": 0.95}, Why.SPLIT_ENOUGH),
        (wide(), {"bulk_keep": 0.5, "min_saving": 0.6}, Why.SAVES_LITTLE),
    ):
        pruner = rt.RMTPruner(model, sgd(model), every=1, ranks={"0": 90}, **options)
        pruner.step()
        row = pruner.step().row("0")
        assert (row["action"], Why.of(row["reason"])) == ("keep", (why,))
        assert model[0].rank == 90


def assert_same(value, expected):
    """Equal up to rounding, however small the moments are."""
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=1e-6 * scale)


def rotation(old, new):
    """Return R and L with which the new factors follow from the old ones, by least squares."""
    R = torch.linalg.lstsq(old.outer.weight, new.outer.weight).solution
    L = torch.linalg.lstsq(old.inner.weight.T, new.inner.weight.T).solution.T
    return R, L


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_the_optimizer_keeps_its_place_and_its_state(kind):
    model = nn.Sequential(wide()[0].double(), nn.Linear(3000, 4).double())
    optimizer = (
        sgd(model) if kind == "momentum" else torch.optim.Adam(model.named_parameters(), 0.001)
    )
    pruner = rt.RMTPruner(
        model, optimizer, every=1, bulk_keep=0, beta=0.01, ranks={"0": 90}, include="^0$"
    )
    pruner.step()
    for seed in (1, 2):
        give_gradients(model, seed)
        for parameter in model.parameters():
            parameter.grad *= 1e-4
        optimizer.step()
    mixed = torch.randn(90, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():  # the same product of factors that are far from balanced
        model[0].outer.weight.copy_(model[0].outer.weight @ mixed)
        model[0].inner.weight.copy_(torch.linalg.solve(mixed, model[0].inner.weight))
    old = copy.deepcopy(model[0])
    states = [
        {k: v.clone() for k, v in optimizer.state[f.weight].items()}
        for f in (model[0].inner, model[0].outer)
    ]
    pruner.step()
    layer = model[0]
    assert layer.rank == 3
    held = optimizer.param_groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert held[0] is layer.inner.weight
    assert held[1] is layer.outer.weight
    assert len(optimizer.state) == len(held)
    R, L = rotation(old, layer)
    new = [optimizer.state[f.weight] for f in (layer.inner, layer.outer)]
    first = "momentum_buffer" if kind == "momentum" else "exp_avg"
    assert_same(new[0][first], R.T @ states[0][first])
    assert_same(new[1][first], states[1][first] @ L.T)
    if kind == "adam":
        second = "exp_avg_sq"
        assert_same(new[0][second], (R**2).T @ states[0][second])
        assert_same(new[1][second], states[1][second] @ (L**2).T)
        assert float(new[0]["step"]) == float(new[1]["step"]) == 2.0
        assert optimizer.param_groups[0]["param_names"][:2] == ["0.inner.weight", "0.outer.weight"]
    share = pruner.state_dict()["splits"][-1]["share"]
    top = float(torch.linalg.svdvals(layer.weight.detach())[0])
    assert share == [pytest.approx(1 / (2 * top))]


def kinds_of_layers():
    torch.manual_seed(0)
    grouped = nn.Conv2d(8, 6000, 5, groups=2)  # 3000 x 100 in each group
    return {
        "conv": (nn.Sequential(grouped, nn.Flatten()), torch.ones(2, 8, 5, 5), 90),
        "conv1d": (nn.Sequential(nn.Conv1d(20, 3000, 5), nn.Flatten()), torch.ones(2, 20, 5), 90),
        "transposed": (nn.Sequential(conv1d_of_transformers(3000, 100)), torch.ones(2, 100), 90),
        "table": (nn.Sequential(nn.Embedding(3000, 100)), torch.tensor([3, 5]), 90),
    }


@pytest.mark.parametrize("kind", ["conv", "conv1d", "transposed", "table"])
def test_every_kind_of_split_layer(kind):
    model, x, rank = kinds_of_layers()[kind]
    matrices = [m() for name, m in rt.weight_matrices(model) if m.kind]
    optimizer = sgd(model)
    pruner = rt.RMTPruner(
        model, optimizer, every=1, bulk_keep=0.3, include="0", ranks={"0": rank}, fit_cutoff=None
    )
    pruner.step()
    (model(x) ** 2).sum().backward()
    optimizer.zero_grad()
    report = pruner.step()
    asked = {row["rank"] for row in report.rows}
    assert {row["action"] for row in report.rows} == {"split"}
    assert asked == {model[0].rank}
    assert model[0].rank < 40
    merged = [m() for name, m in rt.weight_matrices(rt.merge(model)) if m.kind]
    for before, after in zip(matrices, merged, strict=True):
        best = rmtspec.split(before.astype(float), model[0].rank)
        np.testing.assert_allclose(after, best.outer @ best.inner, atol=1e-4)
    loss = (model(x) ** 2).sum()
    loss.backward()
    optimizer.step()
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def lowered(seed=0, steps=3, **options):
    """Return a training whose layer is split at rank 90 and later at 3."""
    torch.manual_seed(seed)
    model = wide()
    optimizer = sgd(model, lr=1e-3)
    pruner = rt.RMTPruner(
        model, optimizer, every=1, bulk_keep=0, beta=0.01, ranks={"0": 90}, **options
    )
    for step in range(steps):
        trained(model, optimizer, step)
        pruner.step()
    return model, optimizer, pruner


def trained(model, optimizer, step):
    give_gradients(model, step)
    for parameter in model.parameters():
        parameter.grad *= 1e-3
    optimizer.step()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_resuming_goes_on_bit_for_bit(tmp_path, steps):
    whole, optimizer, _ = lowered(steps=4)
    _, _, first = lowered(steps=steps)
    assert first.model[0].rank == (90 if steps == 1 else 3)
    first.save(tmp_path / "run.pt")
    model, again, second = lowered(seed=5, steps=0)
    second.resume(tmp_path / "run.pt")
    assert second.state_dict() == first.state_dict()
    for step in range(steps, 4):
        trained(model, again, step)
        second.step()
    for one, two in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)
    pairs = zip(optimizer.state.values(), again.state.values(), strict=True)
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in pairs)


def test_the_state_says_what_is_cut_again():
    _, _, pruner = lowered(steps=1)
    state = pruner.state_dict()
    assert state["recut"] is False
    _, _, other = lowered(steps=0, recut="factors")
    with pytest.raises(InvalidValueError, match="recut=False; this pruner has recut='factors'"):
        other.load_state_dict(state)
    assert type(other.model[0]) is nn.Linear
    del state["recut"]  # as an earlier version wrote it
    for recut in (False, "factors"):
        _, _, resumed = lowered(steps=0, recut=recut)
        resumed.load_state_dict(state)
        assert resumed.model[0].rank == 90
        assert resumed.state_dict()["recut"] == recut


def test_layers_whose_factors_were_split_stay():
    model = wide()
    once, _ = rt.prune(model, ranks={"0": 90})
    twice, _ = rt.prune(once, ranks={"0.inner": 40})
    pruner = rt.RMTPruner(twice, sgd(twice), every=1, bulk_keep=0, fit_cutoff=None)
    row = pruner.step().row("0")
    assert (row["action"], row["reason"]) == ("keep", Why.SPLIT_TWICE.words())
    assert type(twice[0].inner) is rt.SplitLinear


def test_other_layers_that_stay():
    once, _ = rt.prune(wide(), ranks={"0": 90})
    once[0].inner.bias = nn.Parameter(torch.zeros(90))
    frozen, _ = rt.prune(wide(), ranks={"0": 90})
    frozen[0].inner.weight.requires_grad_(False)
    alone = rt.SplitLinear.from_layer(wide()[0], 90)
    truncated, _ = rt.prune(wide(), ranks={"0": 90})
    for model, options, why in (
        (once, {}, Why.FACTORS_CHANGED),
        (frozen, {}, Why.FROZEN),
        (alone, {}, Why.SPLIT_BEFORE),
        (truncated, {"mode": "truncate"}, Why.SPLIT_BEFORE),
    ):
        before = copy.deepcopy(model.state_dict())
        pruner = rt.RMTPruner(model, sgd(model), every=1, bulk_keep=0, fit_cutoff=None, **options)
        report = pruner.step()
        reasons = [
            e["reason"] for e in (*report.rows, *report.skipped) if e["name"] != "0.outer.bias"
        ]
        assert why in [each for reason in reasons for each in Why.of(reason)]
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_ranks_of_a_model_that_is_split_already():
    model, _ = rt.prune(wide(), ranks={"0": 90})
    with pytest.raises(InvalidOptionError, match=r"`ranks\['0'\]` is 91; expected .* from 1 to 90"):
        pruner_of(model, sgd(model), ranks={"0": 91})
    pruner = pruner_of(model, sgd(model), ranks={"0": 20})
    assert pruner.step().row("0")["rank"] == model[0].rank == 20
    pruner.step()
    assert model[0].rank == 20


@pytest.mark.parametrize("recut", [True, None, "factor", 0, "False", []])
def test_what_recut_cannot_be(recut):
    model = network()
    with pytest.raises(InvalidOptionError, match="expected False or 'factors'"):
        rt.RMTPruner(model, sgd(model), recut=recut)


def test_a_trainer_that_hands_over_its_model_goes_on():
    """The callbacks undo the splits of a model that is trained further, and make them again."""
    whole, _, _ = lowered(steps=4)
    model, optimizer, pruner = lowered(steps=3)
    state = pruner.state_dict()
    give_back = _unsplit(model, optimizer, state["splits"])
    assert type(model[0]) is nn.Linear
    again = rt.RMTPruner(model, optimizer, every=1, bulk_keep=0, beta=0.01, ranks={"0": 90})
    again.load_state_dict(state)
    give_back()
    assert model[0].rank == 3
    trained(model, optimizer, 3)
    again.step()
    for one, two in zip(whole.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two)
