"""Kernels that become two, along one axis each: the same function, chosen where they lose less."""

import copy
import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import rmtspec
from rmtspec import Report
from rmtspec.adapters import torch as rt
from rmtspec.errors import FileError, InvalidValueError


class Net(nn.Module):
    """A small convolutional classifier whose kernels are smooth."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False)
        self.third = nn.Conv2d(32, 32, (3, 5), padding="same", padding_mode="circular")
        self.point = nn.Conv2d(32, 40, 1)
        self.grouped = nn.Conv2d(40, 40, 3, groups=2)
        self.head = nn.Linear(40, 10)
        with torch.no_grad():
            self.head.weight.mul_(50)
            for conv in (self.second, self.third):
                height, width = (torch.linspace(-1, 1, n) for n in conv.kernel_size)
                smooth = torch.exp(-(height[:, None] ** 2) - width**2)
                conv.weight.mul_(smooth + 0.1 * torch.rand(conv.weight.shape))

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        x = self.grouped(self.point(self.third(x).relu()).relu()).relu()
        return self.head(x.mean((2, 3)))


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 20, 3, 14, 14, generator=generator)
    return [functional.avg_pool2d(each, 3, 1, 1) for each in images]


@pytest.fixture(scope="module")
def stats():
    return rt.calibrate(Net(), batches(), gradient_tokens=10_000)


@torch.no_grad()
def test_kernels_become_two_where_that_loses_less(stats):
    net = Net()
    smaller, report = rt.prune(net, calibration=stats, budget=0.5)
    row = report.row("third")
    assert (row["action"], row["form"], row["kernel"]) == ("split", "spatial", [3, 5])
    assert row["parameters_after"] == row["rank"] * (32 * 3 + 32 * 5)
    assert row["parameters_after"] == sum(
        getattr(smaller.third, side).weight.numel() for side in ("inner", "outer")
    )
    assert smaller.third.inner.kernel_size == (3, 1)
    assert smaller.third.outer.kernel_size == (1, 5)
    assert smaller.second.form in ("spatial", "plain")
    assert {row["form"] for row in report.cut if row["name"] in ("point",)} <= {"plain"}
    assert not [r for r in report.rows if r["name"].startswith("grouped") and "kernel" in r]
    alone, plain = rt.prune(net, calibration=stats, budget=0.5, form="plain")
    assert {row["form"] for row in plain.cut} == {"plain"}
    losses = [sum(r["predicted_loss"] for r in each.cut) for each in (report, plain)]
    assert losses[0] < 0.9 * losses[1]
    x = torch.cat(batches())
    gaps = [(model(x) - net(x)).norm() for model in (smaller, alone)]
    assert gaps[0] < gaps[1]
    _, outputs = rt.prune(net, calibration=stats, budget=0.5, objective="outputs")
    assert {row["form"] for row in outputs.cut} == {"plain"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_two_kernels_are_the_one_they_make(stats, name):
    net = Net()
    plan = rt.plan(net, calibration=stats, budget=0.5)
    for row in plan.rows:
        row["action"] = "keep"
    kernel = list(net.get_submodule(name).kernel_size)
    plan.row(name).update(action="split", form="spatial", rank=5, kernel=kernel)
    smaller, report = rt.apply_plan(net, plan, calibration=stats)
    layer = smaller.get_submodule(name)
    assert layer.form == "spatial"
    assert report.row(name)["output_error"] < 0.9
    merged = rt.merge(smaller)
    assert type(merged.get_submodule(name)) is nn.Conv2d
    assert merged.get_submodule(name).weight.shape == net.get_submodule(name).weight.shape
    x = batches()[0]
    torch.testing.assert_close(merged(x), smaller(x), rtol=1e-4, atol=1e-5)
    gap = merged.get_submodule(name).weight - net.get_submodule(name).weight
    expected = float(gap.norm() / net.get_submodule(name).weight.norm())
    assert report.row(name)["weight_error"] == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_saved_loaded_and_merged(stats, tmp_path):
    net = Net()
    smaller, _ = rt.prune(net, calibration=stats, budget=0.5)
    assert smaller.third.form == "spatial"
    x = batches()[0]
    rt.save(smaller, tmp_path / "small")
    loaded = rt.load(Net(), tmp_path / "small")
    assert torch.equal(loaded(x), smaller(x))
    rmtspec.merge_checkpoint(tmp_path / "small", tmp_path / "dense")
    net.load_state_dict(load_file(tmp_path / "dense/model.safetensors"))
    torch.testing.assert_close(net(x), smaller(x), rtol=1e-4, atol=1e-5)
    last = smaller.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x), loaded(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_written_into_the_weight_becomes_two_kernels(stats):
    layer = rt.prune(Net(), calibration=stats, budget=0.5)[0].third
    rank, kernels, weight = layer.rank, [*layer.parameters()], layer.weight.clone()
    layer.weight.mul_(2.0)
    assert (layer.form, layer.rank) == ("spatial", rank)
    assert all(one is other for one, other in zip(kernels, layer.parameters(), strict=True))
    torch.testing.assert_close(layer.weight, 2.0 * weight, rtol=1e-4, atol=1e-5)
    layer.weight.copy_(Net().third.weight)  # as many channels as it takes
    assert (layer.form, layer.rank) == ("spatial", 96)
    torch.testing.assert_close(+layer.weight, Net().third.weight.data, rtol=1e-4, atol=1e-5)
    x = torch.randn(2, 32, 7, 9)
    torch.testing.assert_close(layer(x), layer.merged()(x), rtol=1e-4, atol=1e-4)


def test_reports_are_saved_in_every_format(stats, tmp_path):
    _, report = rt.prune(Net(), calibration=stats, budget=0.5)
    assert "kernel" not in report.rows[0]
    for suffix in ("csv", "json", "html"):
        report.save(tmp_path / f"r.{suffix}")
    with (tmp_path / "r.csv").open() as file:
        found = {row["name"]: row["kernel"] for row in csv.DictReader(file)}
    assert (found["first"], found["third"]) == ("", "[3, 5]")
    frame = report.to_pandas().set_index("name")
    assert frame.loc["third", "kernel"] == [3, 5]
    assert frame.loc["first", "kernel"] != frame.loc["first", "kernel"]  # nan


@pytest.mark.filterwarnings("ignore:The refit made")  # its last batch is too few
def test_a_refit_trains_both(stats):
    net = Net()
    smaller, _ = rt.prune(net, calibration=stats, budget=0.15)
    better, curve = rt.refit(smaller, net, batches(), steps=15, learning_rate=1e-5)
    assert curve.losses[-1] < curve.losses[0]
    assert not torch.equal(better.third.outer.weight, smaller.third.outer.weight)


def test_plans_keep_the_form(stats, tmp_path):
    net = Net()
    planned = rt.plan(net, calibration=stats, budget=0.5)
    planned.save(tmp_path / "plan.json")
    read = Report.from_json(tmp_path / "plan.json")
    smaller, report = rt.apply_plan(net, read, calibration=stats)
    assert smaller.third.form == "spatial"
    assert report.parameters_after == planned.parameters_after
    with pytest.raises(InvalidValueError, match=r"makes two kernels of 'second'.*calibration"):
        rt.apply_plan(net, read)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("point", {"form": "spatial"}, "only a model's Conv2d without groups"),
        ("head", {"form": "spatial"}, "only a model's Conv2d without groups"),
        ("third", {"rank": 97}, "The rank of third in the plan is 97"),
        ("third", {"form": "pivoted"}, "as pivot rows"),
    ],
)
def test_plans_that_do_not_fit(stats, name, change, message):
    net = Net()
    plan = rt.plan(net, calibration=stats, budget=0.5)
    plan.row(name).update({"action": "split", "rank": 3, "form": "spatial"} | change)
    with pytest.raises(InvalidValueError, match=message):
        rt.apply_plan(net, plan, calibration=stats)


def test_a_damaged_manifest(stats, tmp_path):
    smaller, _ = rt.prune(Net(), calibration=stats, budget=0.5)
    rt.save(smaller, tmp_path / "small")
    file = tmp_path / "small/rmtspec.json"
    manifest = json.loads(file.read_text())
    next(e for e in manifest["splits"] if e["name"] == "third")["rank"] += 1
    file.write_text(json.dumps(manifest))
    with pytest.raises(FileError, match="the kernels of 'third' are"):
        rmtspec.merge_checkpoint(tmp_path / "small", tmp_path / "dense")


def test_a_copy_is_a_model_of_its_own(stats):
    smaller, _ = rt.prune(Net(), calibration=stats, budget=0.5)
    other = copy.deepcopy(smaller)
    with torch.no_grad():
        other.third.inner.weight.zero_()
    assert smaller.third.inner.weight.any()
