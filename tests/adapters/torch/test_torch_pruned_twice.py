"""A split layer is one matrix: pruning again does not cut its factors."""

import pytest
import torch
from torch import nn

from rmtspec.adapters import torch as rt


@pytest.fixture
def pruned():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 80), nn.Linear(80, 80))
    return rt.prune(net, ranks={"0": 20, "2": 20}, exclude="^3$", gate=None)[0]


@pytest.mark.parametrize("inplace", [False, True])
def test_factors_stay(pruned, inplace):
    state = {key: value.clone() for key, value in pruned.state_dict().items()}
    asked = {"rule": "fraction", "keep": 0.3, "gate": None}
    again, report = rt.prune(pruned, inplace=inplace, **asked)
    assert [row["name"] for row in report.cut] == ["3"]
    reason = "a factor of '0', which is split already: merge first, or name the factor"
    assert report.row("0.inner")["reason"] == report.row("0.outer")["reason"] == reason
    assert type(again[0].inner) is nn.Linear
    for key, value in again.state_dict().items():
        if not key.startswith("3."):
            assert torch.equal(value, state[key])


def test_a_factor_that_is_named_is_cut(pruned):
    again, report = rt.prune(pruned, ranks={"0.inner": 5}, exclude=r"^3$", gate=None)
    assert [row["name"] for row in report.cut] == ["0.inner"]
    assert again[0].inner.rank == 5
    _, report = rt.prune(pruned, include=r"0\.inner", rule="fraction", keep=0.3, gate=None)
    assert [row["name"] for row in report.cut] == ["0.inner"]


def test_calibration_leaves_factors_too(pruned):
    stats = rt.calibrate(pruned, [torch.randn(200, 64) for _ in range(2)])
    assert list(stats.inputs) == ["3"]
    _, report = rt.prune(pruned, calibration=stats, budget=0.5)
    assert [row["name"] for row in report.cut] == ["3"]


def test_merged_first_it_is_cut_again(pruned):
    lower, report = rt.prune(rt.merge(pruned), ranks={"0": 7}, gate=None)
    assert lower[0].rank == 7
    assert report.row("0")["numerical_rank"] == 20


def test_a_layer_that_is_split_itself():
    thin = rt.SplitLinear.from_layer(nn.Linear(64, 96), 20)
    report = rt.plan(thin, gate=None)
    assert not report.cut
    assert "a factor of '(model)'" in report.rows[0]["reason"]
