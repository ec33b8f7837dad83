"""The peers of the compression benchmark follow their formulas; its records are complete."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "benchmarks" / "compression"


@pytest.fixture
def low_rank(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from peers import low_rank

    yield low_rank
    for name in [n for n in sys.modules if n == "peers" or n.startswith("peers.")]:
        del sys.modules[name]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 20, bias=False))


def inputs():
    torch.manual_seed(1)
    return torch.randn(400, 24) * torch.logspace(-1, 1, 24)


def test_whitening_leaves_the_error_of_the_outputs(low_rank, net):
    x = inputs().double()
    root = low_rank.whitening(x.T @ x / len(x))
    weight = net[0].weight.detach().double()
    outer, inner = low_rank.truncated(weight, 5, right=root)
    lost = ((weight - outer @ inner) @ x.T).square().sum() / len(x)
    values = torch.linalg.svdvals(weight @ root)
    assert float(lost) == pytest.approx(float(values[5:].square().sum()), rel=1e-8)


def test_scales_of_columns_and_rows(low_rank, net):
    weight = net[0].weight.detach().double()
    left, right = torch.rand(32).double() + 0.1, torch.rand(24).double() + 0.1
    outer, inner = low_rank.truncated(weight, 6, left=left, right=right)
    lost = (left[:, None] * (weight - outer @ inner) * right).square().sum()
    values = torch.linalg.svdvals(left[:, None] * weight * right)
    assert float(lost) == pytest.approx(float(values[6:].square().sum()), rel=1e-8)


@pytest.mark.parametrize("share", [0.9, 0.6])
def test_a_share_of_the_parameters_is_kept(low_rank, net, share):
    small = low_rank.compressed(net, ["0", "2"], share)
    kept = sum(p.numel() for n, p in small.named_parameters() if "bias" not in n)
    assert 0.8 * share < kept / (24 * 32 + 32 * 20) <= share
    assert small(inputs()).shape == (400, 20)
    assert torch.equal(net[0].bias, small[0].second.bias)


def test_the_moments_of_the_sequential_peer(low_rank, net):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, input_ids):
            return self.net(input_ids)

    x = inputs()
    found = low_rank.second_moments(Model(), ["net.0", "net.2"], [{"input_ids": x}])
    torch.testing.assert_close(found["net.0"], x.double().T @ x.double() / 400)
    hidden = torch.tanh(net[0](x)).detach().double()
    torch.testing.assert_close(found["net.2"], hidden.T @ hidden / 400, rtol=1e-5, atol=1e-6)


def test_the_records_are_complete():
    files = sorted((FOLDER / "results" / "cells").glob("*.json"))
    assert files
    for file in files:
        record = json.loads(file.read_text("utf-8"))
        assert file.stem == f"{record['method']}-{record['budget']:g}-draw{record['draw']}"
        assert set(record["perplexity"]) == {"wiki", "news"}
        assert record["share"] <= record["budget"] + 0.03
        assert record["seconds"] > 0 or record["method"] == "4-bit"
