"""Split models in use: order, failures midway, owners that read weights, changed factors."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch._layers.split_layer import factors_are_used
from rmtspec.errors import InvalidTypeError, InvalidValueError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_the_order_of_a_plan_is_no_matter():
    model = nn.Sequential(nn.Conv2d(64, 64, 3, groups=2))
    planned = rt.plan(model, ranks={"0": 32})
    planned.rows.reverse()
    full, _ = rt.apply_plan(model, planned)
    x = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(full(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["split", "truncate"])
def test_a_plan_that_meets_nan_changes_nothing(mode):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    planned = rt.plan(model, ranks={"0": 8, "1": 8}, mode=mode)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(InvalidValueError, match="'1' has nan"):
        rt.apply_plan(model, planned, inplace=True)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight, before)


def test_analysis_counts_no_saving_that_prune_would_not_make():
    model = nn.ModuleDict({"table": nn.Embedding(300, 64), "lstm": nn.LSTM(32, 64),
                           "fc": nn.Linear(200, 100)})  # fmt: skip
    report = rt.analyze(model, bulk_keep=0.2)
    for row in report.rows:
        kept_whole = row["parameters_after"] == row["parameters_before"]
        assert kept_whole == (row["name"] != "fc"), row["name"]
        assert bool(row["reason"]) == kept_whole
    planned = rt.plan(model, bulk_keep=0.2)
    assert planned.parameters_after == report.parameters_after


def test_all_zero_weights_are_left_alone():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    nn.init.zeros_(model[1].weight)
    for options in ({"bulk_keep": 0.2}, {"budget": 0.5}):
        smaller, report = rt.prune(model, **options)
        assert type(smaller[1]) is nn.Linear
        assert "would not train" in report.row("1")["reason"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_error_of_a_truncation_is_that_of_what_is_stored(dtype):
    layer = nn.Linear(160, 200)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(200, 20) @ torch.randn(20, 160))
    model = nn.Sequential(layer).to(dtype)
    x = torch.randn(300, 160).to(dtype)
    for options in ({}, {"calibration": [x]}):
        cut, report = rt.prune(model, ranks={"0": 20}, mode="truncate", **options)
        row, W = report.row("0"), model[0].weight.detach().double()
        gap = cut[0].weight.detach().double() - W
        assert row["weight_error"] == pytest.approx(float(gap.norm() / W.norm()), rel=1e-9)
        if options:
            xx = x.double()
            measured = float((xx @ gap.T).norm() / (xx @ W.T).norm())
            assert row["output_error"] == pytest.approx(measured, rel=1e-6)


def encoder():
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_calibration_with_a_padding_mask():
    """The encoder turns padded batches into nested tensors, and padding does not count."""
    model = encoder()
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[0, 5:] = True
    batch = {"src": torch.randn(4, 10, 64), "src_key_padding_mask": mask}
    smaller, report = rt.prune(model, bulk_keep=0.1, calibration=[batch])
    assert report.row("layers.0.linear1")["output_error"] < 1
    with torch.no_grad():
        assert smaller(**batch).shape == (4, 10, 64)


def test_the_short_cut_of_the_encoder_layer_does_not_multiply_the_factors():
    model = encoder()
    smaller, _ = rt.prune(
        model, ranks={f"layers.{i}.linear{j}": 16 for i in (0, 1) for j in (1, 2)}
    )
    asked = []
    product = rt.SplitLinear._product

    def counted(self, *factors):
        asked.append(self)
        return product(self, *factors)

    rt.SplitLinear._product = counted
    try:
        with torch.no_grad():
            output = smaller(torch.ones(1, 5, 64))
    finally:
        rt.SplitLinear._product = product
    assert asked == []
    merged = rt.merge(smaller)
    for layer in merged.layers:  # the short cut is theirs again
        assert factors_are_used not in layer.linear1._forward_hooks.values()
    with torch.no_grad():
        torch.testing.assert_close(merged(torch.ones(1, 5, 64)), output, rtol=1e-4, atol=1e-5)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.slow
def test_a_split_encoder_is_faster_where_it_has_less_to_do():
    layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    smaller, _ = rt.prune(
        model, ranks={f"layers.{i}.linear{j}": 16 for i in (0, 1) for j in (1, 2)}
    )
    x = torch.ones(8, 64, 512)
    pairs = []
    with torch.no_grad():
        for _ in range(15):
            start = time.perf_counter()
            model(x)
            middle = time.perf_counter()
            smaller(x)
            pairs.append((time.perf_counter() - middle) / (middle - start))
    assert np.median(pairs) < 1


class Low(nn.Linear):
    def forward(self, x):
        return super().forward(x) + x.sum()


@pytest.mark.parametrize("change", ["bias", "forward", "sequence"])
def test_merge_refuses_factors_that_do_more(change):
    model = nn.Sequential(nn.Linear(8, 8), rt.SplitLinear.from_layer(nn.Linear(64, 64), 8))
    factor = model[1].inner
    if change == "bias":
        factor.bias = nn.Parameter(torch.ones(8))
    elif change == "forward":
        model[1].inner = Low(64, 8, bias=False)
    else:
        model[1].inner = nn.Sequential(factor)
    for inplace in (False, True):
        with pytest.raises(InvalidValueError, match=r"'1\.inner' is not as the split made it"):
            rt.merge(model, inplace=inplace)
    assert isinstance(model[1], rt.SplitLinear)


def test_merge_of_a_layer_in_two_places():
    thin = rt.SplitLinear.from_layer(nn.Linear(64, 64), 8)
    for inplace in (False, True):
        merged = rt.merge(nn.ModuleDict({"a": thin, "b": thin}), inplace=inplace)
        assert type(merged["a"]) is nn.Linear
        assert merged["a"] is merged["b"]


def test_load_that_fails_leaves_the_skeleton(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(30, 40)
            self.register_buffer("grid", torch.ones(3), persistent=False)

    folder = rt.save(rt.prune(Net(), ranks={"fc": 5})[0], tmp_path / "m")
    with torch.device("meta"):
        skeleton = Net()
    with pytest.raises(InvalidValueError, match="grid of `skeleton`"):
        rt.load(skeleton, folder, assign=True)
    assert type(skeleton.fc) is nn.Linear
    loaded = rt.load(Net(), folder)
    with pytest.raises(InvalidValueError, match="'fc' split already"):
        rt.load(loaded, folder)


def test_split_layers_are_made_from_layers_only():
    with pytest.raises(InvalidTypeError, match="from_layer"):
        rt.SplitLinear(3, 3)
    with pytest.raises(InvalidTypeError, match="`layer` is a NoneType"):
        rt.SplitLinear.from_layer(None, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_torchscript(kind):
    if kind == "linear":
        layer, x = rt.SplitLinear.from_layer(nn.Linear(64, 64), 8), torch.randn(2, 64)
    else:
        layer, x = rt.SplitConv2d.from_layer(nn.Conv2d(16, 16, 3), 8), torch.randn(1, 16, 5, 5)
    model = nn.Sequential(layer)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
