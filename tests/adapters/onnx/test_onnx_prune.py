"""Splitting the nodes of a graph, and merging them again."""

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import CLOSE, graph_of, node, normal, run, several, spiked

import rmtspec
from rmtspec.adapters import onnx as ro
from rmtspec.adapting import Plan
from rmtspec.errors import FileError, InvalidOptionError, InvalidValueError, RmtspecError

IMAGES = {"x": normal(2, 16, 12, 12)}


def full_ranks(model, **more):
    free = {
        name: min(matrix.shape)
        for name, matrix in ro.weight_matrices(model)
        if not (matrix.reason or matrix.fixed or matrix.unsplittable)
    }
    return free | more


def test_the_matrices_are_outputs_x_inputs():
    found = {n: (str(m.kind), m.shape) for n, m in ro.weight_matrices(several())}
    assert found == {
        "conv[0]": ("conv2d", (24, 72)), "conv[1]": ("conv2d", (24, 72)),
        "conv2": ("conv2d", (64, 432)), "gemm": ("linear", (80, 64)),
        "plain": ("linear", (96, 80)), "matmul": ("linear", (120, 96)),
        "left": ("linear", (40, 120)),
    }  # fmt: skip


def test_a_split_at_full_rank_changes_no_output():
    model = several()
    before = model.SerializeToString()
    ranks = full_ranks(model)
    pruned, report = ro.prune(model, ranks=ranks)
    onnx.checker.check_model(pruned, full_check=True)
    assert {row["action"] for row in report.rows} == {"split"}
    assert_allclose(run(pruned, **IMAGES), run(model, **IMAGES), rtol=CLOSE, atol=CLOSE)
    assert model.SerializeToString() == before
    kinds = [each.op_type for each in pruned.graph.node]
    assert kinds == [
        "Conv", "Conv", "Conv", "Conv", "GlobalAveragePool", "Flatten", "MatMul", "Gemm",
        "MatMul", "Gemm", "MatMul", "MatMul", "Add", "Transpose", "MatMul", "MatMul",
    ]  # fmt: skip
    assert {t.name for t in pruned.graph.initializer} == {
        "bias2", "bias3", "bias4",
        *(f"{name}.{side}" for name in ("conv", "conv2", "gemm", "plain", "matmul", "left")
          for side in ("inner", "outer")),
    }  # fmt: skip


def test_merging_gives_the_old_graph_with_the_products():
    model = several()
    pruned, _ = ro.prune(model, bulk_keep=0.0, gate=None)
    merged = ro.merge(pruned)
    onnx.checker.check_model(merged, full_check=True)
    assert_allclose(run(merged, **IMAGES), run(pruned, **IMAGES), rtol=CLOSE, atol=CLOSE)
    assert list(merged.graph.node) == list(model.graph.node)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert {t.name: tuple(t.dims) for t in merged.graph.initializer} == shapes
    assert not merged.metadata_props


def test_the_ranks_are_those_of_the_core_and_the_truncation_is_the_product():
    model = several()
    pruned, report = ro.prune(model, bulk_keep=0.1)
    arrays = {name: matrix() for name, matrix in ro.weight_matrices(model)}
    same = rmtspec.analyze_many(arrays, bulk_keep=0.1, noise="auto", rule="noise")
    for row in report.rows:
        if row["action"] == "split" and not row["name"].startswith("conv["):
            assert row["rank"] == same.row(row["name"])["rank"]
    truncated, again = ro.prune(model, bulk_keep=0.1, mode="truncate")
    for one, other in zip(report.cut, again.cut, strict=False):
        assert one["weight_error"] == pytest.approx(other["weight_error"], abs=1e-6)
    merged = {n: m() for n, m in ro.weight_matrices(ro.merge(pruned))}
    for row in again.cut:
        found = dict(ro.weight_matrices(truncated))[row["name"]]()
        assert np.linalg.matrix_rank(found, tol=1e-4) == row["rank"]
        if row["rank"] == report.row(row["name"])["rank"]:
            assert_allclose(found, merged[row["name"]], atol=CLOSE)


def test_the_errors_are_those_of_the_torch_adapter(tmp_path):
    torch = pytest.importorskip("torch")
    from rmtspec.adapters import torch as rt

    torch.manual_seed(0)
    net = rt.MLP([64, 100, 50, 10])
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.from_numpy(spiked(100, 64)))
    model = graph_of(
        [
            node("Gemm", ["x", "layers.0.weight", "b0"], ["a"], transB=1),
            node("Relu", ["a"], ["b"]),
            node("MatMul", ["b", "turned"], ["y"]),
        ],
        {
            "layers.0.weight": net.layers[0].weight.detach().numpy(),
            "b0": net.layers[0].bias.detach().numpy(),
            "turned": np.ascontiguousarray(net.layers[1].weight.detach().numpy().T),
        },
    )
    smaller, theirs = rt.prune(net, bulk_keep=0.2, gate=None)
    pruned, ours = ro.prune(model, bulk_keep=0.2, gate=None)
    for name, other in (("layers.0.weight", "layers.0"), ("turned", "layers.1")):
        one, two = ours.row(name), theirs.row(other)
        assert one["rank"] == two["rank"]
        assert one["weight_error"] == pytest.approx(two["weight_error"], abs=1e-6)
    inputs = normal(5, 64)
    with torch.no_grad():
        first = torch.relu(smaller.layers[0](torch.from_numpy(inputs)))
        expected = (smaller.layers[1](first) - smaller.layers[1].outer.bias).numpy()
    assert_allclose(run(pruned, x=inputs), expected, rtol=CLOSE, atol=CLOSE)


def test_an_embedding_is_split_only_on_request():
    model = graph_of(
        [node("Gather", ["table", "x"], ["y"])],
        {"table": spiked(300, 64)},
        x=TensorProto.INT64,
        sides={"y": 3},
    )
    ids = np.array([[3, 5, 299]])
    _, left = ro.prune(model)
    assert left.row("table")["reason"].startswith("an embedding: cut only where")
    pruned, report = ro.prune(model, ranks={"table": 64})
    onnx.checker.check_model(pruned, full_check=True)
    assert report.row("table")["kind"] == "embedding"
    assert_allclose(run(pruned, x=ids), run(model, x=ids), rtol=CLOSE, atol=CLOSE)
    assert_allclose(run(ro.merge(pruned), x=ids), run(model, x=ids), rtol=CLOSE, atol=CLOSE)


def test_recurrent_layers_are_analysed_and_can_be_truncated():
    tensors = {"W": np.stack([spiked(160, 50, s) for s in (0, 1)]), "R": normal(2, 160, 40) / 9}
    lstm = node("LSTM", ["x", "W", "R"], ["y"], hidden_size=40, direction="bidirectional")
    model = graph_of([lstm], tensors, sides={"x": 3, "y": 4})
    report = ro.analyze(model)
    assert [row["name"] for row in report.rows][:5] == [
        "W[0, i]", "W[0, o]", "W[0, f]", "W[0, c]", "W[1, i]",
    ]  # fmt: skip
    planned = ro.plan(model, gate=None)
    assert {row["reason"] for row in planned.rows} >= {"LSTM reads this weight in its own forward"}
    truncated, _ = ro.prune(model, mode="truncate", include="1, f", ranks={"W[1, f]": 3})
    whole = numpy_helper.to_array(truncated.graph.initializer[0])
    assert np.linalg.matrix_rank(whole[1, 80:120], tol=1e-4) == 3
    assert_array_equal(whole[0], tensors["W"][0])


def test_weights_in_branches_and_constants_are_split():
    W = spiked(60, 80)
    constant = node("Constant", [], ["W"], value=numpy_helper.from_array(W, "any"))
    nodes = [constant, node("Identity", ["W"], ["V"]), node("MatMul", ["x", "V"], ["t"])]
    outputs = [helper.make_tensor_value_info("t", TensorProto.FLOAT, ["a", "b"])]
    then = helper.make_graph(nodes, "then", [], outputs)
    other = helper.make_graph([node("Add", ["x", "x"], ["t"])], "other", [], outputs)
    model = graph_of(
        [node("If", ["flag"], ["y"], then_branch=then, else_branch=other)], {},
        inputs=("x", "flag"), flag=TensorProto.BOOL, sides={"flag": 0},
    )  # fmt: skip
    pruned, report = ro.prune(model, ranks={"W": 60})
    onnx.checker.check_model(pruned, full_check=True)
    inside = next(a.g for a in pruned.graph.node[0].attribute if a.name == "then_branch")
    assert [each.op_type for each in inside.node] == ["MatMul", "MatMul"]
    given = {"x": normal(3, 60), "flag": np.array(True)}
    assert_allclose(run(pruned, **given), run(model, **given), rtol=CLOSE, atol=CLOSE)
    assert_allclose(run(ro.merge(pruned), **given), run(model, **given), rtol=CLOSE, atol=CLOSE)
    assert report.row("W")["weight_error"] < CLOSE


def left_alone():
    W = spiked(64, 64)
    codes = np.zeros((64, 64), np.int8)
    scale, zero = np.float32(0.1), np.int8(0)
    nodes = [
        node("MatMul", ["x", "shared"], ["a"], name="one"),
        node("MatMul", ["a", "shared"], ["b"], name="two"),
        node("DequantizeLinear", ["codes", "scale", "zero"], ["c"]),
        node("MatMul", ["b", "c"], ["d"]),
        node("QuantizeLinear", ["fake", "scale", "zero"], ["e"]),
        node("DequantizeLinear", ["e", "scale", "zero"], ["f"]),
        node("MatMul", ["d", "f"], ["g"]),
        node("Special", ["g", "custom"], ["h"], domain="mine", name="own"),
        node("MatMul", ["h", "stack"], ["i"]),
        node("MatMul", ["h", "given"], ["j"]),
        node("MatMul", ["j", "free"], ["k"]),
        node("Add", ["i", "k"], ["y"]),
    ]
    tensors = {
        "shared": W, "codes": codes, "scale": scale, "zero": zero, "fake": W, "custom": W,
        "stack": np.stack([W, W]), "given": W, "free": W, "unused": W,
    }  # fmt: skip
    return graph_of(nodes, tensors, inputs=("x", "given"))


def test_what_is_left_says_why():
    _, report = ro.prune(left_alone(), gate=None)
    reasons = {entry["name"]: entry["reason"] for entry in report.skipped}
    assert reasons == {
        "codes": "int8 read by DequantizeLinear; analyse the model before quantising it",
        "fake": "float read by QuantizeLinear; analyse the model before quantising it",
        "custom": "read by mine.Special 'own', a custom operator",
        "stack": "read by MatMul: no layer known here",
        "unused": "no layer reads it",
    }
    assert report.row("shared")["reason"] == "tied to MatMul 'one', MatMul 'two'"
    assert report.row("given")["reason"].startswith("an input of the graph")
    assert [row["name"] for row in report.cut] == ["free"]


def test_what_was_split_is_not_split_again():
    pruned, planned = ro.prune(several(), bulk_keep=0.0, gate=None, exclude="left")
    names = sorted({row["layer"] for row in planned.cut})
    skipped = {m["name"]: m["reason"] for m in ro.analyze(pruned).skipped}
    assert sorted(skipped) == names
    assert set(skipped.values()) == {"split already: merge the model first"}
    with pytest.raises(InvalidValueError, match=r"split already|not a matrix"):
        ro.apply_plan(pruned, planned)


def test_a_plan_is_edited_in_its_file_and_applied(tmp_path):
    planned = ro.plan(several(), bulk_keep=0.0)
    planned.to_json(tmp_path / "plan.json")
    edited = Plan.from_json(tmp_path / "plan.json")
    for row in edited.rows:
        row["action"] = "keep"
    edited.row("gemm").update(action="split", rank=7)
    pruned, report = ro.apply_plan(several(), edited)
    assert [row["name"] for row in report.cut] == ["gemm"]
    assert {t.name: tuple(t.dims) for t in pruned.graph.initializer}["gemm.outer"] == (80, 7)
    edited.row("conv[0]").update(action="split", rank=7)
    with pytest.raises(InvalidValueError, match="groups of a convolution"):
        ro.apply_plan(several(), edited)
    with pytest.raises(InvalidOptionError, match="`form` is 'pivoted'"):
        ro.plan(several(), form="pivoted")


def test_names_that_are_taken_are_not_used_again():
    W = spiked(60, 80)
    nodes = [node("MatMul", ["x", "W"], ["a"]), node("Add", ["a", "W.inner"], ["y"])]
    model = graph_of(nodes, {"W": W, "W.inner": normal(80)})
    pruned, _ = ro.prune(model, ranks={"W": 60})
    x = {"x": normal(4, 60)}
    assert_allclose(run(pruned, **x), run(model, **x), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_factors_have_the_dtype_of_the_weight(dtype):
    model = graph_of([node("MatMul", ["x", "W"], ["y"])], {"W": spiked(60, 80, dtype=dtype)},
                     dtype=dtype)  # fmt: skip
    pruned, _ = ro.prune(model, ranks={"W": 60})
    assert {numpy_helper.to_array(t).dtype for t in pruned.graph.initializer} == {np.dtype(dtype)}
    x = {"x": normal(4, 60).astype(dtype)}
    close = 2e-2 if dtype == np.float16 else 1e-10
    assert_allclose(run(pruned, **x), run(model, **x), rtol=close, atol=close)


@pytest.mark.parametrize(
    "text", ["{", "[1]", '[{"name": 3}]', "[" * 100_000, '{"a": 1}'], ids=range(5)
)
def test_a_damaged_record_of_splits_is_refused(text):
    model = several()
    model.metadata_props.add(key="rmtspec.splits", value=text)
    for call in (ro.merge, ro.analyze, ro.prune):
        with pytest.raises(FileError, match=r"rmtspec.splits' is damaged"):
            call(model)


def test_a_record_that_does_not_fit_is_refused():
    pruned, _ = ro.prune(several(), ranks={"gemm": 7})
    for tensor in pruned.graph.initializer:
        if tensor.name == "gemm.inner":
            tensor.CopyFrom(numpy_helper.from_array(normal(64, 6), "gemm.inner"))
    with pytest.raises(FileError, match="do not fit"):
        ro.merge(pruned)
    del pruned.graph.node[6:8]
    with pytest.raises(FileError, match="no longer in the model"):
        ro.merge(pruned)
    assert issubclass(FileError, RmtspecError)
