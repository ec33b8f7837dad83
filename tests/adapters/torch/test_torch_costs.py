"""Costs measured on this machine, and budgets of time and bytes."""

import pytest
import torch
from torch import nn

from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidOptionError, InvalidValueError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 768), nn.Tanh(), nn.Linear(768, 512), nn.Linear(512, 20))


@pytest.fixture(scope="module")
def costs(model):
    return rt.measure_costs(model, tokens=256, exclude="3")


def test_each_shape_is_measured_once(costs, model):
    assert set(costs.table) == {(768, 512), (512, 768)}
    cost = costs.of((768, 512))
    assert cost.ranks == (32, 64, 128, 192, 256, 320, 384, 448, 512)
    assert cost.dense > cost.plain[0] > 0
    assert costs.rank_that_pays((768, 512)) > 32  # a sixteenth of the work, with much to spare
    assert costs.settings["tokens"] == 256
    assert costs.settings["threads"] == torch.get_num_threads()


def test_a_budget_of_time_uses_only_ranks_that_pay(costs, model):
    stats = rt.calibrate(model, [torch.randn(600, 512)], exclude="3")
    least = 0.75
    report = rt.plan(
        model, calibration=stats, exclude="3", budget=least, size="latency", costs=costs
    )
    seconds = dense = 0.0
    for row in report.rows:
        shape = (row["rows"], row["columns"])
        cost = costs.of(shape)
        dense += cost.dense
        if row["action"] == "keep":
            seconds += cost.dense
        else:
            assert row["rank"] <= costs.rank_that_pays(shape, row["form"])
            seconds += cost.seconds(min(shape), rt_form(row["form"]))[row["rank"] - 1]
    assert seconds <= least * dense
    assert report.settings["size"] == "latency"
    with pytest.raises(InvalidOptionError, match=r"of .* seconds; rank 1 everywhere needs"):
        rt.plan(model, calibration=stats, exclude="3", budget=1e-6, size="latency", costs=costs)


def rt_form(word):
    from rmtspec.terms import Form

    return Form(word)


def test_bytes_weigh_layers_by_their_dtype():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64).half())
    by_bytes = rt.plan(model, budget=0.5, size="bytes", gate=None)
    spent = sum(row["bytes_after"] for row in by_bytes.rows)
    assert spent <= 0.5 * sum(row["bytes_before"] for row in by_bytes.rows)
    assert by_bytes.row("1")["rank"] > by_bytes.row("0")["rank"]  # the same rank for half the bytes


def test_nothing_to_measure(model):
    with pytest.raises(InvalidValueError, match="No linear layer of this Sequential is left"):
        rt.measure_costs(model, include="nothing")
    with pytest.raises(InvalidOptionError, match="`tokens` is 0"):
        rt.measure_costs(model, tokens=0)
