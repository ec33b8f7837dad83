"""Pipes, devices and nested or endless JSON in the place of a file: an error at once."""

import json
import os

import numpy as np
import pytest
from checkpoints import planted, write_safetensors, write_sharded

import rmtspec
from rmtspec._files.reading import bounded_json
from rmtspec.checkpoint import matrices_in
from rmtspec.checkpoint.manifest import Manifest
from rmtspec.errors import FileError
from rmtspec.report import Report

NESTED = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def folder(tmp_path):
    shards = {"m-00001-of-00001.safetensors": {"a.weight": planted(40, 30)}}
    return write_sharded(tmp_path / "model", shards)


@pytest.mark.parametrize(
    "name",
    ["config.json", "adapter_config.json", "model.safetensors.index.json",
     "m-00001-of-00001.safetensors"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_beside_the_weights(folder, name, kind):
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(FileError, match=r"not a regular file|missing"):
        matrices_in(folder)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt", ".gguf", ".bin"])
def test_a_pipe_among_the_weights(tmp_path, suffix):
    os.mkfifo(tmp_path / f"model{suffix}")
    with pytest.raises(FileError, match="not a regular file"):
        matrices_in(tmp_path)
    with pytest.raises(FileError, match="not a regular file"):
        matrices_in(tmp_path / f"model{suffix}")


def test_a_pipe_as_plan_and_as_manifest(tmp_path):
    os.mkfifo(tmp_path / "rmtspec.json")
    with pytest.raises(FileError, match="not a regular file"):
        Report.from_json(tmp_path / "rmtspec.json")
    with pytest.raises(FileError, match="not a regular file"):
        Manifest.read(tmp_path)


def test_a_pipe_in_place_of_a_weight_file_of_a_manifest(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"fc.weight": planted(40, 30)})
    small = tmp_path / "small"
    rmtspec.prune_checkpoint(tmp_path / "m.safetensors", small, ranks={"fc": 3})
    (file,) = small.glob("*.safetensors")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(FileError, match="not a regular file"):
        rmtspec.merge_checkpoint(small, tmp_path / "dense")
    with pytest.raises(FileError, match="not a regular file"):
        Manifest.read(small).check_files(small)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (NESTED, "nested more than 100 deep"),
        ("[" * 102 + "]" * 102, "nested more than 100 deep"),
        ('{"a":' * 102 + "1" + "}" * 102, "nested more than 100 deep"),
        (json.dumps(["x" * 200]), "more than 100 bytes"),
    ],
    ids=["beyond Python", "lists", "objects", "long"],
)
def test_json_is_bounded(tmp_path, content, message):
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        bounded_json(file, longest=100 if "bytes" in message else 10**7)


@pytest.mark.parametrize("content", ["[" * 101 + "]" * 101, "{}", "[]", "3", '{"a": [{}, 1]}'])
def test_json_within_bounds(tmp_path, content):
    file = tmp_path / "x.json"
    file.write_text(content)
    assert bounded_json(file) == json.loads(content)


def test_nested_companions(folder):
    (folder / "config.json").write_text(NESTED)
    assert list(matrices_in(folder).matrices) == ["a.weight"]  # as with no config
    (folder / "model.safetensors.index.json").write_text(NESTED)
    with pytest.raises(FileError, match=r"is not JSON .*nested more than 100 deep"):
        matrices_in(folder)


def test_a_file_named_on_its_own(tmp_path):
    np.save(tmp_path / "w.npy", planted(40, 30))
    assert len(matrices_in(tmp_path / "w.npy")) == 1
