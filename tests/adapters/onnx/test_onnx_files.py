"""Models in files: external data, damage, and the command."""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose
from onnx import TensorProto, numpy_helper
from onnx_graphs import CLOSE, graph_of, node, normal, run, several, spiked

from rmtspec.adapters import onnx as ro
from rmtspec.cli import main
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError

IMAGES = {"x": normal(2, 16, 12, 12)}


def external(folder, model=None):
    file = folder / "net.onnx"
    onnx.save(
        model or several(), file, save_as_external_data=True, location="net.bin", size_threshold=0
    )
    return file


def test_small_external_data_are_taken_into_the_pruned_model(tmp_path):
    pruned, _ = ro.prune(external(tmp_path), include="gemm", ranks={"gemm": 64})
    assert_allclose(run(pruned, **IMAGES), run(several(), **IMAGES), rtol=CLOSE, atol=CLOSE)


def test_large_external_data_are_mapped_and_written_beside_the_new_file(tmp_path, monkeypatch):
    monkeypatch.setattr("rmtspec.adapters.onnx._file.EMBEDDED", 1000)
    (tmp_path / "in").mkdir()
    file = external(tmp_path / "in")
    found = dict(ro.weight_matrices(file))
    pruned, report = ro.prune(file, bulk_keep=0.0, gate=None, exclude="conv")
    assert len(report.cut) == 4
    ro.save(pruned, tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.onnx", "out.onnx.data"]
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    same, _ = ro.prune(several(), bulk_keep=0.0, gate=None, exclude="conv")
    assert_allclose(run(str(tmp_path / "out.onnx"), **IMAGES), run(same, **IMAGES), rtol=CLOSE)
    again, merged = dict(ro.weight_matrices(tmp_path / "out.onnx")), ro.merge(pruned)
    assert_allclose(again["conv2"](), found["conv2"]())
    with pytest.raises(FileError, match=r"out.onnx.data exists"):
        ro.save(merged, tmp_path / "out.onnx")
    known = ro.calibrate(file, [IMAGES["x"]] * 2)
    assert "conv2" in known


def test_data_that_are_rewritten_or_shrink_stop_the_run(tmp_path):
    file = external(tmp_path)
    matrices = dict(ro.weight_matrices(file))
    kept = matrices["conv2"]()
    before = kept.copy()
    data = tmp_path / "net.bin"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    assert_allclose(kept, before)  # a mapping would end the process here
    with pytest.raises(FileError, match=r"is truncated|was rewritten"):
        matrices["gemm"]()
    data.write_bytes(content)
    with pytest.raises(FileError, match=r"net\.bin was rewritten while it was being read"):
        matrices["gemm"]()
    assert dict(ro.weight_matrices(file))["gemm"]().shape == matrices["gemm"].shape


def test_names_that_are_not_text_are_damage(tmp_path):
    model = several().SerializeToString()
    name = next(n.name for n in several().graph.node if n.name).encode()
    (tmp_path / "m.onnx").write_bytes(model.replace(name, b"\xff" * len(name)))
    with pytest.raises(FileError, match=r"names that are not UTF-8"):
        ro.analyze(tmp_path / "m.onnx")


def test_data_of_a_loaded_model_need_its_path(tmp_path):
    loaded = onnx.load(external(tmp_path), load_external_data=False)
    loaded.graph.initializer[0].external_data.add(key="basepath", value="/etc")
    with pytest.raises(InvalidValueError, match=r"Pass the path of the .onnx file"):
        ro.prune(loaded)


def test_missing_or_short_data_are_named(tmp_path):
    file = external(tmp_path)
    data = (tmp_path / "net.bin").read_bytes()
    (tmp_path / "net.bin").write_bytes(data[:-5000])
    with pytest.raises(FileError, match=r"net.bin is truncated: 'left' ends at byte"):
        ro.analyze(file)
    (tmp_path / "net.bin").unlink()
    with pytest.raises(
        FileError, match=r"net.bin, with the data of 'conv', cannot be read: no suc"
    ):
        ro.analyze(file)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"location": "../secret"}, "expected a file in the folder of the model"),
        ({"location": "/etc/passwd"}, "expected a file in the folder of the model"),
        ({"location": "C:\\data"}, "expected a file in the folder of the model"),
        ({"location": ""}, "expected a file in the folder of the model"),
        ({"location": "net.bin", "offset": "-8"}, "is truncated"),
        ({"location": "net.bin", "offset": "x"}, "no whole number"),
        ({"location": "net.bin", "length": "12"}, "has 12 bytes in .*; its shape needs 13,824"),
    ],
    ids=range(7),
)
def test_external_data_elsewhere_are_not_read(tmp_path, place, message):
    file = external(tmp_path)
    model = onnx.load(file, load_external_data=False)
    tensor = model.graph.initializer[0]
    del tensor.external_data[:]
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    file.write_bytes(model.SerializeToString())
    with pytest.raises(FileError, match=message):
        ro.analyze(file)


def test_files_that_are_no_models_are_refused(tmp_path):
    file = tmp_path / "a.onnx"
    whole = several().SerializeToString()
    rng = np.random.default_rng(0)
    contents = [b"", b"\x80\x04.", b"PK\x03\x04", whole[:-9], whole[: len(whole) // 3]]
    contents += [rng.bytes(300) for _ in range(20)]
    contents.append(b"\x3a\xff\xff\xff\xff\x0f" + b"\x00" * 20)  # a graph of 4 GB, so it says
    deep = b""
    for _ in range(2000):
        deep = b"\x3a" + _varint(len(deep)) + deep
    for content in [*contents, deep]:
        file.write_bytes(content)
        with pytest.raises(FileError, match=r"a\.onnx is not an ONNX model"):
            ro.analyze(file)
    with pytest.raises(FileError, match="cannot be read: no such file"):
        ro.prune(tmp_path / "none.onnx")
    with pytest.raises(FileError, match="cannot be read: is a directory"):
        ro.prune(tmp_path)
    with pytest.raises(InvalidTypeError, match=r"`model` is a dict; expected an onnx.ModelProto"):
        ro.prune({})


def _varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize("dims", [(1 << 40, 1 << 20), (-3, 4), (60, 81)], ids=range(3))
def test_a_shape_that_is_not_that_of_the_data_is_told(dims):
    tensor = numpy_helper.from_array(spiked(60, 80), "W")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    nodes = [node("MatMul", ["x", "V"], ["a"]), node("MatMul", ["a", "W"], ["y"])]
    report = ro.analyze(graph_of(nodes, {"V": spiked(60, 60), "W": tensor}))
    assert report.skipped[0]["reason"].startswith("damaged: 19,200 bytes for the shape")


def test_numbers_not_held_as_bytes_are_read():
    W = spiked(60, 80)
    tensor = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=W.shape, float_data=W.ravel())
    model = graph_of([node("MatMul", ["x", "W"], ["y"])], {"W": tensor})
    pruned, _ = ro.prune(model, ranks={"W": 60})
    x = {"x": normal(4, 60)}
    assert_allclose(run(pruned, **x), run(model, **x), rtol=CLOSE, atol=CLOSE)


def command(*words):
    return CliRunner().invoke(main, list(map(str, words)))


def test_the_command_prunes_and_merges_a_file(tmp_path):
    file, out, back = (tmp_path / f"{n}.onnx" for n in ("net", "out", "back"))
    ro.save(several(), file)
    told = command("analyze", file, "--out", tmp_path / "r.json")
    assert told.exit_code == 0, told.output
    assert len(json.loads((tmp_path / "r.json").read_text())["rows"]) == 7
    told = command("prune", file, out, "--bulk-keep", 0, "--gate", "none", "--rank", "gemm=5")
    assert told.exit_code == 0, told.output
    assert "Written to" in told.output
    pruned, _ = ro.prune(file, bulk_keep=0.0, gate=None, ranks={"gemm": 5})
    assert onnx.load(out) == pruned
    assert command("merge", out, back).exit_code == 0
    assert_allclose(run(str(back), **IMAGES), run(str(out), **IMAGES), rtol=CLOSE, atol=CLOSE)


def test_the_command_takes_a_plan_and_a_calibration(tmp_path):
    file, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    ro.save(several(), file)
    plan, known = tmp_path / "plan.json", tmp_path / "c.safetensors"
    told = command("prune", file, "--dry-run", "--rank", "gemm=5", "--report", plan)
    assert told.exit_code == 0, told.output
    assert "Nothing written" in told.output
    ro.calibrate(file, [IMAGES["x"]] * 2).save(known)
    told = command("prune", file, out, "--plan", plan, "--calibration", known)
    assert told.exit_code == 0, told.output
    assert {t.name for t in onnx.load(out).graph.initializer} >= {"gemm.inner", "gemm.outer"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("analyze", "net.onnx", "--resume", "j"), "--resume does not work on .onnx files"),
        (("prune", "net.onnx", "folder"), "expected the name of a new .onnx file"),
        (("prune", "net.onnx", "net.onnx"), "exists. Name another file"),
        (("merge", "net.onnx", "net.onnx"), "exists. Name another file"),
        (("prune", "none.onnx", "out.onnx"), "no such file"),
    ],
    ids=range(5),
)
def test_the_command_says_what_is_wrong(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    ro.save(several(), "net.onnx")
    told = command(*words)
    assert told.exit_code in (1, 2)
    assert message in " ".join(told.output.replace("│", " ").split())
