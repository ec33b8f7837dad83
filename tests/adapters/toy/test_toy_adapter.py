"""The seam is enough: a whole adapter for a toy framework, written against it alone."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_adapter as toy
from numpy.testing import assert_allclose, assert_array_equal
from toy_framework import Dense, Net

import rmtspec
from rmtspec import adapting
from rmtspec.adapting import Manifest, NothingToAnalyzeError, Plan
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError

#: Rounding of the products, float64 and sums of at most 120 terms.
EXACT = 1e-10
SHAPES = {"layers.0": (120, 80), "layers.1": (60, 120), "layers.2": (10, 60)}


def small_net(planted=(4.0, 30.0), dtype=np.float64, seed=0):
    """Three layers: a planted signal, noise, and one too small to be judged."""
    rng = np.random.default_rng(seed)
    first = rmtspec.ensembles.spiked(*SHAPES["layers.0"], planted, rng=rng)
    others = [rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in (*SHAPES.values(),)[1:]]
    weights = [W.astype(dtype) for W in (first, *others)]
    layers = [Dense(W, rng.standard_normal(len(W)).astype(dtype)) for W in weights]
    return Net(dict(zip(SHAPES, layers, strict=True)))


def inputs(net):
    return np.random.default_rng(1).standard_normal((7, net.layers["layers.0"].weight.shape[1]))


def cut(report):
    return {row["name"]: row["action"] for row in report.rows if row["action"] != "keep"}


def test_it_is_written_against_the_seam_alone():
    allowed = {"rmtspec", "rmtspec.adapting", "rmtspec.errors", "toy_framework", "numpy"}
    tree = ast.parse(Path(toy.__file__).read_text())
    imported = {"rmtspec.adapting"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level
            imported.add(node.module)
            if node.module == "rmtspec":
                assert [alias.name for alias in node.names] == ["adapting"]
    ours = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert ours <= allowed | {"numpy.typing"}
    assert {name for name in ours if name.startswith("rmtspec.")} == {
        "rmtspec.adapting",
        "rmtspec.errors",
    }


def test_what_it_calls_is_public_in_the_seam():
    tree = ast.parse(Path(toy.__file__).read_text())
    named = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "adapting"
    }
    named |= {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "rmtspec.adapting"
        for alias in node.names
    }
    assert len(named) > 8
    assert named <= set(adapting.__all__)


def test_every_public_name_of_the_seam_is_there():
    assert all(hasattr(adapting, name) for name in adapting.__all__)


def test_its_report_is_that_of_the_core():
    net = small_net()
    report = toy.analyze(net, bulk_keep=0.2)
    weights = {name: layer.weight for name, layer in net.layers.items()}
    same = rmtspec.analyze_many(weights, bulk_keep=0.2)
    assert [row["kind"] for row in report.rows] == ["linear"] * 3
    for row, other in zip(report.rows, same.rows, strict=True):
        for moving in ("kind", "seconds"):
            row.pop(moving), other.pop(moving)
        assert row == other
    assert report.settings == same.settings


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_split_at_full_rank_changes_no_output(dtype):
    net = small_net(dtype=dtype)
    ranks = {name: min(shape) for name, shape in SHAPES.items()}
    pruned, report = toy.prune(net, ranks=ranks)
    assert cut(report) == dict.fromkeys(SHAPES, "split")
    tolerance = EXACT if dtype == np.float64 else 1e-3
    assert_allclose(pruned(inputs(net)), net(inputs(net)), rtol=tolerance, atol=tolerance)
    assert all(layer.outer.weight.dtype == dtype for layer in pruned.layers.values())
    assert all(row["weight_error"] < tolerance for row in report.rows)


def test_planted_signal_is_found_and_kept():
    net = small_net(planted=[6.0, 9.0, 30.0])
    pruned, report = toy.prune(net, bulk_keep=0.0, beta=0.01)  # noise passes for a spike in 1 %
    assert cut(report) == {"layers.0": "split"}
    assert report.row("layers.0")["rank"] == 3
    assert report.row("layers.1")["reason"] == "no signal found"
    assert report.row("layers.2")["reason"] == "smaller side 10 is below 16"
    left, values, right = np.linalg.svd(net.layers["layers.0"].weight, full_matrices=False)
    truncated = left[:, :3] * values[:3] @ right[:3]
    low = Net(net.layers | {"layers.0": Dense(truncated, net.layers["layers.0"].bias)})
    assert_allclose(pruned(inputs(net)), low(inputs(net)), rtol=EXACT, atol=EXACT)
    error = np.sqrt(np.sum(values[3:] ** 2) / np.sum(values**2))
    assert report.row("layers.0")["weight_error"] == pytest.approx(error, rel=EXACT)
    # The net that was given, and what was not cut, are as they were.
    assert_array_equal(
        net.layers["layers.0"].weight, small_net([6.0, 9.0, 30.0]).arrays()["layers.0.weight"]
    )
    assert pruned.layers["layers.1"] is net.layers["layers.1"]


def test_truncation_gives_the_same_outputs_as_the_split():
    net = small_net()
    split, _ = toy.prune(net, bulk_keep=0.2)
    truncated, report = toy.prune(net, bulk_keep=0.2, mode="truncate")
    assert set(cut(report).values()) == {"truncate"}
    assert all(isinstance(layer, Dense) for layer in truncated.layers.values())
    assert (
        np.linalg.matrix_rank(truncated.layers["layers.0"].weight) == report.row("layers.0")["rank"]
    )
    only = toy.merge(split).layers["layers.0"].weight
    assert_allclose(truncated.layers["layers.0"].weight, only, rtol=EXACT, atol=EXACT)


def test_merging_gives_the_products():
    net = small_net()
    pruned, _ = toy.prune(net, ranks={"layers.0": 5, "layers.1": 7})
    merged = toy.merge(pruned)
    assert all(isinstance(layer, Dense) for layer in merged.layers.values())
    factors = pruned.layers["layers.1"]
    assert_array_equal(
        merged.layers["layers.1"].weight, factors.outer.weight @ factors.inner.weight
    )
    assert_allclose(merged(inputs(net)), pruned(inputs(net)), rtol=EXACT, atol=EXACT)
    assert toy.merge(net).layers == net.layers


def test_a_plan_is_edited_in_its_file_and_applied(tmp_path):
    net = small_net()
    planned = toy.plan(net, bulk_keep=0.2)
    planned.to_json(tmp_path / "plan.json")
    edited = Plan.from_json(tmp_path / "plan.json")
    assert [row["name"] for row in edited.cut] == ["layers.0", "layers.1"]
    edited.row("layers.0")["rank"] = 4
    edited.row("layers.1")["action"] = "keep"
    edited.row("layers.2").update(action="truncate", rank=2)
    pruned, report = toy.apply_plan(net, edited)
    assert cut(report) == {"layers.0": "split", "layers.2": "truncate"}
    assert pruned.layers["layers.0"].inner.weight.shape == (4, 80)
    assert pruned.layers["layers.1"] is net.layers["layers.1"]
    assert np.linalg.matrix_rank(pruned.layers["layers.2"].weight) == 2
    assert report.row("layers.0")["parameters_after"] == 4 * 200
    assert report.row("layers.1")["reason"] == "kept by the plan"
    assert edited.row("layers.0")["weight_error"] != report.row("layers.0")["weight_error"]


def test_a_plan_of_another_net_is_refused():
    planned = toy.plan(small_net())
    with pytest.raises(
        InvalidValueError, match=r"'layers.0', which is (no|not a) matrix of this net"
    ):
        toy.apply_plan(Net({"fc": Dense(np.eye(20))}), planned)
    with pytest.raises(InvalidValueError, match="120 x 80; in this net it is 80 x 120"):
        toy.apply_plan(Net({"layers.0": Dense(np.zeros((80, 120)))}), planned)
    with pytest.raises(InvalidTypeError, match="`plan` is a dict"):
        toy.apply_plan(small_net(), {})


def test_what_was_split_is_not_split_again():
    net = small_net()
    pruned, planned = toy.prune(net, bulk_keep=0.2)
    again = toy.analyze(pruned)
    assert [row["name"] for row in again.rows] == ["layers.2"]
    assert [entry["name"] for entry in again.skipped] == ["layers.0", "layers.1"]
    assert {entry["reason"] for entry in again.skipped} == {"split already: merge the net first"}
    with pytest.raises(InvalidValueError, match="must stay as it is: split already"):
        toy.apply_plan(pruned, planned)
    with pytest.raises(InvalidValueError, match="was skipped: split already"):
        toy.prune(pruned, ranks={"layers.0": 2})


def test_include_and_exclude_choose_layers():
    net = small_net()
    report = toy.analyze(net, exclude="0")
    assert [row["name"] for row in report.rows] == ["layers.1", "layers.2"]
    assert report.skipped == [{"name": "layers.0", "reason": "in `exclude`"}]
    _, report = toy.prune(net, bulk_keep=0.2, include=r"\.2$")
    assert cut(report) == {}  # whether a bulk so small is noise cannot be told
    assert report.row("layers.2")["reason"].startswith("cannot tell: let data decide")
    _, report = toy.prune(net, bulk_keep=0.2, include=r"\.2$", gate=None)
    assert cut(report) == {"layers.2": "split"}  # small, and named by the user
    wide = toy.analyze(net, include=lambda name, layer: len(layer.weight) > 100)
    assert [row["name"] for row in wide.rows] == ["layers.0"]


def test_patterns_that_meet_nothing_are_told():
    report = toy.analyze(small_net(), include=["layers.0", "attention"])
    assert {
        "name": "include='attention'",
        "reason": "this pattern meets no matrix",
    } in report.skipped
    with pytest.raises(NothingToAnalyzeError) as caught:
        toy.prune(small_net(), include="attention")
    assert str(caught.value).splitlines() == [
        "No weight matrix of this net is left to analyse; no name matches include='attention'.",
        "  3 (layers.0, layers.1, layers.2): not in `include`",
    ]
    assert len(caught.value.skipped) == 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ranks": {"layers.9": 3}}, InvalidValueError, "Did you mean .*'layers.0'"),
        ({"ranks": {"layers.0": 81}}, InvalidValueError, "from 1 to 80"),
        ({"ranks": ["layers.0"]}, InvalidTypeError, "`ranks` is a list"),
        ({"bulk_kept": 0.5}, InvalidTypeError, "`bulk_kept` is (no|not an) option.*bulk_keep"),
        ({"plan": None}, InvalidTypeError, "`plan` is (no|not an) option"),
        ({"more": {}}, InvalidTypeError, "`more` is (no|not an) option"),
        ({"include": "("}, InvalidValueError, "regular expression"),
        ({"beta": 2.0}, InvalidValueError, "`beta` is 2.0"),
        ({"budget": 0.5, "rule": "energy"}, InvalidValueError, "both given"),
    ],
)
def test_wrong_options_teach(options, error, message):
    net = small_net()
    with pytest.raises(error, match=message):
        toy.prune(net, **options)


def test_a_budget_is_kept():
    net = small_net()
    pruned, report = toy.prune(net, budget=0.5, exclude="2")
    before = sum(layer.weight.size for name, layer in net.layers.items() if name != "layers.2")
    assert report.parameters_before == before
    assert 0.4 * before < report.parameters_after <= 0.5 * before
    held = sum(array.size for name, array in pruned.arrays().items() if "bias" not in name)
    assert held == report.parameters_after + net.layers["layers.2"].weight.size
    with pytest.raises(InvalidValueError, match="rank 1 everywhere needs"):
        toy.plan(net, budget=0.001)


def test_a_saved_net_is_the_same_when_loaded(tmp_path):
    pruned, _ = toy.prune(small_net(dtype=np.float32), bulk_keep=0.2)
    toy.save(pruned, tmp_path / "small")
    loaded = toy.load(small_net(dtype=np.float32, seed=5), tmp_path / "small")
    assert list(loaded.layers) == list(pruned.layers)
    assert loaded.arrays().keys() == pruned.arrays().keys()
    for name, array in pruned.arrays().items():
        assert loaded.arrays()[name].dtype == np.float32
        assert_array_equal(loaded.arrays()[name], array)
    x = inputs(small_net())
    assert_array_equal(loaded(x), pruned(x))


def test_the_manifest_says_what_was_split(tmp_path):
    pruned, _ = toy.prune(small_net(), ranks={"layers.0": 5}, include="0")
    toy.save(pruned, tmp_path / "small")
    manifest = Manifest.read(tmp_path / "small")
    assert [(e.name, e.kind, e.rank, e.shape) for e in manifest.splits] == [
        ("layers.0", "linear", 5, (120, 80))
    ]
    assert set(manifest.versions) >= {"rmtspec", "numpy", "python"}
    assert manifest.tied == {}


def test_damage_is_detected(tmp_path):
    pruned, _ = toy.prune(small_net(), ranks={"layers.0": 5})
    toy.save(pruned, tmp_path / "small")
    file = tmp_path / "small" / "rmtspec.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(FileError, match="has changed since it was saved"):
        toy.load(small_net(), tmp_path / "small")
    file.write_bytes(content[:-100])
    with pytest.raises(FileError, match="truncated"):
        toy.load(small_net(), tmp_path / "small")
    with pytest.raises(FileError, match="not empty"):
        toy.save(pruned, tmp_path / "small")


def test_a_net_of_other_layers_is_refused(tmp_path):
    pruned, _ = toy.prune(small_net(), ranks={"layers.0": 5})
    toy.save(pruned, tmp_path / "small")
    with pytest.raises(InvalidValueError, match=r"'layers.0' was split and is \(120, 80\)"):
        toy.load(Net({"layers.1": Dense(np.zeros((60, 120)))}), tmp_path / "small")
    fewer = small_net()
    del fewer.layers["layers.2"]
    with pytest.raises(InvalidValueError, match="holds other arrays than the net"):
        toy.load(fewer, tmp_path / "small")


def test_its_folder_loads_onto_a_torch_model_of_the_same_names(tmp_path):
    torch = pytest.importorskip("torch")
    from rmtspec.adapters import torch as rt

    pruned, report = toy.prune(small_net(dtype=np.float32), bulk_keep=0.2)
    toy.save(pruned, tmp_path / "small")
    model = rt.load(rt.MLP([80, 120, 60, 10]), tmp_path / "small")
    assert model.layers[0].rank == report.row("layers.0")["rank"]
    x = inputs(small_net()).astype(np.float32)
    with torch.no_grad():
        outputs = model(torch.from_numpy(x)).numpy()
    assert_allclose(outputs, pruned(x), rtol=1e-4, atol=1e-4)  # sums of 120 terms in float32
