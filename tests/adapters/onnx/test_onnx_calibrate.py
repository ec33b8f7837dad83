"""Calibration under onnxruntime."""

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose
from onnx_graphs import graph_of, node, normal, run, several, spiked

from rmtspec.adapters import onnx as ro
from rmtspec.errors import InvalidTypeError, InvalidValueError


def low_rank_batches(count=6):
    rng = np.random.default_rng(3)
    basis = rng.standard_normal((12, 60))
    return [(rng.standard_normal((50, 12)) @ basis).astype(np.float32) for _ in range(count)]


def dense():
    nodes = [node("MatMul", ["x", "W"], ["a"]), node("Relu", ["a"], ["b"]),
             node("Gemm", ["b", "V"], ["y"], transB=1)]  # fmt: skip
    return graph_of(nodes, {"W": spiked(60, 80), "V": spiked(70, 80, 1)})


def test_the_moments_are_those_of_the_inputs():
    batches = low_rank_batches()
    known = ro.calibrate(dense(), iter(batches))
    held, seen = batches[1], np.concatenate([batches[0], *batches[2:]])
    found = known.weights("W", (80, 60))
    assert_allclose(found.input_moment, seen.T.astype(float) @ seen / len(seen), rtol=1e-6)
    assert_allclose(found.held_out, held.T @ held / len(held), rtol=1e-3, atol=1e-3)
    hidden = np.maximum(seen @ spiked(60, 80), 0).astype(float)
    found = known.weights("V", (70, 80))
    assert_allclose(found.input_moment, hidden.T @ hidden / len(hidden), rtol=1e-3, atol=1e-4)
    assert known.objective == "outputs"


def test_a_convolution_multiplies_its_patches():
    """The outputs are what the matrix makes of the patches."""
    model = several()
    x = normal(3, 16, 12, 12)
    known = ro.calibrate(model, [x], holdout=0)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for layer, out in (("conv", "a"), ("conv2", "b")):
        del watched.graph.output[:]
        watched.graph.output.add(name=out)
        values = run(watched, x=x).astype(float)
        matrices = [m() for _, m in ro.weight_matrices(model) if m.layer == layer]
        bias = 0.0
        if layer == "conv2":
            bias = onnx.numpy_helper.to_array(model.graph.initializer[2])[:, None, None]
        square = (values - bias) ** 2
        moments = known.input_moments[known.inputs[layer]]
        total = sum(np.trace(W @ C @ W.T) for W, C in zip(matrices, moments, strict=True))
        assert total == pytest.approx(square.sum() / (square.size / square.shape[1]), rel=1e-4)


def test_inputs_of_low_rank_are_kept_exactly():
    model, batches = dense(), low_rank_batches()
    plain, without = ro.prune(model, ranks={"W": 12})
    pruned, report = ro.prune(model, ranks={"W": 12}, calibration=batches)
    x = {"x": batches[0]}
    wanted = run(model, **x)
    error = np.linalg.norm(run(pruned, **x) - wanted) / np.linalg.norm(wanted)
    assert error < 0.02 < np.linalg.norm(run(plain, **x) - wanted) / np.linalg.norm(wanted)
    assert report.row("W")["output_error"] < 0.02
    assert report.row("W")["weight_error"] > without.row("W")["weight_error"]


def test_a_budget_goes_by_the_data():
    model, batches = dense(), low_rank_batches()
    pruned, report = ro.prune(model, budget=0.5, calibration=batches)
    assert report.parameters_after <= 0.5 * report.parameters_before
    plain, _ = ro.prune(model, budget=0.5)
    x = {"x": batches[0]}
    wanted = run(model, **x)
    assert np.linalg.norm(run(pruned, **x) - wanted) < np.linalg.norm(run(plain, **x) - wanted)


def test_a_saved_calibration_serves_again(tmp_path):
    known = ro.calibrate(dense(), low_rank_batches())
    known.save(tmp_path / "c.safetensors")
    read = ro.Calibration.load(tmp_path / "c.safetensors")
    one, _ = ro.prune(dense(), ranks={"W": 12}, calibration=known)
    two, _ = ro.prune(dense(), ranks={"W": 12}, calibration=read)
    assert one == two


def test_the_moments_are_those_of_the_torch_adapter():
    torch = pytest.importorskip("torch")
    from rmtspec.adapters import torch as rt

    net = torch.nn.Conv1d(32, 24, 5, stride=2, padding=3, dilation=2, groups=4, bias=False)
    conv = node("Conv", ["x", "W"], ["y"], group=4, pads=[3, 3], strides=[2], dilations=[2])
    model = graph_of([conv], {"W": net.weight.detach().numpy()}, sides={"x": 3, "y": 3})
    batches = [normal(2, 32, 40, seed=s) for s in range(3)]
    mine = ro.calibrate(model, batches, holdout=0)
    theirs = rt.calibrate(net, map(torch.from_numpy, batches), holdout=0, objective="outputs")
    for group in range(4):
        one = mine.weights("W", (6, 40), group).input_moment
        (layer,) = theirs.inputs
        assert_allclose(one, theirs.weights(layer, (6, 40), group).input_moment, rtol=1e-10)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], InvalidValueError, "`batches` is empty"),
        ([[1, 2]], InvalidTypeError, "by the names of the inputs: x"),
        ([{"z": normal(2, 60)}], InvalidValueError, "onnxruntime cannot run a batch"),
        ([normal(2, 59)], InvalidValueError, "onnxruntime cannot run a batch"),
        ([normal(2, 60) * np.nan], InvalidValueError, "not finite"),
    ],
    ids=range(5),
)
def test_batches_that_cannot_be_used(batches, error, message):
    with pytest.raises(error, match=message):
        ro.calibrate(dense(), batches, holdout=0)


def test_a_custom_operator_cannot_be_run_and_nothing_is_loaded():
    nodes = [node("MatMul", ["x", "W"], ["a"]), node("Special", ["a"], ["b"], domain="mine"),
             node("MatMul", ["b", "V"], ["y"])]  # fmt: skip
    model = graph_of(nodes, {"W": spiked(60, 80), "V": spiked(80, 60)})
    _, report = ro.prune(model, bulk_keep=0.0, gate=None)
    assert [row["name"] for row in report.cut] == ["W", "V"]
    with pytest.raises(InvalidValueError, match="onnxruntime cannot run this model"):
        ro.calibrate(model, [normal(2, 60)])
