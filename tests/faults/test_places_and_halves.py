"""Long names, names in no encoding, files that cannot be read, ranks beyond a shape."""

import errno
import json
import os

import pytest
from checkpoints import contents, planted, write_safetensors

import rmtspec
from rmtspec.checkpoint.manifest import Manifest, SplitEntry
from rmtspec.errors import FileError
from rmtspec.runs import prune
from rmtspec.runs.calibrate import calibration_path
from rmtspec.runs.work_folder import work_path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", {"fc.weight": planted()})
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["n" * 250, "\u03b1" * 127, "o\udcff"])
def test_names_of_outputs(folder, tmp_path, name, monkeypatch):
    out, dense = tmp_path / name, tmp_path / f"{name[:-1]}d"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prune, "write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            rmtspec.prune_checkpoint(folder, out, bulk_keep=0.0)
    assert work_path(out).is_dir()
    assert work_path(out) != work_path(dense)
    assert len(os.fsencode(calibration_path(out).name)) <= 255
    rmtspec.prune_checkpoint(folder, out, bulk_keep=0.0)  # goes on
    rmtspec.merge_checkpoint(out, dense)
    assert {place.name for place in tmp_path.iterdir()} == {"model", out.name, dense.name}


def test_a_name_that_is_too_long(folder, tmp_path):
    for out in (tmp_path / ("n" * 300), tmp_path / ("n" * 300) / "x"):
        with pytest.raises(FileError, match="nnn"):
            rmtspec.prune_checkpoint(folder, out, bulk_keep=0.0)
        with pytest.raises(FileError, match=r"rmtspec\.json"):
            rmtspec.merge_checkpoint(folder, out)
        with pytest.raises(FileError, match="nnn"):
            rmtspec.analyze_checkpoint(folder, journal=out)
        with pytest.raises(FileError, match="nnn"):
            rmtspec.extract_lora(folder, folder, out)


def test_a_place_that_may_not_be_looked_at(folder, tmp_path, monkeypatch):
    """As root every folder may be: the system's refusal is put on."""
    real = os.stat

    def refused(path, *args, **kwargs):
        if "secret" in os.fspath(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(FileError, match="cannot be made: permission denied"):
        rmtspec.prune_checkpoint(folder, tmp_path / "secret" / "out", bulk_keep=0.0)


def test_a_companion_that_cannot_be_read_is_found_first(folder, tmp_path, monkeypatch):
    rmtspec.prune_checkpoint(folder, tmp_path / "small", bulk_keep=0.0)
    before = contents(tmp_path)
    real = os.open

    def refused(path, *args, **kwargs):
        if os.path.basename(os.fspath(path)) == "tokenizer.json":  # noqa: PTH119
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    for place in (folder, tmp_path / "small"):
        (place / "tokenizer.json").touch()
    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(prune, "work_folder", lambda *_: pytest.fail("it worked"))
    message = r"tokenizer.json cannot be read: permission denied. It would be copied along"
    with pytest.raises(FileError, match=message):
        rmtspec.prune_checkpoint(folder, tmp_path / "out", bulk_keep=0.0)
    with pytest.raises(FileError, match=message):
        rmtspec.merge_checkpoint(tmp_path / "small", tmp_path / "out")
    monkeypatch.undo()
    for place in (folder, tmp_path / "small"):
        (place / "tokenizer.json").unlink()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "value"), [("rank", 2**62), ("rank", 13), ("shape", [2**62, 4]), ("groups", 2**31)]
)
def test_a_manifest_with_a_rank_beyond_its_shape(tmp_path, key, value):
    Manifest((SplitEntry("fc", "tensor", rank=12, shape=(3, 4)),), {}, {}, {}).write(tmp_path)
    assert Manifest.read(tmp_path).splits[0].rank == 12
    content = json.loads((tmp_path / "rmtspec.json").read_text())
    content["splits"][0][key] = value
    (tmp_path / "rmtspec.json").write_text(json.dumps(content))
    with pytest.raises(FileError, match="an entry of 'splits' is"):
        Manifest.read(tmp_path)
