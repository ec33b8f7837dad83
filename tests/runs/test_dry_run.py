"""What a scan would cost, from the headers alone."""

import dataclasses

import numpy as np
import pytest
from checkpoints import noise, write_safetensors, write_sharded
from click.testing import CliRunner
from threadpoolctl import threadpool_limits

from rmtspec import cli
from rmtspec._lapack import symmetric
from rmtspec._lapack.library import found as found_library
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import InvalidValueError
from rmtspec.planning.selection import Selection
from rmtspec.runs import dry_run as _dry_run
from rmtspec.runs.costs import Speed, cost, seconds
from rmtspec.runs.dry_run import BASE_BYTES, dry_run, operations_of

SPEED = Speed(gram=4e10, reduction=((256, 2e10), (3072, 1e10)), rest=3e-8, read=1e9)
TENSORS = {
    "a.weight": noise(60, 40),
    "b.weight": noise(60, 40),
    "half.weight": noise(50, 80, dtype="float16"),
    "conv.weight": noise(30, 8, 3),
    "bias": noise(60),
}


@pytest.fixture
def listed(tmp_path):
    return matrices_in(write_safetensors(tmp_path / "m.safetensors", TENSORS))


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], catch_exceptions=False)


def test_rows(listed):
    found = dry_run(listed, Selection(), speed=SPEED)
    assert [row["name"] for row in found.rows] == sorted(TENSORS.keys() - {"bias"})
    assert found.rows[3] == {
        "name": "half.weight",
        "kind": "matrix",
        "rows": 50,
        "columns": 80,
        "dtype": "float16",
        "break_even": 50 * 80 / 130,
        "operations": cost(50, 80).operations,
        "seconds": seconds(50, 80, SPEED, 2),
        "memory": cost(50, 80).memory,
    }
    convolutions = [row for row in found.rows if row["kind"] == "conv"]
    assert [(row["rows"], row["columns"]) for row in convolutions] == [(30, 24)]
    assert found.skipped == [{"name": "bias", "reason": "1 dimension: a vector has no spectrum"}]


def test_sums(listed):
    found = dry_run(listed, Selection(), speed=SPEED)
    assert found.parameters == 2 * 2400 + 4000 + 720
    assert found.operations == sum(row["operations"] for row in found.rows)
    assert found.operations == sum(operations_of(listed.matrices.values()).values())
    assert found.seconds == pytest.approx(sum(row["seconds"] for row in found.rows))
    largest = max(row["memory"] for row in found.rows)
    assert (found.memory, found.n_jobs) == (BASE_BYTES + largest, 1)


def test_the_threads_of_a_process_decide_how_eigenvalues_are_found(listed, monkeypatch):
    if found_library().library is None:
        pytest.skip("no library with two stages")
    monkeypatch.setattr(symmetric, "FROM", {"float64": 20, "float32": 20})
    quick = dataclasses.replace(SPEED, update=1e15)
    with threadpool_limits(1, user_api="blas"):
        expected = dry_run(listed, Selection(), speed=quick).rows
    with threadpool_limits(8, user_api="blas"):  # too many for two stages
        assert dry_run(listed, Selection(), speed=quick, threads=1).rows == expected
        assert dry_run(listed, Selection(), speed=quick).rows != expected


def test_with_processes(listed):
    one = dry_run(listed, Selection(), speed=SPEED)
    two = dry_run(listed, Selection(), n_jobs=2, speed=SPEED)
    assert two.seconds == pytest.approx(one.seconds / 2)
    memories = sorted(row["memory"] for row in one.rows)
    assert two.memory == 3 * BASE_BYTES + sum(memories[-2:])  # this process, and two that work
    many = dry_run(listed, Selection(), n_jobs=100, speed=SPEED)
    assert many.seconds == max(row["seconds"] for row in one.rows)  # the largest by itself


def test_groups_of_one_size(listed):
    found = dry_run(listed, Selection(), speed=SPEED)
    groups = found.groups()
    assert [group["matrices"] for group in groups] == [1, 2, 1]
    assert groups[1]["operations"] == 2 * cost(60, 40).operations
    assert sum(group["seconds"] for group in groups) == pytest.approx(found.seconds)
    operations = [group["operations"] for group in groups]
    assert operations == sorted(operations, reverse=True)
    shown = repr(found)
    assert "parameters  9,520" in shown
    assert "skipped     1 (bias): 1 dimension" in shown


def test_selection(listed):
    found = dry_run(listed, Selection("weight", "^conv"), speed=SPEED)
    assert [row["name"] for row in found.rows] == ["a.weight", "b.weight", "half.weight"]
    assert {"name": "conv.weight", "reason": "in `exclude`"} in found.skipped
    with pytest.raises(
        InvalidValueError, match=r"(?s)could be analysed.*no name matches include='x'"
    ):
        dry_run(listed, Selection("x"), speed=SPEED)


@pytest.fixture
def unread(monkeypatch):
    """Nothing but headers can be read."""
    monkeypatch.setattr(
        "rmtspec.checkpoint.stored.StoredMatrix.__call__", lambda _: pytest.fail("read")
    )
    monkeypatch.setattr(
        "rmtspec.checkpoint.stored.MappedTensor.__call__", lambda _: pytest.fail("read")
    )
    monkeypatch.setattr(
        "rmtspec.checkpoint.stored.ZippedTensor.__call__", lambda _: pytest.fail("read")
    )
    monkeypatch.setattr(np, "memmap", lambda *_, **__: pytest.fail("mapped"))


@pytest.mark.usefixtures("unread")
def test_the_command_reads_no_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(_dry_run, "calibrate", lambda: SPEED)
    index = write_sharded(tmp_path / "model", {"a.safetensors": TENSORS})
    np.savez(tmp_path / "w.npz", **{"a.weight": TENSORS["a.weight"]})
    np.save(tmp_path / "w.npy", TENSORS["a.weight"])
    before = sorted(tmp_path.rglob("*"))
    for path, words in (
        (index, "4 matrices, 9,520 parameters, 7.65e+05 floating-point operations"),
        (tmp_path / "w.npz", "1 matrix, 2,400 parameters"),
        (tmp_path / "w.npy", "1 matrix, 2,400 parameters"),
    ):
        done = run("analyze", path, "--dry-run")
        assert (done.exit_code, done.stderr) == (0, "")
        assert words in done.stdout
        assert "Estimated for this machine: < 0.1 s, 0.2 GB of memory" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("unread")
def test_the_commands_table(tmp_path, monkeypatch):
    monkeypatch.setattr(_dry_run, "calibrate", lambda: SPEED)
    path = write_safetensors(tmp_path / "m.safetensors", TENSORS)
    done = run("analyze", path, "--dry-run", "--jobs", 2, "--include", "weight", "--exclude", "^h")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["2", "matrix", "60", "x", "40", "float32", "24.0"] in [line[:7] for line in lines]
    assert ["1", "conv", "30", "x", "24", "float32", "13.3"] in [line[:7] for line in lines]
    assert "Estimated for this machine with 2 processes: < 0.1 s, 0.6 GB of memory" in done.stdout
    assert "to be skipped: 1 (bias): 1 dimension: a vector has no spectrum" in done.stdout
    assert "to be skipped: 1 (half.weight): in --exclude" in done.stdout
    done = run("analyze", path, "--dry-run", "--include", "nowhere")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no name matches include='nowhere'" in done.stderr


def test_a_header_alone_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(_dry_run, "calibrate", lambda: SPEED)
    path = tmp_path / "big.npy"  # of 70 GB, with nothing in it
    with path.open("wb") as stream:
        header = {"descr": "<f2", "fortran_order": False, "shape": (2**20, 2**15)}
        np.lib.format.write_array_header_2_0(stream, header)
        stream.truncate(stream.tell() + 2**36)
    done = run("analyze", path, "--dry-run")
    assert "1 matrix, 34,359,738,368 parameters, 1.17e+15 floating-point" in done.stdout
    assert f"{cost(2**20, 2**15).memory / 1e9 + 0.2:.1f} GB of memory" in done.stdout
