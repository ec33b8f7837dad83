"""Models of others, from PyPI packages, and exports of torch models."""

import importlib.util
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnx_graphs import CLOSE, graph_of, node, spiked

from rmtspec.adapters import onnx as ro

pytestmark = pytest.mark.slow

SILERO = ("silero_vad", "data")
OCR = ("rapidocr_onnxruntime", "models")
SIDES = {"state": (2, 1, 128), "h": (1, 1, 128), "c": (1, 1, 128)}
#: File: (package and folder, shape of the first input, kinds of what is found).
FILES = {
    "silero_vad.onnx": (SILERO, (1, 512), {"conv1d": 12, "parameter": 4}),
    "silero_vad_16k_op15.onnx": (SILERO, (1, 512), {"conv1d": 6, "parameter": 2}),
    "silero_vad_16k_sequence.onnx": (SILERO, (1, 576), {"conv1d": 6, "recurrent": 8}),
    "silero_vad_half.onnx": (SILERO, (1, 512), {"conv1d": 6, "parameter": 2}),
    "silero_vad_op18_ifless.onnx": (SILERO, (1, 512), {"conv1d": 12, "linear": 4}),
    "silero_vad_openvino_16k.onnx": (SILERO, (1, 576), {"conv1d": 6, "parameter": 2}),
    "ch_PP-OCRv4_det_infer.onnx": (OCR, (1, 3, 64, 96), {"conv2d": 48, "transposed conv": 2}),
    "ch_PP-OCRv4_rec_infer.onnx": (OCR, (1, 3, 48, 192), {"conv2d": 24, "linear": 9}),
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": (OCR, (1, 3, 48, 192), {"conv2d": 42, "linear": 1}),
}


def path_of(name):
    (package, folder), _, _ = FILES[name]
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.importorskip(package)
    return Path(spec.submodule_search_locations[0], folder, name)


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(content, options)


def inputs_of(session, shape, seed=0):
    rng = np.random.default_rng(seed)
    first, *others = session.get_inputs()
    given = {first.name: 0.3 * rng.standard_normal(shape)}
    for each in others:
        given[each.name] = 0.3 * rng.standard_normal(SIDES.get(each.name, ()))
        if each.name == "sr":
            given[each.name] = np.array(16000)
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16}
    return {each.name: given[each.name].astype(types[each.type]) for each in session.get_inputs()}


def deviation(one, other):
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", FILES)
def test_a_model_of_others_at_full_rank(name):
    _, shape, kinds = FILES[name]
    file = path_of(name)
    matrices = dict(ro.weight_matrices(file))
    found = Counter(str(m.kind) for m in matrices.values() if not m.reason)
    assert found == kinds
    free = {
        n: min(m.shape)
        for n, m in matrices.items()
        if not (m.reason or m.fixed or m.unsplittable or m.kind == "embedding")
    }
    session = session_of(file)
    given = inputs_of(session, shape)
    expected = session.run(None, given)
    pruned, _ = ro.prune(file, ranks=free, gate=None)
    onnx.checker.check_model(pruned)
    assert deviation(session_of(pruned).run(None, given), expected) < CLOSE
    merged = ro.merge(pruned)
    onnx.checker.check_model(merged)
    assert deviation(session_of(merged).run(None, given), expected) < CLOSE
    smaller, report = ro.prune(file, bulk_keep=0.2, gate=None)
    assert len(report.cut) > 1
    onnx.checker.check_model(smaller)
    assert len(smaller.SerializeToString()) < len(onnx.load(file).SerializeToString())
    session_of(smaller).run(None, given)


def test_calibration_of_a_model_of_others():
    name = "ch_PP-OCRv4_rec_infer.onnx"
    file, shape = path_of(name), FILES[name][1]
    session = session_of(file)
    batches = [inputs_of(session, shape, seed) for seed in range(3)]
    expected = session.run(None, batches[0])
    known = ro.calibrate(file, batches, include="linear")
    by_data, _ = ro.prune(file, include="linear", budget=0.5, calibration=known)
    plain, _ = ro.prune(file, include="linear", budget=0.5, gate=None)
    errors = [deviation(session_of(m).run(None, batches[0]), expected) for m in (by_data, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
def test_an_export_of_a_torch_model_is_cut_as_the_model(tmp_path, dynamo):
    torch = pytest.importorskip("torch")
    from rmtspec.adapters import torch as rt

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(16, 48, 3, padding=1, groups=2), torch.nn.ReLU(),
        torch.nn.Conv2d(48, 64, 3, stride=2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(1),
        torch.nn.Linear(64, 80), torch.nn.GELU(), torch.nn.Linear(80, 70, bias=False),
    ).eval()  # fmt: skip
    x = torch.randn(2, 16, 12, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=dynamo, verbose=False)
    theirs, one = rt.prune(net, bulk_keep=0.2, gate=None, form="plain")
    ours, two = ro.prune(tmp_path / "net.onnx", bulk_keep=0.2, gate=None)
    assert len(one.cut) == len(two.cut) >= 4
    for mine, other in zip(two.rows, one.rows, strict=True):
        assert (mine["rank"], mine["action"]) == (other["rank"], other["action"])
        assert mine["weight_error"] == pytest.approx(other["weight_error"], abs=1e-6)
    with torch.no_grad():
        expected = [theirs(x).numpy()]
    session = session_of(ours)
    assert deviation(session.run(None, {session.get_inputs()[0].name: x.numpy()}), expected) < CLOSE


def test_external_data_of_over_2_gb_are_not_read_where_they_are_not_asked_for(tmp_path):
    """A table of 3 GB that takes no room on the disk."""
    import resource

    side, W = 28_000, spiked(60, 80)
    with (tmp_path / "big.bin").open("wb") as stream:
        stream.truncate(side * side * 4)
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=(side, side))
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value="big.bin")
    nodes = [node("MatMul", ["x", "W"], ["a"]), node("MatMul", ["a", "table"], ["y"])]
    file = tmp_path / "big.onnx"
    file.write_bytes(graph_of(nodes, {"W": W, "table": table}).SerializeToString())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pruned, report = ro.prune(file, include="W", ranks={"W": 5})
    assert [row["name"] for row in report.cut] == ["W"]
    assert dict(ro.weight_matrices(pruned))["table"].shape == (side, side)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB: 0.5 GiB
