"""A scan or a prune that was killed goes on when called again, and ends as if it never was.

The kills, by signals that nothing catches, are those of benchmarks/checkpoint: at random moments
(kill.py), before each change to the files and in the middle of writing them (kill_points.py).
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rmtspec import analyze_checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and process groups")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "checkpoint"
MATRICES = 9


def loaded(name):
    """By path, so that the folder is not left on sys.path."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


synthetic, kill = loaded("synthetic"), loaded("kill")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill") / "checkpoint"
    synthetic.make_checkpoint(folder, gigabytes=0.0, shards=3, width=64)  # one layer
    return folder


@pytest.fixture(scope="module")
def journal(checkpoint, tmp_path_factory):
    """A finished journal: its path and the report that came with it."""
    path = tmp_path_factory.mktemp("journal") / "whole.jsonl"
    return path, analyze_checkpoint(checkpoint, journal=path)


def timeless(report):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in report.rows]


def command(checkpoint, what):
    return [sys.executable, "-m", "rmtspec.cli", *kill.arguments_of(checkpoint)[what]]


def differing(trials):
    return [str(trial) for trial in trials if not trial.equal]


def test_synthetic_checkpoint_is_the_same_each_time(checkpoint, tmp_path):
    shapes = synthetic.make_checkpoint(tmp_path / "again", 0.0, 3, 64)
    files = sorted(file.name for file in checkpoint.iterdir())
    assert files == sorted(file.name for file in (tmp_path / "again").iterdir())
    assert len(files) == 5  # three shards, index, config
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (checkpoint / file).read_bytes()
    assert sum(len(shape) == 2 for shape in shapes.values()) == MATRICES


def test_random_moments(checkpoint):
    trials = kill.killed_runs(command(checkpoint, "analyze"), 2, seed=0)
    assert len(trials) == 2
    assert differing(trials) == []


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
@pytest.mark.parametrize("what", kill.WHAT)
def test_many_random_moments(what, kills, tmp_path):
    # Large enough that the work takes longer than Python's start.
    synthetic.make_checkpoint(tmp_path / "checkpoint", gigabytes=0.02, shards=3, width=256)
    times = 20 if kills == 1 else 5
    trials = kill.killed_runs(command(tmp_path / "checkpoint", what), times, kills, kills=kills)
    assert len(trials) == times
    assert differing(trials) == []


@pytest.mark.parametrize(
    "what", ["analyze", "factors", pytest.param("dense", marks=pytest.mark.slow)]
)
def test_before_each_change_and_in_the_middle_of_files(checkpoint, what):
    found = kill_points(checkpoint, what, kills=1, bytes_=3)
    assert found.returncode == 0, found.stdout + found.stderr
    assert int(re.search(r"(\d+) trials", found.stdout)[1]) > 8


@pytest.mark.slow
@pytest.mark.parametrize("what", kill.WHAT)
def test_twice_before_changes_and_at_many_bytes(checkpoint, what):
    found = kill_points(checkpoint, what, kills=2, bytes_=40)
    assert found.returncode == 0, found.stdout + found.stderr


def kill_points(checkpoint, what, *, kills, bytes_):
    options = ["--what", what, "--kills", str(kills), "--bytes", str(bytes_)]
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "kill_points.py"), str(checkpoint), *options],
        capture_output=True,
        text=True,
        check=False,
    )


def test_harness_tells_a_command_that_does_not_resume():
    code = "import time; f = open('report.txt', 'a'); f.write('x'); f.flush(); time.sleep(0.3)"
    trials = kill.killed_runs([sys.executable, "-I", "-S", "-c", code], 3, seed=0)
    assert any(trial.differences == ("report.txt",) for trial in trials)


def test_journal_cut_at_any_byte(checkpoint, journal, tmp_path):
    path, expected = journal
    whole = path.read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(whole) if byte == ord("\n"))]
    assert len(ends) == MATRICES + 2  # its beginning, the first line, one for each matrix
    for line in (0, 1, 5, MATRICES):
        start, end = ends[line], ends[line + 1]
        for kept in (start, start + 1, (start + end) // 2, end - 1, end):
            cut = tmp_path / "cut.jsonl"
            cut.write_bytes(whole[:kept])
            report = analyze_checkpoint(checkpoint, journal=cut)
            assert timeless(report) == timeless(expected), kept
            done = cut.read_bytes()
            assert done.startswith(whole[: max(e for e in ends if e <= kept)])
            assert names(done) == names(whole)


def names(journal):
    return [json.loads(line).get("name") for line in journal.splitlines()]


def test_what_the_journal_holds_is_not_done_again(checkpoint, journal, tmp_path):
    """Killed by its own progress callback after five matrices."""
    code = """
import os, signal, sys
from rmtspec import analyze_checkpoint
def progress(done, total, name):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
analyze_checkpoint(sys.argv[1], journal=sys.argv[2], progress=progress)
"""
    path = tmp_path / "scan.jsonl"
    killed = subprocess.run([sys.executable, "-c", code, str(checkpoint), str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    _, *left = (json.loads(line) for line in path.read_bytes().splitlines())
    assert len(left) == 5
    calls = []
    report = analyze_checkpoint(
        checkpoint, journal=path, progress=lambda done, total, name: calls.append((done, name))
    )
    assert [name for _, name in calls[:5]] == [entry["name"] for entry in left]
    assert [done for done, _ in calls] == list(range(1, MATRICES + 1))
    # A wall time never comes out the same twice: these are the old ones.
    assert [report.row(e["name"])["seconds"] for e in left] == [e["row"]["seconds"] for e in left]
    assert timeless(report) == timeless(journal[1])
