"""What lies where the work is to be kept, and is not ours, is neither used nor removed."""

import os
import stat

import pytest
from checkpoints import contents, planted, write_safetensors

from rmtspec.checkpoint import matrices_in
from rmtspec.errors import FileError
from rmtspec.runs import calibrate, hidden_folder, prune
from rmtspec.runs.calibrate import calibrated_on, calibration_path
from rmtspec.runs.journal import open_journal
from rmtspec.runs.work_folder import work_path


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    write_safetensors(tmp_path / "model" / "model.safetensors", {"fc.weight": planted()})
    return tmp_path / "model" / "model.safetensors"


def pruned(model, out):
    prune.prune_checkpoint(model, out, bulk_keep=0.0)


def calibrated(model, out):
    text = model.parent / "text.txt"
    text.write_text("words")
    how = {"sequences": 1, "objective": None, "say": str}
    with calibrated_on(matrices_in(model), text, out, **how):
        pytest.fail("there is no language model")


KINDS = pytest.mark.parametrize(
    ("run", "path_of"), [(pruned, work_path), (calibrated, calibration_path)]
)


def plant_a_link(place, precious):
    place.symlink_to(precious)


def plant_a_folder(place, precious):
    precious.rename(place)


def plant_a_file(place, precious):
    place.write_text("precious")


def plant_links_in_it(place, precious):
    place.mkdir()
    with open_journal(place / "journal.jsonl", {}):
        (place / "content").symlink_to(precious)


def plant_a_linked_journal(place, precious):
    place.mkdir()
    (place / "journal.jsonl").symlink_to(precious / "file")


def plant_another_journal(place, precious):
    precious.rename(place)
    (place / "journal.jsonl").write_text("precious")


@KINDS
@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_a_link, "is a link"),
        (plant_a_folder, "has no journal of rmtspec"),
        (plant_a_file, "is a file"),
        (plant_links_in_it, "has links in it"),
        (plant_a_linked_journal, "has links in it"),
        (plant_another_journal, "has no journal of rmtspec"),
    ],
)
def test_what_is_not_ours_stays(tmp_path, model, run, path_of, plant, message):
    precious = tmp_path / "precious"
    (precious / "content").mkdir(parents=True)
    (precious / "content" / "file").write_text("precious")
    (precious / "file").touch()
    (model.parent / "text.txt").write_text("words")
    plant(path_of(tmp_path / "out"), precious)
    before = contents(tmp_path)
    with pytest.raises(FileError, match=f"{message}. It is left as it is"):
        run(model, tmp_path / "out")
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


@KINDS
def test_the_folder_of_another_user_is_refused(tmp_path, model, run, path_of, monkeypatch):
    place = path_of(tmp_path / "out")
    place.mkdir()
    me = os.geteuid()
    monkeypatch.setattr(hidden_folder.os, "geteuid", lambda: me + 1)
    if run is pruned:
        (place / "journal.jsonl").touch()  # an empty folder is taken away, and made anew
    with pytest.raises(FileError, match="belongs to another user"):
        run(model, tmp_path / "out")
    assert place.is_dir()


@pytest.mark.parametrize("module", [prune, calibrate])
def test_it_is_private_and_what_is_made_in_it_is_not(tmp_path, model, monkeypatch, module):
    run, path_of = (pruned, work_path) if module is prune else (calibrated, calibration_path)
    out = tmp_path / "out"
    modes = []

    def note(*_, **__):
        modes.append(stat.S_IMODE(path_of(out).stat().st_mode))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_index" if module is prune else "calibration_on", note)
    with pytest.raises(KeyboardInterrupt):
        run(model, out)
    assert modes == [0o700]
    if module is prune:
        monkeypatch.undo()
        run(model, out)
        (tmp_path / "usual").mkdir()
        assert out.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_removal_that_is_cut_short_can_be_gone_on_with(tmp_path, monkeypatch):
    place = tmp_path / ".work"
    hidden_folder.make_hidden(place)
    with open_journal(place / "journal.jsonl", {}):
        for name in ("a", "z"):
            (place / name).touch()
    real = hidden_folder.Path.unlink

    def once(path, **how):
        if [entry.name for entry in place.iterdir()] == ["journal.jsonl"]:
            raise KeyboardInterrupt
        real(path, **how)

    monkeypatch.setattr(hidden_folder.Path, "unlink", once)
    with pytest.raises(KeyboardInterrupt):
        hidden_folder.remove_hidden(place)
    assert hidden_folder.make_hidden(place) is False
