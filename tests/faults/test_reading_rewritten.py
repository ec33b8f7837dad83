"""A checkpoint that is saved anew while it is read: nothing mixes two models."""

import os

import numpy as np
import pytest
from checkpoints import noise, planted, write_safetensors, write_sharded
from click.testing import CliRunner

import rmtspec
from rmtspec.checkpoint import matrices_in
from rmtspec.cli import main
from rmtspec.errors import FileError

NAMES = [f"h.{i}.weight" for i in range(6)]


def shards(seed):
    return {
        f"m-{i + 1:05}-of-00006.safetensors": {name: planted(40, 30, seed=seed + i)}
        for i, name in enumerate(NAMES)
    }


@pytest.fixture
def folder(tmp_path):
    return write_sharded(tmp_path / "latest", shards(0))


def rewritten(folder, how):
    """Save every file anew once the second matrix is done: by rename, or into the same file."""

    def step(done, *_):
        if done != 2:
            return
        for name, tensors in shards(100).items():
            if how == "renamed":
                write_safetensors(folder / "new", tensors, {"format": "pt"})
                (folder / "new").replace(folder / name)
            else:
                content = (folder / name).read_bytes()
                write_safetensors(folder / name, tensors, {"format": "pt"})
                assert len((folder / name).read_bytes()) == len(content)

    return step


@pytest.mark.parametrize("how", ["renamed", "in place"])
def test_a_scan_stops_and_its_journal_keeps_what_was_read_before(folder, tmp_path, how):
    expected = {row["name"]: row["variance"] for row in rmtspec.analyze_checkpoint(folder).rows}
    journal = tmp_path / "j"
    with pytest.raises(FileError, match=r"rewritten while it was being read .*start again"):
        rmtspec.analyze_checkpoint(folder, journal=journal, progress=rewritten(folder, how))
    lines = journal.read_bytes().splitlines()
    assert len(lines) == 3
    with pytest.raises(FileError, match="journal of another checkpoint"):
        rmtspec.analyze_checkpoint(folder, journal=journal)
    for name, tensors in shards(0).items():
        write_safetensors(folder / name, tensors, {"format": "pt"})
    found = rmtspec.analyze_checkpoint(folder, journal=journal)
    assert {row["name"]: row["variance"] for row in found.rows} == expected


@pytest.mark.parametrize("how", ["renamed", "in place"])
def test_a_prune_stops_and_writes_nothing(folder, tmp_path, how):
    step, calls = rewritten(folder, how), []

    def progress(*given):
        calls.append(given)
        if len(calls) > len(NAMES):  # the writing
            step(*given)

    with pytest.raises(FileError, match="rewritten while it was being read"):
        rmtspec.prune_checkpoint(
            folder, tmp_path / "out", ranks=dict.fromkeys(NAMES, 5), progress=progress
        )
    assert not (tmp_path / "out").exists()


def test_every_format_is_stamped(tmp_path):
    W = noise(12, 8)
    np.save(tmp_path / "w.npy", W)
    np.savez(tmp_path / "w.npz", w=W)
    write_safetensors(tmp_path / "w.safetensors", {"w": W})
    for file in sorted(tmp_path.iterdir()):
        listed = matrices_in(file)
        (matrix,) = listed.matrices.values()
        assert matrix().shape == W.shape
        listed.check_unchanged()
        os.utime(file, ns=(0, 10**18))
        with pytest.raises(FileError, match="its time of change is another"):
            matrix()
        with pytest.raises(FileError, match="was rewritten"):
            listed.check_unchanged()


def test_merging_what_is_rewritten_stops(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "m.safetensors", {"fc.weight": planted(40, 30)})
    rmtspec.prune_checkpoint(tmp_path / "m.safetensors", tmp_path / "small", ranks={"fc": 3})
    from rmtspec.runs import merge

    copy = merge.copy_companions

    def touched(source, target):
        copy(source, target)
        for file in source.glob("*.safetensors"):
            os.utime(file, ns=(0, 10**18))

    monkeypatch.setattr(merge, "copy_companions", touched)
    with pytest.raises(FileError, match="was rewritten"):
        rmtspec.merge_checkpoint(tmp_path / "small", tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def test_files_that_cannot_be_read_do_not_end_in_success(folder, monkeypatch):
    from rmtspec.cli import scan

    listed = scan._chosen

    def and_gone(path, how):
        found = listed(path, how)
        for file in sorted(folder.glob("*.safetensors"))[1:]:
            file.unlink()
        return found

    monkeypatch.setattr(scan, "_chosen", and_gone)
    result = CliRunner().invoke(main, ["analyze", str(folder)])
    assert result.exit_code == 1
    assert "5 of 6 matrices could not be read" in result.output
