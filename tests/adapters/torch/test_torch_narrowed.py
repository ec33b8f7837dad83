"""Hidden units that leave: found, chosen in one budget with ranks, saved, merged, refused."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rmtspec
from rmtspec import Report
from rmtspec.adapters import torch as rt
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError


class Gated(nn.Module):
    """The MLP of Llama, half of whose units are near copies of the others."""

    def __init__(self, width=48, units=96, bias=False):
        super().__init__()
        self.gate = nn.Linear(width, units, bias=bias)
        self.up = nn.Linear(width, units, bias=bias)
        self.down = nn.Linear(units, width, bias=bias)
        with torch.no_grad():
            for layer in (self.gate, self.up):
                layer.weight[units // 2 :] = layer.weight[: units // 2]
                layer.weight[units // 2 :] += 0.003 * torch.randn(units // 2, width)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Net(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(32, 48)
        self.mlp = Gated(bias=bias)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        x = self.first(x)
        return self.head(x + self.mlp(x))


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(500, 32, generator=generator) for _ in range(count)]


@pytest.fixture(params=[False, True], ids=["plain", "bias"])
def net(request):
    return Net(request.param)


def pruned(net, budget=0.6, **options):
    return rt.prune(net, calibration=rt.calibrate(net, batches()), budget=budget, **options)


# Where units can leave.


def test_the_layers_that_make_units_and_the_one_that_reads_them(net):
    stats = rt.calibrate(net, batches())
    assert dict(stats.hidden_units) == {"mlp.down": ["mlp.gate", "mlp.up"]}
    assert "hidden layers: 1" in repr(stats)
    by_function = rt.calibrate(net, lambda model: [model(x) for x in batches()])
    assert by_function.hidden_units == stats.hidden_units
    assert rt.calibrate(net, batches(), objective="outputs").hidden_units == {}
    assert rt.calibrate(net, batches(), exclude="gate").hidden_units == {}


class Normed(Gated):
    """Units that a normalisation mixes."""

    def forward(self, x):
        hidden = nn.functional.silu(self.gate(x)) * self.up(x)
        return self.down(nn.functional.layer_norm(hidden, hidden.shape[-1:]))


class Shown(Gated):
    """Units that are read twice."""

    def forward(self, x):
        hidden = self.gate(x) * self.up(x)
        return self.down(hidden) + hidden[..., : x.shape[-1]]


class Fixed(Gated):
    """A number of units that is written down."""

    def forward(self, x):
        return self.down((self.gate(x) * self.up(x)).reshape(-1, 8, 12).flatten(1))


class Scaled(Gated):
    """A parameter for each unit, which would not leave with it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(96))

    def forward(self, x):
        return self.down(self.gate(x) * self.up(x) * self.scale)


@pytest.mark.parametrize("mlp", [Normed, Shown, Fixed, Scaled])
def test_units_that_cannot_leave(mlp):
    net = Net()
    net.mlp = mlp()
    before = copy.deepcopy(net.state_dict())
    stats = rt.calibrate(net, batches())
    assert stats.hidden_units == {}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    _, report = rt.prune(net, calibration=stats, budget=0.5)
    assert {row["action"] for row in report.cut} == {"split"}


def test_a_chain_and_an_encoder_layer():
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 20))
    assert rt.calibrate(chain, batches()).hidden_units == {"2": ["0"]}
    layer = nn.TransformerEncoderLayer(32, 4, 96, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    stats = rt.calibrate(encoder, [torch.randn(4, 9, 32) for _ in range(3)])
    assert stats.hidden_units == {"layers.0.linear2": ["layers.0.linear1"]}


# What is lost, and what the plan says.


@torch.no_grad()
def test_near_copies_leave_first(net):
    smaller, report = pruned(net)
    rows = {row["name"]: row for row in report.cut}
    assert {rows[f"mlp.{name}"]["action"] for name in ("gate", "up", "down")} == {"narrow"}
    units = rows["mlp.down"]["rank"]
    assert 20 < units <= 60
    assert {rows[f"mlp.{name}"]["rank"] for name in ("gate", "up")} == {units}
    assert smaller.mlp.down.weight.shape == (48, units)
    assert smaller.mlp.gate.weight.shape == (units, 48)
    assert isinstance(smaller.mlp.down, nn.Linear)
    assert rows["mlp.gate"]["parameters_after"] == 48 * units
    assert rows["mlp.down"]["form"] == "fewer inputs"
    assert rows["mlp.up"]["predicted_loss"] == 0.0
    assert rows["mlp.down"]["predicted_loss"] > 0.0
    cuttable = [row for row in report.rows if row["name"] != "head"]
    kept, whole = (
        sum(row[f"parameters_{when}"] for row in cuttable) for when in ("after", "before")
    )
    assert 0.58 * whole < kept <= 0.6 * whole
    x = batches()[0]
    low_rank, alone = pruned(net, form="pivoted")
    assert {row["action"] for row in alone.cut} == {"split"}
    gap = [(model(x) - net(x)).norm() for model in (smaller, low_rank)]
    assert gap[0] < gap[1]
    assert "narrow" in str(report)


@torch.no_grad()
def test_the_errors_are_those_of_the_outputs(net):
    stats = rt.calibrate(net, batches(), holdout=0.0)
    smaller, report = rt.prune(net, calibration=stats, budget=0.6)
    row, x = report.row("mlp.down"), torch.cat(batches())
    hidden = nn.functional.silu(net.mlp.gate(net.first(x))) * net.mlp.up(net.first(x))
    whole = hidden @ net.mlp.down.weight.T
    kept = hidden[:, smaller.mlp.down.units] @ smaller.mlp.down.weight.T
    assert row["output_error"] == pytest.approx(
        float((kept - whole).norm() / whole.norm()), rel=0.01
    )
    lost = ((kept - whole) ** 2).double().mean(0).numpy() @ stats.output_weights["mlp.down"][0] / 2
    assert row["predicted_loss"] == pytest.approx(lost, rel=0.01)
    gate = net.mlp.gate.weight
    left = gate.norm() ** 2 - smaller.mlp.gate.weight.norm() ** 2
    expected = float(left.clamp_min(0).sqrt() / gate.norm())
    assert report.row("mlp.gate")["weight_error"] == pytest.approx(expected, rel=1e-3)


def test_ranks_that_are_given_and_layers_left_out_keep_their_units(net):
    _, report = pruned(net, ranks={"mlp.up": 20})
    assert "narrow" not in {row["action"] for row in report.cut}
    _, report = pruned(net, exclude="up")
    assert "narrow" not in {row["action"] for row in report.cut}
    _, report = pruned(net, objective="outputs")
    assert "narrow" not in {row["action"] for row in report.cut}
    smaller, report = pruned(net, rank_multiple=8)
    assert report.row("mlp.down")["action"] == "narrow"
    assert smaller.mlp.down.in_features % 8 == 0


def test_in_place_it_is_the_same(net):
    stats = rt.calibrate(net, batches())
    smaller, _ = rt.prune(net, calibration=stats, budget=0.6)
    state = smaller.state_dict()
    same, _ = rt.prune(net, calibration=stats, budget=0.6, inplace=True)
    assert same is net
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


# Journeys.


@torch.no_grad()
def test_saved_loaded_and_merged(net, tmp_path):
    smaller, _ = pruned(net)
    x = batches()[0]
    rt.save(smaller, tmp_path / "small")
    loaded = rt.load(Net(net.mlp.gate.bias is not None), tmp_path / "small")
    assert torch.equal(loaded(x), smaller(x))
    assert "fewer inputs of 96" in repr(loaded.mlp.down)
    merged = rt.merge(loaded)
    assert type(merged.mlp.gate) is nn.Linear
    assert merged.mlp.down.in_features == 96
    torch.testing.assert_close(merged(x), smaller(x))
    assert {k: v.shape for k, v in merged.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }
    rmtspec.merge_checkpoint(tmp_path / "small", tmp_path / "dense")
    on_disk = load_file(tmp_path / "dense/model.safetensors")
    net.load_state_dict(on_disk)
    torch.testing.assert_close(net(x), smaller(x))


@torch.no_grad()
def test_in_a_file_it_is_as_in_memory(net, tmp_path):
    stats = rt.calibrate(net, batches())
    stats.save(tmp_path / "stats.safetensors")
    read = rt.Calibration.load(tmp_path / "stats.safetensors")
    smaller, report = rt.prune(net, calibration=stats, budget=0.6)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    in_file = rmtspec.prune_checkpoint(
        tmp_path / "model.safetensors", tmp_path / "small", calibration=read, budget=0.6
    )
    for row in report.cut:
        other = in_file.row(f"{row['name']}.weight")
        assert (other["action"], other["rank"], other["form"]) == (
            row["action"], row["rank"], row["form"],
        )  # fmt: skip
        assert other["weight_error"] == pytest.approx(row["weight_error"], rel=1e-4)
    loaded = rt.load(Net(net.mlp.gate.bias is not None), tmp_path / "small")
    x = batches()[0]
    torch.testing.assert_close(loaded(x), smaller(x))
    rmtspec.merge_checkpoint(tmp_path / "small", tmp_path / "dense")
    net.load_state_dict(load_file(tmp_path / "dense/model.safetensors"))
    torch.testing.assert_close(net(x), smaller(x))


@torch.no_grad()
def test_a_plan_from_a_file_is_carried_out_with_calibration(net, tmp_path):
    stats = rt.calibrate(net, batches())
    planned = rt.plan(net, calibration=stats, budget=0.6)
    planned.save(tmp_path / "plan.json")
    plan = Report.from_json(tmp_path / "plan.json")
    smaller, _ = rt.apply_plan(net, plan, calibration=stats)
    expected, _ = rt.prune(net, calibration=stats, budget=0.6)
    assert torch.equal(smaller(batches()[0]), expected(batches()[0]))
    for row in plan.rows:
        if row["action"] == "narrow":
            row["rank"] = 31
    fewer, _ = rt.apply_plan(net, plan, calibration=stats)
    assert fewer.mlp.down.in_features == 31


def test_factors_and_units_are_refitted_and_converted(net):
    smaller, _ = pruned(net)
    better, curve = rt.refit(smaller, net, batches(), steps=20)
    assert curve.held_out_after < curve.held_out_before
    assert not torch.equal(better.mlp.down.weight, smaller.mlp.down.weight)
    again = copy.deepcopy(better)
    assert copy.deepcopy(better).to(torch.bfloat16).mlp.down.units.dtype == torch.int64
    assert torch.equal(again(batches()[0]), better(batches()[0]))


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp.up": {"rank": 5}}, "mlp.up \\(fewer outputs, 5\\).*one number of units in all"),
        ({"mlp.up": {"action": "keep"}}, "does not know these as one hidden layer"),
        ({"mlp.down": {"action": "keep"}}, "expected the matrix that reads the units"),
        ({"mlp.up": {"form": "pivoted"}}, "expected one of fewer outputs, fewer inputs"),
        (
            {"mlp.up": {"form": "fewer inputs", "rank": 9}},
            "expected the matrix that reads the units",
        ),
        ({"mlp.down": {"rank": 97}}, "The rank of mlp.down in the plan is 97"),
        ({"mlp.up": {"reader": "first"}}, "for the reader"),
    ],
)
def test_plans_that_do_not_fit(change, message):
    net = Net()
    stats = rt.calibrate(net, batches())
    plan = rt.plan(net, calibration=stats, budget=0.6)
    for name, values in change.items():
        plan.row(name).update(values)
    with pytest.raises(InvalidValueError, match=message):
        rt.apply_plan(net, plan, calibration=stats)


def test_a_plan_without_its_calibration():
    net = Net()
    plan = rt.plan(net, calibration=batches(), budget=0.6)
    with pytest.raises(
        InvalidValueError, match="Pass the `calibration` that the plan was made with"
    ):
        rt.apply_plan(net, plan)


def test_a_narrowed_layer_is_made_by_prune_and_not_cut_again():
    with pytest.raises(InvalidTypeError, match="made from a layer: call `prune`"):
        rt.NarrowedLinear(3, 4)
    smaller, _ = pruned(Net())
    _, report = rt.prune(smaller, ranks={"first": 5}, gate=None)
    assert "holds more" in report.row("mlp.down")["reason"]


def test_a_skeleton_that_is_narrowed_already(tmp_path):
    smaller, _ = pruned(Net())
    rt.save(smaller, tmp_path / "small")
    with pytest.raises(InvalidValueError, match="split already"):
        rt.load(smaller, tmp_path / "small")


@pytest.mark.parametrize("what", ["units", "rank", "shape", "missing"])
def test_damaged_folders(tmp_path, what):
    net = Net()
    smaller, _ = pruned(net)
    rt.save(smaller, tmp_path / "small")
    file = tmp_path / "small/rmtspec.json"
    manifest = json.loads(file.read_text())
    entry = next(e for e in manifest["splits"] if e["name"] == "mlp.down")
    if what == "rank":
        entry["rank"] -= 1
    elif what == "shape":
        entry["shape"] = [48, 30]
    else:
        weights = tmp_path / "small/rmtspec.safetensors"
        state = load_file(weights)
        if what == "missing":
            del state["mlp.down.units"]
        else:
            state["mlp.down.units"] = state["mlp.down.units"].flip(0).contiguous()
        save_file(state, weights)
    file.write_text(json.dumps(manifest))
    with pytest.raises(FileError, match=r"'mlp.down' is .*ascending list of units"):
        rmtspec.merge_checkpoint(tmp_path / "small", tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def test_units_of_a_file_are_the_model_s(tmp_path):
    smaller, report = pruned(Net())
    units = smaller.mlp.down.units.numpy()
    assert np.array_equal(smaller.mlp.gate.units.numpy(), units)
    assert (np.diff(units) > 0).all()
    assert len(units) == report.row("mlp.down")["rank"]
