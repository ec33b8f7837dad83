"""The command line on folders: journals, devices, interrupts, what is left where."""

import json

import numpy as np
import pytest
from checkpoints import contents, noise, planted, write_sharded
from click.testing import CliRunner
from safetensors.numpy import load_file

from rmtspec import cli
from rmtspec.runs import analyze as analyze_run

SHARDS = {
    "model-00001-of-00002.safetensors": {"a.weight": planted(), "a.bias": noise(120)},
    "model-00002-of-00002.safetensors": {"b.weight": planted(80, 70, seed=2)},
}


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path):
    folder = write_sharded(tmp_path / "model", SHARDS)
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    return folder


def rows(file):
    found = json.loads(file.read_text(), parse_constant=pytest.fail)["rows"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def test_a_scan_goes_on_with_its_journal(folder, tmp_path):
    done = run("analyze", folder, "--out", tmp_path / "whole.json")
    assert (done.exit_code, done.stderr) == (0, "")
    words = ["analyze", folder, "--resume", tmp_path / "j", "--out", tmp_path / "r.json"]
    assert run(*words).exit_code == 0
    journal = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(journal[:-20])
    again = run(*words)
    assert (again.exit_code, again.stderr) == (0, "")
    assert rows(tmp_path / "r.json") == rows(tmp_path / "whole.json")
    assert (
        again.stdout.splitlines()[:-1] == done.stdout.splitlines()[:-1]
    )  # but for the file's name
    assert len((tmp_path / "j").read_bytes().splitlines()) == 3


def test_a_journal_that_cannot_be_used(folder, tmp_path):
    run("analyze", folder, "--resume", tmp_path / "j")
    (tmp_path / "mine").write_text("x")
    for words, message in (
        (["--resume", tmp_path / "j", "--alpha", ".3"], "(alpha was 0.2, is now 0.3)"),
        (["--resume", tmp_path / "j", "--include", "a"], "(include was None, is now"),
        (["--resume", tmp_path / "mine"], "is not a journal of rmtspec"),
        (["--resume", tmp_path], "is a folder; expected a file name"),
        (["--resume", tmp_path / "no" / "j"], "does not exist"),
    ):
        done = run("analyze", folder, *words)
        assert (done.exit_code, done.stdout) == (1, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert (tmp_path / "mine").read_text() == "x"


def test_a_device_that_is_not_there(folder):
    pytest.importorskip("torch")
    done = run("analyze", folder, "--device", "nowhere")
    assert done.exit_code == 0
    assert done.stderr.startswith("--device 'nowhere' cannot be used in float64: ")
    assert done.stderr.endswith("Computing on the CPU.\n")
    assert done.stdout == run("analyze", folder).stdout


def test_on_the_device_cpu(folder):
    pytest.importorskip("torch")
    done = run("analyze", folder, "--device", "cpu")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == run("analyze", folder).stdout


def test_prune_and_merge_a_folder(folder, tmp_path):
    before = contents(folder)
    done = run("prune", folder, tmp_path / "small", "--bulk-keep", 0, "--threads", 1)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["Not copied: pytorch_model.bin", f"Written to {tmp_path / 'small'}"]
    assert "2 analysed, 1 skipped; " in done.stdout
    done = run("merge", tmp_path / "small", tmp_path / "dense")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"2 matrices multiplied out. Written to {tmp_path / 'dense'}\n"
    for file, tensors in SHARDS.items():
        found = load_file(tmp_path / "dense" / file)
        assert {n: a.shape for n, a in found.items()} == {n: a.shape for n, a in tensors.items()}
    assert contents(folder) == before
    for words, code, message in (
        (["merge", tmp_path / "small", tmp_path / "dense"], 2, "is not empty"),
        (["merge", folder, tmp_path / "new"], 1, "rmtspec.json"),
        (["merge", tmp_path / "nowhere", tmp_path / "new"], 1, "nowhere"),
    ):
        done = run(*words)
        assert (done.exit_code, done.stdout) == (code, "")
        assert message in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_prune_that_is_interrupted(folder, tmp_path, monkeypatch):
    out, work = tmp_path / "small", tmp_path / ".small.rmtspec-work"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rmtspec.planning.cut.split", stop)
        done = run("prune", folder, out, "--bulk-keep", 0)
    assert (done.exit_code, done.stdout) == (130, "")
    assert f"Kept in {work}: the same command resumes." in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [".small.rmtspec-work", "model"]
    done = run("prune", folder, out)  # other options
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"name another folder, or delete {work}." in done.stderr
    done = run("prune", folder, out, "--bulk-keep", 0)
    assert (done.exit_code, done.stderr) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "small"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("model/none small", 1, "model/none does not exist"),
        ("model model/small", 1, "is in model, which is only read"),
        ("model model", 2, "model is not empty"),
        ("model model/config.json", 2, "is a file"),
        ("model/config.json small", 1, "suffix '.json'"),
        ("model small --report model", 2, "suffix ''"),
        ("model small --plan model/config.json", 1, "config.json"),
        ("model small --rank a=0", 2, "from 1 to 90"),
    ],
)
def test_prune_that_cannot_be_done_leaves_nothing(
    folder, tmp_path, monkeypatch, words, code, message
):
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    done = run("prune", *words.split())
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dry-run", "--out", "r.json"), "--dry-run does not analyse"),
        (("--device", "cpu", "--jobs", "2"), "--device works in one process"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder.parent)
    found = run("analyze", folder, *arguments)
    assert found.exit_code == 2
    assert message in found.output


def test_several_paths_make_one_report(folder, tmp_path):
    np.save(tmp_path / "one.npy", planted(seed=4))
    np.savez(tmp_path / "two.npz", **{"fc.weight": planted(seed=5), "fc.bias": noise(9)})
    paths = [folder, tmp_path / "one.npy", tmp_path / "two.npz"]
    done = run("analyze", *paths, "--out", tmp_path / "all.json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = rows(tmp_path / "all.json")
    names = ["model/a.weight", "model/b.weight", "one", "two/fc.weight"]
    assert [row["name"] for row in found] == names
    assert all(name in done.stdout for name in names)
    assert "4 analysed, 2 skipped" in done.stdout
    assert "(model/a.bias, two/fc.bias)" in done.stdout
    apart = []
    for path in paths:
        run("analyze", path, "--out", tmp_path / "each.json")
        apart += rows(tmp_path / "each.json")
    assert [{**row, "name": ""} for row in found] == [{**row, "name": ""} for row in apart]
    costs = run("analyze", *paths, "--dry-run")
    assert costs.exit_code == 0
    assert costs.stdout.count("floating-point operations") == 3


def test_labels_of_several_paths(tmp_path):
    for name in ("a/w.npz", "b/w.npz", "b/w.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    for path in ("a/w.npz", "b/w.npz"):
        np.savez(tmp_path / path, v=planted())
    np.save(tmp_path / "b/w.npy", planted())
    for paths, labels in (
        (["a/w.npz", "b/w.npz"], [f"{tmp_path}/a/w.npz/v", f"{tmp_path}/b/w.npz/v"]),
        (["b/w.npz", "b/w.npy"], ["w.npz/v", "w.npy/w"]),
    ):
        run("analyze", *(tmp_path / p for p in paths), "--out", tmp_path / "r.json")
        assert [row["name"] for row in rows(tmp_path / "r.json")] == labels


def test_several_paths_that_cannot_be_done(folder, tmp_path, monkeypatch):
    for words, message in (
        ([folder, folder], "is given twice"),
        ([folder, tmp_path, "--resume", tmp_path / "j"], "--resume keeps the journal of one PATH"),
        ([], "Missing argument 'PATH...'"),
    ):
        done = run("analyze", *words)
        assert (done.exit_code, message in done.stderr, done.stdout) == (2, True, "")
    monkeypatch.setattr(analyze_run, "analyze_checkpoint", pytest.fail)  # before any work
    done = run("analyze", folder, tmp_path / "none.npy")
    assert (done.exit_code, "none.npy does not exist" in done.stderr) == (1, True)
