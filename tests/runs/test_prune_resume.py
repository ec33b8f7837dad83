"""Pruning that fails on the way: nothing under the final name, the input untouched, and the same
command goes on to the same files."""

import errno
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from checkpoints import contents, file_limit, noise, planted, write_sharded

from rmtspec.errors import FileError, InvalidValueError
from rmtspec.planning import cut as _cutting
from rmtspec.report import Report
from rmtspec.runs import prune as _prune_checkpoint
from rmtspec.runs import work_folder as _work_folder
from rmtspec.runs.journal import open_journal
from rmtspec.runs.prune import prune_checkpoint
from rmtspec.runs.work_folder import work_path

OPTIONS = {"bulk_keep": 0.1, "exclude": "embed"}
CUT = ["a.weight", "b.weight", "c.weight"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    shards = {
        "model-00001-of-00002.safetensors": {
            "a.weight": planted(),
            "a.bias": noise(120),
            "small.weight": noise(20, 8),
        },
        "model-00002-of-00002.safetensors": {
            "c.weight": planted(60, 80, seed=1),
            "b.weight": planted(80, 70, seed=2, dtype="float16"),
            "embed_tokens.weight": noise(50, 40),
        },
    }
    folder = write_sharded(tmp_path_factory.mktemp("resume") / "model", shards)
    (folder / "config.json").write_text("{}")
    return folder


def prune(folder, out, form="factors", **options):
    return prune_checkpoint(
        folder, out, mode={"factors": "split", "dense": "truncate"}[form], **{**OPTIONS, **options}
    )


@pytest.fixture(scope="module")
def unbroken(folder):
    """Files and report of each form when nothing fails."""
    found = {}
    for form in ("factors", "dense"):
        out = folder.parent / form
        done = prune(folder, out, form)
        assert [row["name"] for row in done.rows if row["action"] != "keep"] == CUT
        found[form] = contents(out), timeless(done)
    return found


def timeless(report):
    content = report.to_dict()
    del content["source"]["name"]
    for row in content["rows"]:
        row.pop("seconds")
    return content


@pytest.fixture
def out(tmp_path, folder):
    """A place for the result; the input must be as it was at the end."""
    before = contents(folder)
    yield tmp_path / "out"
    assert contents(folder) == before


def same(out, unbroken, form, report=None):
    """The output is the unbroken one, and nothing else is left."""
    files, expected = unbroken[form]
    assert contents(out) == files
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    if report is not None:
        assert timeless(report) == expected


def failing(monkeypatch, owner, name, number, error):
    """Let the call of this number raise; return how often it was called."""
    real, calls = getattr(owner, name), []

    def maybe(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, maybe)
    return calls


FULL = OSError(errno.ENOSPC, "No space left on device")
STEPS = [
    ("os", "fsync", FULL),
    ("os", "fsync", KeyboardInterrupt()),
    ("rmtspec.planning.cut", "split", KeyboardInterrupt()),
    ("rmtspec.planning.cut", "split", MemoryError()),
    ("rmtspec.planning.cut", "truncate", KeyboardInterrupt()),
    ("rmtspec.runs.journal.Journal", "add", KeyboardInterrupt()),
    ("rmtspec.runs.journal.Journal", "add", FileError("the journal cannot be written")),
    ("shutil", "copyfile", FULL),
    ("rmtspec.checkpoint.manifest.Manifest", "write", KeyboardInterrupt()),
    ("rmtspec.runs.work_folder.WorkFolder", "finish", KeyboardInterrupt()),
    ("rmtspec.runs.work_folder", "_sync", KeyboardInterrupt()),
    ("rmtspec.runs.work_folder", "remove_hidden", KeyboardInterrupt()),
]


@pytest.mark.parametrize("form", ["factors", "dense"])
@pytest.mark.parametrize(
    ("owner", "name", "error"), STEPS, ids=[f"{n}-{type(e).__name__}" for _, n, e in STEPS]
)
def test_stopped_at_any_step_the_same_command_goes_on(
    folder, out, unbroken, monkeypatch, owner, name, error, form
):
    owner = pytest.importorskip(owner) if owner.islower() else _attribute(owner)
    for number in itertools.count(1):
        assert number < 50
        with monkeypatch.context() as patch:
            calls = failing(patch, owner, name, number, error)
            try:
                prune(folder, out, form)
            except (type(error), FileError):
                # The name is given last: what has it is whole.
                assert not out.exists() or contents(out) == unbroken[form][0]
            else:
                same(out, unbroken, form)
                if len(calls) < number:  # there are no more
                    break
                shutil.rmtree(out)  # it did not matter
        same(out, unbroken, form, prune(folder, out, form))
        shutil.rmtree(out)
    # `truncate` is not called for factors, the manifest is not written for dense.
    assert number > 1 or (name, form) in (
        ("truncate", "factors"), ("split", "dense"), ("write", "dense")
    )  # fmt: skip


def _attribute(path):
    module, _, name = path.rpartition(".")
    return getattr(pytest.importorskip(module), name)


@pytest.mark.parametrize("form", ["factors", "dense"])
def test_what_was_written_is_not_computed_again(folder, out, unbroken, monkeypatch, form):
    computes = "split" if form == "factors" else "truncate"
    # Every tensor is flushed: small ones would wait for each other.
    monkeypatch.setattr("rmtspec.checkpoint.safetensors_writer._SECONDS", 0.0)
    for number in (2, 3):
        with monkeypatch.context() as patch:
            failing(patch, _cutting, computes, number, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                prune(folder, out, form)
        with monkeypatch.context() as patch:
            calls = failing(patch, _cutting, computes, 0, None)
            patch.setattr(
                "rmtspec.report.many.outcome_of", lambda *_: pytest.fail("analysed again")
            )
            told = []
            done = prune(folder, out, form, progress=lambda *given, told=told: told.append(given))
        assert len(calls) == 3 - (number - 1)
        assert [(count, total) for count, total, _ in told[-len(calls) :]] == [
            (count, 3) for count in range(number, 4)
        ]
        same(out, unbroken, form, done)
        shutil.rmtree(out)


def test_progress_of_analysis_then_of_writing(folder, out):
    told = []
    prune(folder, out, progress=lambda *given: told.append(given))
    assert [(count, total) for count, total, _ in told] == [
        *((i, 4) for i in range(1, 5)), *((i, 3) for i in range(1, 4))
    ]  # fmt: skip
    assert sorted(name for *_, name in told[4:]) == CUT


def test_an_empty_folder_stays_one(folder, out, unbroken, monkeypatch):
    out.mkdir()
    with monkeypatch.context() as patch:
        failing(patch, _cutting, "split", 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prune(folder, out)
    assert list(out.iterdir()) == []
    prune(folder, out)
    same(out, unbroken, "factors")


def stopped(folder, out, form="factors", number=2, **options):
    """Leave the work of a run that was interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, _cutting, "split" if form == "factors" else "truncate", number,
                KeyboardInterrupt())  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            prune(folder, out, form, **options)
    work = work_path(out)
    assert any((work / "content").iterdir())
    return work


def test_a_disk_that_fills_up_says_where_the_work_is(folder, out):
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, os, "fsync", 2, FULL)
        with pytest.raises(FileError) as caught:
            prune(folder, out)
    assert str(caught.value) == (
        f"{out} cannot be written: no space left on device. What was done is kept in "
        f"{work_path(out)}: free space and run the same command again, or delete it."
    )
    assert not out.exists()


def test_files_that_may_not_grow(folder, out, unbroken):
    largest = max(map(len, unbroken["dense"][0].values()))
    for limit, what in ((6_000, "journal"), (30_000, "content"), (largest - 1, "content")):
        with file_limit(limit), pytest.raises(FileError, match="file too large") as caught:
            prune(folder, out, "dense")
        assert str(work_path(out)) in str(caught.value)
        full = list((work_path(out) / "content").iterdir())
        if what == "journal":
            assert "journal.jsonl cannot be written" in str(caught.value)
            assert full == []
        else:
            assert [file.stat().st_size for file in full] == [limit]
        assert not out.exists()
    same(out, unbroken, "dense", prune(folder, out, "dense"))


def test_a_journal_that_may_not_grow_keeps_the_analysis(folder, out, unbroken, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, _prune_checkpoint, "make_plan", 1, FileError("no space for the journal."))
        message = rf"no space for the journal\. What was done is kept in {work_path(out)}: the same"
        with pytest.raises(FileError, match=message):
            prune(folder, out)
    monkeypatch.setattr("rmtspec.report.many.outcome_of", lambda *_: pytest.fail("analysed again"))
    same(out, unbroken, "factors", prune(folder, out))


def test_a_disk_that_is_too_small(folder, out, unbroken, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage)
        patch.setattr(_prune_checkpoint, "outcomes", lambda *_, **__: pytest.fail("it worked"))
        with pytest.raises(FileError, match=r"needs \d+,\d+ bytes, and 1,000 are free"):
            prune(folder, out, "dense")  # its size is known before
    assert list(out.parent.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(FileError, match=r"and 1,000 are free\. .*What was done is kept in"):
            prune(folder, out)
    monkeypatch.setattr("rmtspec.report.many.outcome_of", lambda *_: pytest.fail("analysed again"))
    same(out, unbroken, "factors", prune(folder, out))


@pytest.mark.parametrize("form", ["factors", "dense"])
def test_only_what_is_missing_must_fit(folder, out, unbroken, monkeypatch, form):
    work = stopped(folder, out, form, number=3)
    written = sum(file.stat().st_size for file in (work / "content").iterdir())
    total = sum(len(raw) for name, raw in unbroken[form][0].items() if "safetensors" in name)
    usage = shutil.disk_usage(folder)._replace(free=total - written)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    same(out, unbroken, form, prune(folder, out, form))


def test_other_options_are_refused_with_the_way_out(folder, out, unbroken, tmp_path):
    work = stopped(folder, out)
    before = contents(work)
    for options, what in (
        ({"bulk_keep": 0.2}, "other options (bulk_keep was 0.1, is now 0.2)"),
        ({"form": "dense"}, "another command"),
        ({"ranks": {"a": 3}}, "other options (ranks was None, is now {'a': 3})"),
    ):
        message = (
            f"is the journal of {what}. Run the same command on the same checkpoint to resume "
            f"it; otherwise name another folder, or delete {work}."
        )
        with pytest.raises(FileError, match=re.escape(message)):
            prune(folder, out, **options)
        assert contents(work) == before
    other = tmp_path / "elsewhere"
    shutil.copytree(folder, other)
    shard = other / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(FileError, match=r"of another checkpoint"):
        prune(other, out)
    shutil.rmtree(other)
    shutil.rmtree(work)  # as the message says
    prune(folder, out, "dense")
    same(out, unbroken, "dense")


def test_a_checkpoint_that_was_moved_goes_on(folder, out, unbroken, tmp_path):
    stopped(folder, out)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    prune(moved, out)
    shutil.rmtree(moved)
    same(out, unbroken, "factors")


def test_leftovers_of_other_work_do_not_get_into_the_result(folder, out, unbroken):
    work = stopped(folder, out, "dense")
    journal = work / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    assert (work / "content" / "model-00001-of-00002.safetensors").exists()
    prune(folder, out, "dense")
    same(out, unbroken, "dense")


def test_a_file_that_was_cut_or_lost_meanwhile_is_made_again(folder, out, unbroken, monkeypatch):
    for change in ("cut", "lost"):
        work = stopped(folder, out, number=3)
        file = work / "content" / "rmtspec-00001-of-00002.safetensors"
        if change == "lost":
            file.unlink()
        else:
            file = work / "content" / "rmtspec-00002-of-00002.safetensors"
            file.write_bytes(file.read_bytes()[:1000])
        prune(folder, out)
        same(out, unbroken, "factors")
        shutil.rmtree(out)


def test_two_runs_at_once(folder, out, unbroken):
    seen = []

    def second(*_):
        with pytest.raises(FileError, match=r"in use by another run\. Wait until it ends, or name"):
            prune(folder, out)
        seen.append(contents(work_path(out)))

    prune(folder, out, progress=second)
    assert len(seen) == 7
    same(out, unbroken, "factors")


def test_read_only_places(folder, out, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_prune_checkpoint, "outcomes", lambda *_, **__: pytest.fail("it worked"))
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)  # tests may run as root
        with pytest.raises(FileError, match="write-protected"):
            prune(folder, out)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(FileError, match=r"work cannot be made: permission denied\. Name an"):
            prune(folder, out)
    with monkeypatch.context() as patch:
        opened = os.open
        patch.setattr(
            "os.open",
            lambda path, *a, **k: (refuse if "jsonl" in str(path) else opened)(path, *a, **k),
        )
        with pytest.raises(FileError, match=r"cannot be used: permission denied"):
            prune(folder, out)
    work_path(out).write_text("mine")
    with pytest.raises(FileError, match=r"work, where the work is kept, is a file"):
        prune(folder, out)
    assert [path.name for path in out.parent.iterdir()] == [".out.rmtspec-work"]
    assert work_path(out).read_text() == "mine"


def test_killed_between_the_name_and_the_clearing_up(folder, out, unbroken, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        failing(patch, _work_folder, "remove_hidden", 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prune(folder, out)
    work = work_path(out)
    assert [path.name for path in work.iterdir()] == ["journal.jsonl"]
    assert contents(out) == unbroken["factors"][0]
    with pytest.raises(FileError, match=r"other options .* or delete"):
        prune(folder, out, bulk_keep=0.2)
    assert contents(out) == unbroken["factors"][0]
    monkeypatch.setattr("rmtspec.report.many.outcome_of", lambda *_: pytest.fail("analysed again"))
    monkeypatch.setattr(_cutting, "split", lambda *_: pytest.fail("computed again"))
    same(out, unbroken, "factors", prune(folder, out))
    with pytest.raises(FileError, match="is not empty"):  # a third time it is another's
        prune(folder, out)


def test_a_journal_beside_a_folder_of_someone_else(folder, out, unbroken):
    """Killed before the content was begun; then someone made a folder of that name."""
    work = stopped(folder, out)
    shutil.rmtree(work / "content")
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(FileError, match="out is not empty"):
        prune(folder, out)
    assert contents(out) == {"mine": b"x"}
    journal = (work / "journal.jsonl").read_bytes()
    (work / "journal.jsonl").write_bytes(journal.splitlines(keepends=True)[0])
    with pytest.raises(FileError, match="out is not empty"):
        prune(folder, out)
    assert contents(out) == {"mine": b"x"}
    shutil.rmtree(out)
    prune(folder, out)
    same(out, unbroken, "factors")


def test_a_report_that_cannot_be_written_in_the_end(folder, out, unbroken, monkeypatch):
    report = out.parent / "r.json"
    with monkeypatch.context() as patch:
        failing(patch, Report, "save", 1, FileError("r.json cannot be written."))
        with pytest.raises(
            FileError, match=r"r\.json cannot be written\. What was done is kept in"
        ):
            prune(folder, out, report=report)
    assert contents(out) == unbroken["factors"][0]
    monkeypatch.setattr("rmtspec.report.many.outcome_of", lambda *_: pytest.fail("analysed again"))
    done = prune(folder, out, report=report)
    assert json.loads(report.read_text())["rows"] == json.loads(done.to_json())["rows"]
    report.unlink()
    same(out, unbroken, "factors", done)


@pytest.mark.parametrize(
    ("report", "message"),
    [("r.txt", "suffix '.txt'"), ("no/r.json", "does not exist"), (".", "suffix ''")],
)
def test_a_report_that_cannot_be_written_is_said_first(folder, out, monkeypatch, report, message):
    monkeypatch.setattr(_prune_checkpoint, "outcomes", lambda *_, **__: pytest.fail("it worked"))
    with pytest.raises((FileError, InvalidValueError), match=message):
        prune(folder, out, report=out.parent / report)
    assert list(out.parent.iterdir()) == []


def test_nothing_to_cut_leaves_nothing(folder, out):
    with pytest.raises(InvalidValueError, match="nothing was written"):
        prune(folder, out, fit_cutoff=1e-9)
    assert list(out.parent.iterdir()) == []


def test_an_input_that_is_away_for_a_while(folder, out, unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr("rmtspec.report.alike._MOST", 1)  # else all are read before one is done
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    shard = moved / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()

    def away(*_):
        shard.unlink(missing_ok=True)

    with pytest.raises(FileError, match=r"cannot be read at '.*What was done is kept in"):
        prune(moved, out, progress=away)
    assert list((work_path(out) / "content").iterdir()) == []
    shard.write_bytes(content)
    done = prune(moved, out)
    shutil.rmtree(moved)
    same(out, unbroken, "factors", done)


def test_another_predicate_of_the_same_name(folder, out):
    """The settings tell them apart by their names only."""
    work = stopped(folder, out, include=lambda name, _: True)
    message = rf"{work} holds the work of another plan, which cuts 3 .* otherwise name another"
    with pytest.raises(FileError, match=message):
        prune(folder, out, include=lambda name, _: name[0] in "ab")
    done = prune(folder, out, include=lambda name, _: name != "")
    assert [row["name"] for row in done.rows if row["action"] == "split"] == CUT


def test_a_plan_is_part_of_the_work(folder, out, unbroken, tmp_path):
    plan = prune_checkpoint(folder, None, dry_run=True, **OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, _cutting, "split", 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoint(folder, out, plan=plan)
    edited = Report.from_dict(plan.to_dict())
    edited.row("c.weight")["rank"] += 1
    with pytest.raises(FileError, match=r"other options \(plan was"):
        prune_checkpoint(folder, out, plan=edited)
    plan.to_json(tmp_path / "plan.json")
    prune_checkpoint(folder, out, plan=Report.from_json(tmp_path / "plan.json"))
    (tmp_path / "plan.json").unlink()
    same(out, unbroken, "factors")


def test_in_use_is_said_for_the_journal_of_prune(folder, out):
    work = stopped(folder, out)
    header = json.loads((work / "journal.jsonl").read_bytes().splitlines()[0])
    with (
        open_journal(work / "journal.jsonl", header),
        pytest.raises(
            FileError, match=r"in use by another run\. Wait until it ends, or name another fol"
        ),
    ):
        prune(folder, out)
