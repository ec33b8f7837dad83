"""The command as a person uses it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import rmtspec
from rmtspec import ensembles
from rmtspec.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.npz"
    broken = np.ones((20, 20))
    broken[0, 0] = np.inf
    np.savez(
        path,
        **{
            "layer1.weight": ensembles.spiked(200, 100, [4.0, 8.0], rng=0),
            "layer2.weight": ensembles.wishart(80, 60, rng=0),
            "layer2.bias": np.ones(4),
            "broken": broken,
        },
    )
    return path


def test_analyze(weights, tmp_path):
    out = tmp_path / "r.json"
    result = run("analyze", weights, "--out", out, "--beta", 0.01)
    assert result.exit_code == 0, result.output
    assert "layer1.weight" in result.output
    data = json.loads(out.read_text())
    assert [row["name"] for row in data["rows"]] == ["layer1.weight", "layer2.weight"]
    assert data["rows"][0]["n_spikes"] == 2
    assert {item["name"] for item in data["skipped"]} == {"layer2.bias", "broken"}


def test_include_and_exclude(weights):
    result = run("analyze", weights, "--include", r"layer\d", "--exclude", "layer2")
    assert result.exit_code == 0
    assert "1 analysed, 3 skipped" in result.output
    assert "skipped 1 (layer2.weight): in --exclude layer2" in result.output


def test_options_reach_the_analysis(weights, tmp_path):
    out = tmp_path / "r.csv"
    options = ["--bulk-keep", 0.45, "--no-refine", "--quantiles", "paper", "--jobs", 2]
    run("analyze", weights, "--out", out, *options)
    assert "refined" not in out.read_text()
    assert f",{2 + int(0.45 * 98)}," in out.read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze"],
        ["analyze", "FILE", "--alpha", "0.7"],
        ["analyze", "FILE", "--bulk-keep", "45"],
        ["analyze", "FILE", "--fit-cutoff", "2"],
        ["analyze", "FILE", "--quantiles", "upper"],
        ["analyze", "FILE", "--jobs", "0"],
        ["analyze", "FILE", "--include", "("],
        ["analyze", "FILE", "--out", "report.xlsx"],
        ["reproduce", "fig-9"],
        ["reproduce"],
        ["pruned"],
    ],
)
def test_wrong_usage_is_2(weights, arguments):
    result = run(*[weights if argument == "FILE" else argument for argument in arguments])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_unusable_input_is_1_and_keeps_the_old_report(tmp_path):
    out = tmp_path / "r.html"
    out.write_text("old")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    np.savez(tmp_path / "vectors.npz", bias=np.ones(3))
    for name, words in [
        ("missing.npy", "does not exist"),
        ("cut.npy", "damaged header"),
        ("vectors.npz", "a vector has no spectrum"),
    ]:
        result = run("analyze", tmp_path / name, "--out", out)
        assert result.exit_code == 1
        assert words in result.output
        assert "Traceback" not in result.output
        assert out.read_text() == "old"


def test_unusable_out_is_2_before_any_work(weights, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    for out, words in [
        (tmp_path / "missing" / "r.csv", "does not exist"),
        (tmp_path / "file" / "r.csv", "is a file"),
        (tmp_path / "folder.csv", "is a folder"),
    ]:
        result = run("analyze", weights, "--out", out)
        assert result.exit_code == 2
        assert words in result.output
        assert "layer1" not in result.output


def test_trained_weights(data_folder):
    result = run("analyze", data_folder / "models" / "resnet20-cifar10.safetensors")
    assert result.exit_code == 0
    assert "layer3.2.conv2.weight" in result.output
    assert "skipped 77 (bn1.bias" in result.output


def test_reproduce(tmp_path):
    result = run("reproduce", "fig-3a", "--n", 120, "--out", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    written = {path.suffix for path in (tmp_path / "figures").iterdir()}
    assert written == {".png", ".svg", ".json"}
    assert run("reproduce", "fig-2", "--out", tmp_path / "no" / "where").exit_code == 2


def test_demo(tmp_path):
    pytest.importorskip("sklearn")
    result = run("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    drawn = {f"{n}-{k}.png" for n in ("example-3.3", "digits") for k in ("esd", "cdf", "scree")}
    found = {path.name for path in (tmp_path / "demo").iterdir()}
    assert found == {*drawn, "report.json", "report.html"}
    assert "noise variance  1.00798" in result.output
    assert run("demo", "--out", tmp_path / "no" / "where").exit_code == 2


def test_demo_without_scikit_learn(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = run("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 1
    assert "rmtspec[demo]" in result.output


def test_in_a_fresh_process():
    done = subprocess.run(
        [sys.executable, "-m", "rmtspec.cli", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"rmtspec, version {rmtspec.__version__}")
