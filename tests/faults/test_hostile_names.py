"""Names and texts of a stranger's files: on a terminal, in a spreadsheet, and in time."""

import csv
import io
import json
import time

import numpy as np
import pytest
import torch
from checkpoints import planted, write_safetensors
from click.testing import CliRunner

import rmtspec
from rmtspec import cli
from rmtspec.adapters import torch as rt
from rmtspec.checkpoint import matrices_in
from rmtspec.checkpoint.fused import _whole_model
from rmtspec.checkpoint.grouping import MOST_EXPERTS
from rmtspec.checkpoint.manifest import Manifest, SplitEntry
from rmtspec.report import Report
from rmtspec.terms import Why

#: Colours, a title of the window, a new line, a bell, the other direction of text, half a pair.
HOSTILE = "\x1b[31mred\x1b]0;title\x07\nnext\r\u202eback\x9b2J"


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], catch_exceptions=False)


def check(done):
    """No line has what a terminal obeys, and none begins in a name."""
    for output in (done.stdout, done.stderr):
        assert all(c.isprintable() or c == "\n" for c in output), repr(output)
        assert not any(line.startswith("next") for line in output.splitlines())
    return done


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / f"m{HOSTILE}"
    folder.mkdir()
    tensors = {f"{HOSTILE}.weight": planted(), f"{HOSTILE}.bias": planted()[0]}
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / f"{HOSTILE}.txt").write_text("x")
    (folder / f"{HOSTILE}.bin").write_text("x")
    return folder


def test_every_line_of_every_command(folder, tmp_path):
    out, plan = tmp_path / f"o{HOSTILE}", tmp_path / f"p{HOSTILE}.json"
    for words, code in (
        (["analyze", folder, "--out", plan], 0),
        (["analyze", folder, "--dry-run"], 0),
        (["analyze", folder, "--include", HOSTILE], 1),
        (["analyze", folder, folder], 2),
        (["analyze", folder, "--out", plan, "--resume", plan], 2),
        (["analyze", folder, "--resume", folder / f"{HOSTILE}.txt"], 1),
        (["analyze", folder, f"--{HOSTILE}"], 2),
        (["analyze", folder / HOSTILE], 1),
        (["analyze", folder, "--rule", HOSTILE], 2),
        ([HOSTILE], 2),
        ([f"--{HOSTILE}"], 2),
        (["prune", folder, "--dry-run", "--gate", "none", "--report", plan], 0),
        (["prune", folder, out, "--rank", f"x{HOSTILE}=3"], 2),
        (["prune", folder, out, "--plan", folder / f"{HOSTILE}.txt"], 1),
        (["prune", folder, out, "--gate", "none", "--report", folder / "x.json"], 0),
        (["prune", folder, out], 2),
        (["merge", out, tmp_path / f"d{HOSTILE}"], 0),
        (["merge", folder, tmp_path / "e"], 1),
        (["compare", folder, folder], 0),
        (["compare", folder, tmp_path / HOSTILE], 1),
        (["extract-lora", folder, folder, tmp_path / f"l{HOSTILE}"], 1),
        (["resize-lora", folder, tmp_path / f"l{HOSTILE}"], 1),
        (["prune", tmp_path / f"{HOSTILE}.onnx", out], 2),
        (["reproduce", "fig-2", "--n", "64", "--out", tmp_path / f"f{HOSTILE}"], 0),
    ):
        assert check(run(*words)).exit_code == code, words


def test_what_a_plan_says(folder, tmp_path):
    plan = tmp_path / "plan.json"
    run("prune", folder, "--dry-run", "--gate", "none", "--report", plan)
    content = json.loads(plan.read_text())
    for key in ("action", "verdict", "kind", "reason", "layer", "form"):
        changed = json.loads(json.dumps(content))
        changed["rows"][0][key] = HOSTILE
        plan.write_text(json.dumps(changed))
        check(run("prune", folder, tmp_path / "out", "--plan", plan, "--dry-run"))
        report = Report.from_json(plan)
        assert all(c.isprintable() or c == "\n" for c in repr(report))
        assert not any(line.startswith("next") for line in repr(report).splitlines())


def test_results_are_shown_in_one_piece_of_text():
    for shown in (
        rmtspec.analyze(planted(), name=HOSTILE),
        rmtspec.analyze_many({HOSTILE: planted()}),
    ):
        assert all(c.isprintable() or c == "\n" for c in repr(shown))
        assert not any(line.startswith("next") for line in repr(shown).splitlines())


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"), ("-x", "'-x"), ("@SUM(A1)", "'@SUM(A1)"), ("\t=1", "'\t=1"),
        ("-1.5", "-1.5"), ("+7", "+7"), ("fc=weight", "fc=weight"), ("", ""),
    ],
)  # fmt: skip
def test_cells_of_a_spreadsheet(name, cell):
    report = rmtspec.analyze_many({name: planted()})
    report.rows[0]["lower_edge"] = -1.5
    (line,) = csv.DictReader(io.StringIO(report.to_csv()))
    assert (line["name"], line["lower_edge"]) == (cell, "-1.5")


def seconds(call, *args):
    """Return how long a call took, the better of two, and what it returned."""
    best = float("inf")
    for _ in range(2):
        began = time.process_time()
        found = call(*args)
        best = min(best, time.process_time() - began)
    return best, found


def test_a_long_model_type():
    for own in ("_text" * 20_000 + "x", "_text" * 20_000, "text" * 25_000, "_" * 100_000):
        took, found = seconds(_whole_model, own)
        assert took < 1.0
        assert own.startswith(found)
    assert _whole_model("qwen2_vl_text_model") == "qwen2_vl"
    assert _whole_model("text") == "text"


CLASSES = {"id2label": {str(i): "x" for i in range(21_843)}}


@pytest.mark.parametrize("config", [
    {f"s{i}": {"model_type": "gpt2", "hidden_size": 20} for i in range(20_000)},
    {"model_type": "gpt2", "n_embd": 20, "n_head": 4, **CLASSES},
])  # fmt: skip
def test_a_config_of_many_sections(tmp_path, config):
    tensors = {f"h.{i}.attn.c_attn.weight": np.ones((20, 60), "float32") for i in range(300)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    took, listed = seconds(matrices_in, tmp_path)
    assert took < 2.0
    known = "id2label" in config
    assert len(listed.matrices) == (900 if known else 300)


def test_a_manifest_of_many_splits(tmp_path):
    entries = tuple(SplitEntry(f"l.{i}", "tensor", rank=1, shape=(3, 4)) for i in range(20_000))
    Manifest(entries, {}, {}, {}).write(tmp_path)
    took, found = seconds(Manifest.read, tmp_path)
    assert took < 2.0
    assert len(found.splits) == 20_000


@pytest.mark.parametrize("reason", ["; " * 50_000, "tied to " * 20_000, "in " * 3_000, "; a" * 29])
def test_a_long_reason(reason):
    took, found = seconds(Why.of, reason)
    assert took < 1.0
    assert found


def test_a_stack_of_very_many_is_one_row(tmp_path):
    tensors = {
        "experts.weight": np.ones((MOST_EXPERTS + 1, 2, 2), "float32"),
        "moe.w": np.ones((MOST_EXPERTS, 2, 2), "float32"),
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    took, listed = seconds(matrices_in, tmp_path)
    assert took < 2.0
    assert len(listed.matrices) == MOST_EXPERTS
    (skipped,) = listed.skipped
    assert skipped["name"] == "experts.weight"
    assert Why.of(skipped["reason"]) == (Why.TOO_MANY_PARTS,)


def test_of_a_model_too():
    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(MOST_EXPERTS + 1, 20, 20))

    ((name, matrix),) = rt.weight_matrices(torch.nn.Sequential(Experts()))
    assert (name, Why.of(matrix.reason)) == ("0", (Why.TOO_MANY_PARTS,))
