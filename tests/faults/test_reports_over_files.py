"""A report never takes the place of what is read, nor unasked of anything else."""

import json

import numpy as np
import pytest
from checkpoints import contents, noise, planted, write_sharded
from click.testing import CliRunner
from safetensors.numpy import save_file

import rmtspec
from rmtspec import cli
from rmtspec.errors import FileError

SHARDS = {
    "model-00001-of-00002.safetensors": {"a.weight": planted(), "a.bias": noise(120)},
    "model-00002-of-00002.safetensors": {"b.weight": planted(80, 70, seed=2)},
}
INDEX = "model.safetensors.index.json"


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path):
    folder = write_sharded(tmp_path / "model", SHARDS)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"rows": []}')
    return folder


@pytest.mark.parametrize("more", [[], ["--force"]])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", INDEX])
def test_files_of_the_input_stay(folder, tmp_path, name, more):
    (tmp_path / "link.json").symlink_to(folder / name)
    before = contents(folder)
    for out in (folder / name, tmp_path / "link.json"):
        for words in (
            ["analyze", folder, "--out", out],
            ["prune", folder, tmp_path / "small", "--report", out],
            ["prune", folder, "--dry-run", "--report", out],
            ["compare", folder, folder, "--out", out],
            ["extract-lora", folder, folder, tmp_path / "lora", "--report", out],
            ["resize-lora", folder, tmp_path / "lora", "--report", out],
        ):
            done = run(*words, *more)
            assert (done.exit_code, done.stdout) == (2, "")
            assert "is a file of the input" in done.stderr
    assert contents(folder) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.json", "model"]


def test_what_is_read_beside_a_file_stays(folder, tmp_path):
    shard = folder / "model-00001-of-00002.safetensors"
    for source, name in ((shard, "config.json"), (folder / INDEX, INDEX), (folder / INDEX, "x")):
        out = folder / name if name != "x" else folder / "tokenizer.json"
        done = run("analyze", source, "--out", out, "--force")
        assert (done.exit_code, done.stdout) == (2, "")
        assert "is a file of the input" in done.stderr


def test_weights_and_plans_stay(folder, tmp_path):
    shard = folder / "model-00001-of-00002.safetensors"
    (tmp_path / "r.json").symlink_to(shard)
    assert "is a file of the input" in run("analyze", shard, "--out", tmp_path / "r.json").stderr
    plan = tmp_path / "plan.json"
    assert run("prune", folder, "--dry-run", "--gate", "none", "--report", plan).exit_code == 0
    before = plan.read_bytes()
    done = run("prune", folder, tmp_path / "small", "--plan", plan, "--report", plan)
    assert (done.exit_code, done.stdout) == (2, "")
    assert plan.read_bytes() == before


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_python_refuses_files_of_the_input_too(folder, tmp_path, name):
    before = contents(folder)
    out = tmp_path / "small"
    lora = tmp_path / "lora.safetensors"
    save_file({"f.lora_A.weight": np.ones((2, 90)), "f.lora_B.weight": np.ones((60, 2))}, lora)
    (tmp_path / "adapter_config.json").write_text("{}")
    for call in (
        lambda: rmtspec.prune_checkpoint(folder, out, report=folder / name),
        lambda: rmtspec.extract_lora(folder, folder, out, report=folder / name),
        lambda: rmtspec.resize_lora(lora, out, report=tmp_path / "adapter_config.json"),
    ):
        with pytest.raises(FileError, match="is a file of the input"):
            call()
    assert contents(folder) == before
    assert not out.exists()


@pytest.mark.parametrize("suffix", [".json", ".csv", ".html"])
def test_reports_are_replaced_and_other_files_only_by_force(folder, tmp_path, suffix):
    inside, mine, empty = (
        place / f"{name}{suffix}"
        for place, name in ((folder, "r"), (tmp_path, "mine"), (tmp_path, "empty"))
    )
    empty.touch()
    for out in (inside, inside, empty):  # its own report, in the folder of the model or elsewhere
        assert run("analyze", folder, "--out", out, "--include", "b").exit_code == 0
    mine.write_text('{"schema": 1}')
    for words in (
        ["analyze", folder, "--include", "b", "--out", mine],
        ["prune", folder, "--dry-run", "--include", "b", "--report", mine],
    ):
        done = run(*words)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "is no report of rmtspec. Name another file, or pass --force." in done.stderr
        assert mine.read_text() == '{"schema": 1}'
        assert run(*words, "--force").exit_code == 0
        assert mine.read_text() != '{"schema": 1}'
        mine.write_text('{"schema": 1}')
    if suffix == ".json":
        assert json.loads(inside.read_text())["schema"] == 1
