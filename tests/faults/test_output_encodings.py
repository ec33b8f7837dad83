"""The output of the command: in encodings that lack characters, and where it cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import planted, write_safetensors


def named(output):
    """Tell whether the name is there: as an escape, or itself where click takes ASCII for UTF-8."""
    words = output.decode("utf-8")
    return "block.\\u03b1.weight" in words or "block.\u03b1.weight" in words


@pytest.fixture
def model(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"block.\u03b1.weight": planted()})
    return tmp_path / "m.safetensors"


def run(*args, cwd, stdout=subprocess.PIPE, **environment):
    """Run the command in a process of its own, and return what it did."""
    return subprocess.run(
        [sys.executable, "-m", "rmtspec", *map(str, args)],
        cwd=cwd, stdout=stdout, stderr=subprocess.PIPE, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


ENCODINGS = pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["cp1252", "C"],
)


@ENCODINGS
def test_names_that_the_encoding_lacks(model, tmp_path, environment):
    done = run("analyze", model.name, "--out", "r.json", cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert named(done.stdout)
    words = ["prune", model.name, "out", "--gate", "none", "--report", "p.csv"]
    done = run(*words, cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert named(done.stdout)
    done = run("analyze", model.name, "--include", "\u03b2", cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"no name matches" in done.stderr


FULL = Path("/dev/full")


def test_what_is_written_is_done_whether_or_not_it_can_be_said(model, tmp_path):
    for words, written in (
        (["analyze", model.name, "--out", "r.json"], "r.json"),
        (["prune", model.name, "--gate", "none", "--dry-run", "--report", "p.json"], "p.json"),
        (["prune", model.name, "small", "--gate", "none"], "small"),
        (["merge", "small", "dense"], "dense"),
    ):
        with FULL.open("wb") as stream:
            done = run(*words, cwd=tmp_path, stdout=stream)
        assert done.returncode == 0
        assert done.stderr.startswith(b"The output cannot be written: No space left on device. ")
        assert written.encode() in done.stderr
        assert done.stderr.count(b"\n") == 1
        assert (tmp_path / written).exists()


def test_what_is_only_printed_is_lost_and_that_is_an_error(model, tmp_path):
    for words in (["analyze", model.name], ["--help"], ["prune", model.name, "--dry-run"]):
        with FULL.open("wb") as stream:
            done = run(*words, cwd=tmp_path, stdout=stream)
        assert done.returncode == 1
        expected = b"Error: the output cannot be written: No space left on device.\n"
        assert done.stderr == expected


def test_a_reader_who_has_enough(model, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stream:
        done = run("analyze", model.name, "--out", "r.json", cwd=tmp_path, stdout=stream)
    assert (done.returncode, done.stderr) == (0, b"")
