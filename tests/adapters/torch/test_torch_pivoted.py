"""Splits stored as pivot rows: the same layer in fewer numbers, through every journey."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.errors import FileError, InvalidOptionError
from rmtspec.report import Report


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 40, bias=False))


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(200, 64, generator=generator) for _ in range(3)]


def both(model, **options):
    """The same ranks in both forms."""
    ranks = {"0": 20, "2": 17}
    return [rt.prune(model, ranks=ranks, form=form, **options) for form in ("plain", "pivoted")]


def test_the_function_is_that_of_two_factors(mlp):
    (plain, first), (thin, second) = both(mlp, calibration=batches())
    x = batches()[0]
    torch.testing.assert_close(thin(x), plain(x), rtol=1e-4, atol=1e-5)
    assert [r["output_error"] for r in first.rows] == [r["output_error"] for r in second.rows]
    for name, (rows, columns), rank in (("0", (96, 64), 20), ("2", (40, 96), 17)):
        assert second.row(name)["parameters_after"] == rank * (rows + columns - rank)
        layer = thin[int(name)]
        assert isinstance(layer, rt.SplitLinear)
        assert layer.form == "pivoted"
        assert layer.weight.shape == (rows, columns)
        assert (layer.in_features, layer.out_features) == (columns, rows)
    assert second.totals["parameters_after"] == sum(p.numel() for p in thin.parameters())
    assert thin[0].bias is thin[0].outer.bias
    assert thin[2].bias is None


def test_more_rank_fits_into_a_budget_by_the_loss(mlp):
    stats = rt.calibrate(mlp, batches())
    _, pivoted = rt.prune(mlp, calibration=stats, budget=0.6, form="pivoted")
    _, plain = rt.prune(mlp, calibration=stats, budget=0.6, form="plain")
    assert {row["form"] for row in pivoted.cut} == {"pivoted"}
    assert {row["form"] for row in plain.cut} == {"plain"}
    for report in (pivoted, plain):
        assert report.parameters_after <= 0.6 * report.parameters_before
    assert sum(r["predicted_loss"] for r in pivoted.cut) < 0.8 * sum(
        r["predicted_loss"] for r in plain.cut
    )
    _, outputs = rt.prune(mlp, calibration=stats, budget=0.6, objective="outputs")
    assert {row["form"] for row in outputs.cut} == {"plain"}


def test_any_rank_below_the_smaller_side_saves(mlp):
    _, report = rt.prune(mlp, rule="fraction", keep=0.9, gate=None, form="pivoted")
    assert report.row("0")["rank"] == 57
    assert report.row("0")["parameters_after"] == 57 * (96 + 64 - 57) < 96 * 64
    full = rt.plan(mlp, rule="fraction", keep=1.0, gate=None, form="pivoted").row("0")
    assert full["reason"] == "rank 64 is not below break-even 64.0"


def test_plans_keep_the_form(mlp, tmp_path):
    planned = rt.plan(mlp, calibration=batches(), budget=0.6, form="pivoted")
    planned.save(tmp_path / "plan.json")
    read = Report.from_json(tmp_path / "plan.json")
    smaller, report = rt.apply_plan(mlp, read, calibration=batches())
    assert report.parameters_after == planned.parameters_after
    assert smaller[0].form == "pivoted"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_it_is_the_dense_layer_again(mlp, dtype):
    _, (thin, _) = both(mlp.to(dtype))
    merged = rt.merge(thin)
    assert type(merged[0]) is nn.Linear
    assert merged[0].weight.dtype == dtype
    x = batches()[0].to(dtype)
    # Rounding of factors and of the product: 2^-8 a step in bfloat16.
    tolerance = (
        {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    )
    torch.testing.assert_close(merged(x), thin(x), **tolerance)


def test_saved_and_loaded_it_is_the_same(mlp, tmp_path):
    _, (thin, _) = both(mlp)
    rt.save(thin, tmp_path / "model")
    entry = json.loads((tmp_path / "model/rmtspec.json").read_text())["splits"][0]
    assert entry["form"] == "pivoted"
    loaded = rt.load(copy.deepcopy(mlp), tmp_path / "model")
    x = batches()[0]
    assert torch.equal(loaded(x), thin(x))
    assert isinstance(loaded[0], rt.SplitLinear)


def test_its_file_can_be_merged_without_torch(mlp, tmp_path):
    _, (thin, _) = both(mlp)
    rt.save(thin, tmp_path / "model")
    rmtspec.merge_checkpoint(tmp_path / "model", tmp_path / "dense")
    state = rt.read_state_dict(next((tmp_path / "dense").glob("*.safetensors")))
    merged = rt.merge(thin).state_dict()
    assert set(state) == set(merged)
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-6)


def test_a_damaged_order_is_found(mlp, tmp_path):
    _, (thin, _) = both(mlp)
    with torch.no_grad():
        thin[0].outer.place[0] = thin[0].outer.place[1]
    rt.save(thin, tmp_path / "model")
    with pytest.raises(FileError, match="the pivots of '0' are"):
        rmtspec.merge_checkpoint(tmp_path / "model", tmp_path / "dense")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_it_trains_scripts_and_compiles_like_a_layer(mlp):
    _, (thin, _) = both(mlp)
    x = batches()[0]
    thin(x).square().mean().backward()
    assert thin[0].outer.mixing.weight.grad.abs().sum() > 0
    assert thin[0].inner.weight.grad.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(thin)(x), thin(x))
        torch.testing.assert_close(torch.jit.trace(thin, x)(x), thin(x))
    copied = copy.deepcopy(thin)
    assert torch.equal(copied(x), thin(x))
    half = thin.half()
    assert half[0].outer.place.dtype == torch.int64
    assert half(x.half()).dtype == torch.float16


def test_other_kinds_stay_plain():
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32 * 36, 20))
    images = [torch.randn(8, 16, 8, 8)]
    _, report = rt.prune(model, calibration=images, budget=0.5)
    assert report.row("0")["form"] == "plain"
    assert report.row("2")["form"] == "pivoted"
    np.testing.assert_array_less(report.parameters_after, 0.5 * report.parameters_before)


def test_wrong_forms(mlp):
    with pytest.raises(InvalidOptionError, match="`form` is 'thin'; expected one of plain"):
        rt.prune(mlp, form="thin")


def test_it_draws_no_random_numbers(mlp):
    stats = rt.calibrate(mlp, batches())
    before = torch.get_rng_state()
    rt.prune(mlp, calibration=stats, budget=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_manifest_that_gives_pivots_to_a_kernel_is_damaged(mlp, tmp_path):
    model = nn.Sequential(nn.Conv2d(16, 32, 3))
    rt.save(rt.prune(model, ranks={"0": 4}, gate=None)[0], tmp_path / "model")
    file = tmp_path / "model/rmtspec.json"
    manifest = json.loads(file.read_text())
    manifest["splits"][0]["form"] = "pivoted"
    file.write_text(json.dumps(manifest))
    with pytest.raises(FileError, match=r"damaged|pivots"):
        rmtspec.merge_checkpoint(tmp_path / "model", tmp_path / "dense")
