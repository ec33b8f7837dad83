"""A cut whose entries the dtype has no room for is not made: nothing infinite is written."""

import json
import warnings

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from checkpoints import contents, planted, write_safetensors
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open

import rmtspec
from rmtspec.adapters import onnx as ro
from rmtspec.adapters import torch as rt
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import FileError, InvalidValueError
from rmtspec.matrix.hidden_units import refitted
from rmtspec.matrix.in_dtype import check_product, in_dtype
from rmtspec.matrix.split import split, truncate
from rmtspec.planning.cut import cut
from rmtspec.report import Report
from rmtspec.runs import pruned_tensors
from rmtspec.runs.adapter_folder import LINEAR, LayerFactors
from rmtspec.terms import Why

LARGEST = {"float16": 65504.0, "bfloat16": 3.38953139e38, "float32": 3.4028235e38}


def near_the_largest(dtype="float16", rows=120, columns=90, seed=0):
    """Signs times nearly the largest number: of low rank, many entries are larger."""
    signs = np.sign(np.random.default_rng(seed).standard_normal((rows, columns)))
    return (signs * LARGEST[dtype] * 0.99).astype(dtype)


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def test_this_matrix_overflows():
    W = near_the_largest().astype(float)
    assert (np.abs(truncate(W, 40).matrix) > 65504).sum() > 1000
    for dtype in LARGEST:
        with pytest.raises(InvalidValueError) as caught:
            truncate(near_the_largest(dtype), 40)
        assert Why.of(str(caught.value)) == (Why.OVERFLOWS,)
    parts = split(near_the_largest(), 40)  # roots of singular values have room
    assert np.isfinite(parts.outer).all()
    assert np.isfinite(parts.inner).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_in_files(tmp_path, dtype):
    whole = {"big.weight": near_the_largest(dtype), "a.weight": planted(dtype=dtype)}
    write_safetensors(tmp_path / "m.safetensors", whole)
    asked = {"mode": "truncate", "ranks": {"big.weight": 40, "a.weight": 3}}
    done = rmtspec.prune_checkpoint(
        tmp_path / "m.safetensors", tmp_path / "out", report=tmp_path / "r.json", **asked
    )
    row = done.row("big.weight")
    assert (row["action"], Why.of(row["reason"])) == ("keep", (Why.OVERFLOWS,))
    assert row["weight_error"] is None
    assert done.row("a.weight")["action"] == "truncate"
    json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert Report.from_json(tmp_path / "r.json").row("big.weight") == row
    found = dict(matrices_in(tmp_path / "out"))
    assert found["big.weight"]().tobytes() == whole["big.weight"].tobytes()
    assert np.linalg.matrix_rank(found["a.weight"]().astype(float), tol=1.0) == 3


def test_of_a_stack_only_the_one_is_left(tmp_path):
    stack = np.stack(
        [planted(dtype="float16"), near_the_largest(), planted(seed=1, dtype="float16")]
    )
    write_safetensors(tmp_path / "m.safetensors", {"experts.weight": stack})
    (tmp_path / "config.json").write_text('{"num_experts": 3}')
    names = [row["name"] for row in rmtspec.analyze_checkpoint(tmp_path / "m.safetensors").rows]
    assert len(names) == 3
    done = rmtspec.prune_checkpoint(
        tmp_path / "m.safetensors", tmp_path / "out", mode="truncate", ranks=dict.fromkeys(names, 4)
    )
    assert [row["action"] for row in done.rows] == ["truncate", "keep", "truncate"]
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        found = file.get_tensor("experts.weight")
    assert np.isfinite(found).all()
    assert (found[1] == stack[1]).all()
    assert (found[0] != stack[0]).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("inplace", [True, False])
def test_in_a_model(dtype, inplace):
    model = torch.nn.Sequential(torch.nn.Linear(90, 120), torch.nn.Linear(120, 90)).to(dtype)
    name = str(dtype).removeprefix("torch.")
    big = torch.from_numpy(near_the_largest(name).astype(np.float32)).to(dtype)
    with torch.no_grad():
        model[0].weight.copy_(big)
    asked = {"mode": "truncate", "ranks": {"0": 40, "1": 3}, "inplace": inplace}
    pruned, done = rt.prune(model, **asked)
    assert Why.of(done.row("0")["reason"]) == (Why.OVERFLOWS,)
    assert [row["action"] for row in done.rows] == ["keep", "truncate"]
    assert torch.equal(pruned[0].weight, big)
    done.to_json()


def test_groups_of_a_convolution_stay_together(monkeypatch):
    conv = torch.nn.Conv1d(40, 60, 5, groups=2)
    from rmtspec.adapters.torch._pruning import carry_out as carrying

    made = []

    def second_fails(row, array, *args, **kwargs):
        made.append(row["name"])
        if len(made) == 2:
            array = np.full_like(array, np.nan)  # never looked at
            monkeypatch.setattr("rmtspec.planning.cut.split", overflowing)
        return cut(row, array, *args, **kwargs)

    def overflowing(*_, **__):
        return in_dtype(np.array([1e9]), np.float16)

    monkeypatch.setattr(carrying, "cut", second_fails)
    pruned, done = rt.prune(
        torch.nn.Sequential(conv), ranks={"0[0]": 3, "0[1]": 3}, include=".*", gate=None
    )
    assert [row["action"] for row in done.rows] == ["keep", "keep"]
    assert Why.of(done.rows[0]["reason"])[-1] in (Why.OVERFLOWS, Why.LAYER_HELD)
    assert type(pruned[0]) is torch.nn.Conv1d
    assert done.totals["parameters_after"] == done.totals["parameters_before"]


def graph(W):
    node = helper.make_node("Gemm", ["x", "W"], ["y"], transB=1)
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, None) for n in "xy"]
    held = [numpy_helper.from_array(W, "W")]
    return helper.make_model(helper.make_graph([node], "net", sides[:1], sides[1:], held))


def test_in_a_graph():
    W = near_the_largest()
    made, done = ro.prune(graph(W), mode="truncate", ranks={"W": 40})
    assert Why.of(done.rows[0]["reason"]) == (Why.OVERFLOWS,)
    assert (numpy_helper.to_array(made.graph.initializer[0]) == W).all()
    made, done = ro.prune(graph(W), mode="split", ranks={"W": 40})
    assert done.rows[0]["action"] == "split"
    with pytest.raises(InvalidValueError, match="beyond the largest float16"):
        ro.merge(made)
    assert isinstance(
        ro.merge(ro.prune(graph(planted(dtype="float16")), gate=None)[0]), onnx.ModelProto
    )


def test_merging_files(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"big.weight": near_the_largest()})
    rmtspec.prune_checkpoint(
        tmp_path / "m.safetensors", tmp_path / "small", ranks={"big.weight": 40}
    )
    before = contents(tmp_path)
    with pytest.raises(FileError, match=r"'big' has entries beyond the largest float16"):
        rmtspec.merge_checkpoint(tmp_path / "small", tmp_path / "out")
    assert contents(tmp_path) == before


def test_merging_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(90, 120)).half()
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(near_the_largest()))
    pruned, _ = rt.prune(model, ranks={"0": 40})
    with pytest.raises(
        InvalidValueError, match="'0' cannot be merged: its weight has entries beyond"
    ):
        rt.merge(pruned)
    assert torch.isfinite(rt.merge(pruned.float())[0].weight).all()
    with torch.no_grad():
        pruned[0].outer.weight[0] = torch.inf  # what a training broke stays so
    assert not torch.isfinite(rt.merge(pruned)[0].weight).all()


def test_pivot_rows_have_no_room():
    row = {
        "name": "big", "kind": "linear", "action": "split", "form": "pivoted", "rank": 40,
        "rows": 120, "columns": 90, "bytes_before": 21600, "parameters_before": 10800,
        "layer": "big",
    }  # fmt: skip
    assert cut(row, near_the_largest()) is None
    assert (row["action"], row["parameters_after"]) == ("keep", 10800)
    parts = split(planted(dtype="float16"), 3)
    check_product(parts.outer, parts.inner)
    outer, inner = np.diag([300.0, 2.0]), np.diag([1.0, 300.0])
    check_product(*(each.astype("float16") for each in (outer, inner)))  # the bound is too large


def test_a_file_that_lists_pivot_rows_is_given_up(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "m.safetensors", {"big.weight": near_the_largest()})
    listed = matrices_in(tmp_path / "m.safetensors")
    plan = rmtspec.prune_checkpoint(listed, None, dry_run=True, ranks={"big": 40})
    row = plan.row("big.weight") | {"form": "pivoted"}
    ((first, *_),) = pruned_tensors.outgoing_files(listed, [row])
    with pytest.raises(
        InvalidValueError, match=r"'big\.weight' cannot be cut: its cut has entries"
    ):
        first.load()


def test_fitted_units_have_no_room():
    W = near_the_largest(rows=30, columns=20)
    inputs = np.random.default_rng(0).standard_normal((2, 200))[[0, 1] * 10]
    fitted = refitted(W, inputs @ inputs.T / 200, np.arange(2))
    assert np.abs(fitted).max() > 65504
    with pytest.raises(InvalidValueError, match="beyond the largest float16"):
        in_dtype(fitted, W.dtype)


def test_an_adapter_has_no_room_in_float32():
    outer, inner = np.full((6, 1), 1e39), np.ones((1, 5))
    layer = LayerFactors("fc", LINEAR, (6, 5), 1, load=lambda: (outer, inner))
    with pytest.raises(InvalidValueError, match="beyond the largest float32"):
        [tensor.load() for tensor in layer.outgoing()]


def test_float8_becomes_nan_and_is_refused_too():
    with pytest.raises(InvalidValueError, match="beyond the largest float8_e4m3fn"):
        in_dtype(np.array([500.0]), ml_dtypes.float8_e4m3fn)
    assert in_dtype(np.array([np.inf]), np.float16)[0] == np.inf  # it was so before
