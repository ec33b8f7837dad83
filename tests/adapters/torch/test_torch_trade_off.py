"""The curve of sizes and what they cost, and the size for a cost that is allowed."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidOptionTypeError, InvalidTypeError, InvalidValueError


def data(seed=0, count=400):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 64, generator=generator)
    return x, (x[:, :20] ** 2).argmax(-1)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = rt.MLP([64, 96, 80, 20])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, labels = data(count=2000)
    for _ in range(120):
        optimizer.zero_grad()
        cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def loss(model):
    x, labels = data(count=2000)
    return cross_entropy(model(x), labels)


@torch.no_grad()
def accuracy(model):
    x, labels = data(count=2000)
    return float((model(x).argmax(-1) == labels).double().mean())


BATCHES = [data(2)[0], data(3)[0]]


def test_the_rows_are_those_of_the_models(trained, tmp_path):
    before = copy.deepcopy(trained.state_dict())
    stats = rt.calibrate(trained, BATCHES)
    curve = rt.trade_off(trained, stats, loss, budgets=(0.5, 0.9, 0.7), example=BATCHES[0])
    assert [row["budget"] for row in curve.rows] == [0.9, 0.7, 0.5]
    assert curve.baseline["measured"] == pytest.approx(float(loss(trained)))
    for row in curve.rows:
        smaller, report = rt.prune(trained, calibration=stats, budget=row["budget"])
        assert row["measured"] == pytest.approx(float(loss(smaller)), rel=1e-6)
        assert row["change"] == pytest.approx(row["measured"] - curve.baseline["measured"])
        assert row["parameters"] == sum(p.numel() for p in smaller.parameters())
        assert row["kept"] <= row["budget"]
        assert row["predicted_loss"] == pytest.approx(sum(r["predicted_loss"] for r in report.cut))
        assert row["latency"] > 0
        same, _ = rt.apply_plan(trained, curve.plans[row["budget"]], calibration=stats)
        assert float(loss(same)) == pytest.approx(row["measured"], rel=1e-6)
    assert curve.rows[-1]["predicted_loss"] > curve.rows[0]["predicted_loss"]
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert curve.row(0.7)["budget"] == 0.7
    with pytest.raises(InvalidValueError, match=r"0\.6 was not tried; those tried are 0\.9"):
        curve.row(0.6)
    assert json.loads(curve.to_json(tmp_path / "curve.json"))["rows"] == curve.rows
    assert list(curve.to_pandas()["budget"]) == [0.9, 0.7, 0.5]
    assert "as it is  100.0%" in repr(curve)
    page = curve.to_html(tmp_path / "curve.html")
    assert page.count("<tr>") == 5
    assert "<svg" in page
    assert "src=" not in page
    assert curve.plot().get_ylabel() == "measured"


def test_without_data_only_what_is_measured_is_known(trained):
    curve = rt.trade_off(trained, None, accuracy, budgets=[0.9], gate=None)
    assert curve.rows[0]["predicted_loss"] is None
    assert curve.rows[0]["latency"] is None
    assert "latency" not in repr(curve)


def test_progress_is_told(trained):
    told = []
    rt.trade_off(
        trained, BATCHES, loss, budgets=(0.9, 0.6), progress=lambda *state: told.append(state)
    )
    assert told[-2:] == [(1, 2, "0.9"), (2, 2, "0.6")]


@pytest.mark.parametrize(("figure", "target"), [(loss, 0.05), (accuracy, -0.02)])
def test_the_target_is_met_as_tightly_as_a_hundredth(trained, figure, target):
    stats = rt.calibrate(trained, BATCHES)
    smaller, report = rt.prune(trained, calibration=stats, target=target, evaluate=figure)
    change = float(figure(smaller)) - float(figure(trained))
    assert abs(change) <= abs(target) or change * target < 0
    assert report.parameters_after < report.parameters_before
    found = report.settings["budget"]
    assert report.settings["target"] == target
    failed = [share for share, _ in report.settings["tried"] if share < found]
    assert found - max(failed) <= 0.01
    worse = rt.prune(trained, calibration=stats, budget=max(failed))[0]
    assert abs(float(figure(worse)) - float(figure(trained))) > abs(target)


def test_a_target_may_be_met_in_place(trained):
    model = copy.deepcopy(trained)
    smaller, _ = rt.prune(model, calibration=BATCHES, target=0.05, evaluate=loss, inplace=True)
    assert smaller is model
    assert any(isinstance(module, rt.SplitLinear) for module in model.modules())


def test_nothing_is_good_enough(trained):
    base = float(loss(trained))
    smaller, report = rt.prune(
        trained, calibration=BATCHES, target=1e-9,
        evaluate=lambda m: base if m is trained else base + 1.0,
    )  # fmt: skip
    assert report.cut == []
    assert float(loss(smaller)) == pytest.approx(base)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ((), r"`budgets` is \(\); expected at least one"),
        ((0.5, 0.5), "each once"),
        ((0.5, 1.5), "`budget` is 1.5"),
        (("a",), "expected shares of the parameters"),
        (0.5, "expected shares of the parameters"),
        ((0.9, 0.001), "`budget` is 0.001, .* rank 1 everywhere needs"),
    ],
    ids=["none", "twice", "above 1", "words", "number", "too small"],
)
def test_wrong_budgets(trained, budgets, message):
    with pytest.raises(InvalidValueError, match=message):
        rt.trade_off(trained, BATCHES, loss, budgets=budgets)


def test_wrong_figures(trained):
    with pytest.raises(InvalidOptionTypeError, match="`evaluate` is a int"):
        rt.trade_off(trained, BATCHES, 3)
    with pytest.raises(InvalidTypeError, match="`evaluate` returned a NoneType; expected a number"):
        rt.trade_off(trained, BATCHES, lambda m: None)
    with pytest.raises(InvalidTypeError, match="`evaluate` returned a Tensor"):
        rt.trade_off(trained, BATCHES, lambda m: torch.ones(3))


def test_a_figure_that_is_nan_stays_empty():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 20))
    curve = rt.trade_off(
        model, BATCHES, lambda m: 1.0 if m is model else float("nan"), budgets=[0.5]
    )
    assert curve.rows[0]["measured"] is None
    assert curve.rows[0]["change"] is None
    curve.to_html()
