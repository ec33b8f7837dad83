"""The journal of long work: cut, damaged, of other work, in use, and left alone when not ours."""

import errno
import json
import re
import subprocess
import sys

import pytest
from checkpoints import file_limit

from rmtspec.errors import FileError
from rmtspec.runs import journal as _journal
from rmtspec.runs.journal import open_journal

HEADER = {
    "command": "analyze",
    "checkpoint": "abc",
    "settings": {"alpha": 0.2, "include": ["w"]},
    "versions": {"numpy": "2.0"},
}
ENTRIES = [{"name": "größe", "row": [1, 2.5, None]}, {"name": "b\n\udcff"}, {"name": "c"}]


@pytest.fixture
def path(tmp_path):
    """A journal of three entries."""
    path = tmp_path / "scan.jsonl"
    with open_journal(path, HEADER) as journal:
        assert (journal.path, journal.entries) == (path, [])
        for entry in ENTRIES:
            journal.add(entry)
    return path


def entries(path, **changes):
    with open_journal(path, {**HEADER, **changes}) as journal:
        return journal.entries


def test_what_was_added_is_there(path):
    assert entries(path) == ENTRIES
    lines = path.read_text("ascii").splitlines()
    assert len(lines) == 4
    first = json.loads(lines[0])
    assert re.fullmatch("[0-9a-f]{8}", first.pop("crc32"))
    assert first == {"schema": 2, "format": "rmtspec journal", **HEADER}
    with open_journal(path, HEADER) as journal:
        journal.add({"name": "d"})
        assert (
            path.read_text().splitlines()[-1].startswith('{"name":"d","crc32":"')
        )  # with the system at once
    assert entries(path) == [*ENTRIES, {"name": "d"}]


def test_a_line_that_was_cut_is_taken_off_and_done_again(path):
    whole = path.read_bytes()
    starts = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        kept = max(0, sum(start <= cut for start in starts) - 1)
        with open_journal(path, HEADER) as journal:
            assert journal.entries == ENTRIES[:kept]
            for entry in ENTRIES[kept:]:
                journal.add(entry)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("tail", [b"\x00" * 100, b"garbage", b'{"name": ', b"\xff\xfe"])
def test_garbage_at_the_end_is_taken_off(path, tail):
    whole = path.read_bytes()
    for end in (b"", b"\n"):
        path.write_bytes(whole + tail + end)
        assert entries(path) == ENTRIES
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{", b"[1]", b"3", b"\x00\x00", b"\xff", b""])
def test_damage_in_the_middle_is_said_and_left(path, line):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = line + b"\n"
    path.write_bytes(b"".join(lines))
    before = path.read_bytes()
    message = r"scan\.jsonl is damaged at line 3\. Delete the file, or that line and all"
    with pytest.raises(FileError, match=message):
        entries(path)
    assert path.read_bytes() == before
    path.write_bytes(b"".join(lines[:2]))  # as the message says
    assert entries(path) == ENTRIES[:1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": "prune"}, r"of another command\. Run the same command on the same checkpoint"),
        (
            {"checkpoint": "abd"},
            r"of another checkpoint\. Run .* resume it; otherwise name",
        ),
        (
            {"settings": {"alpha": 0.3, "include": ["w"]}},
            r"of other options \(alpha was 0\.2, is now 0\.3\)\. Run the same .* file, or delete",
        ),
        ({"settings": {"include": ["w"]}}, r"other options \(alpha was 0\.2, is now None\)"),
        (
            {"versions": {"numpy": "2.1"}},
            r"other versions of the packages \(numpy was 2\.0, is now 2\.1\)",
        ),
    ],
)
def test_other_work_is_refused_with_the_way_out(path, changes, message):
    before = path.read_bytes()
    with pytest.raises(FileError, match=message):
        entries(path, **changes)
    assert path.read_bytes() == before
    assert entries(path) == ENTRIES


def test_the_way_out_can_be_told(path):
    with (
        pytest.raises(FileError, match=r"resume it; otherwise burn it, or not\."),
        open_journal(path, {**HEADER, "checkpoint": "x"}, way_out="burn it, or not"),
    ):
        pass
    path.write_text("mine")
    with (
        pytest.raises(FileError, match=r"wrote\. Burn it, or not\."),
        open_journal(path, HEADER, way_out="burn it, or not"),
    ):
        pass


@pytest.mark.parametrize(
    "content",
    [b"mine", b"mine\n", b"{}\n", b"[]\n", b"\x00", b"a,b\n1,2\n", b'{"format": "other"}\n',
     b"a\nb\nc\nd\n", b'{\n "schema": 1,\n "rows": []\n}\n', b'{"a": 1}\nb\nc\n',
     b"\xff\xfe\n", b"\n", b'{"schema": 1', b"[" * 100_000 + b"\n"],
)  # fmt: skip
def test_what_is_no_journal_is_left_untouched(tmp_path, content):
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"mine is not a journal of rmtspec; expected a file"):
        entries(path)
    assert path.read_bytes() == content


def test_of_a_later_version(path):
    first, rest = path.read_bytes().split(b"\n", 1)
    later = {key: value for key, value in json.loads(first).items() if key != "crc32"}
    content = _journal._line({**later, "schema": 3}) + rest
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"has schema 3; this version of rmtspec writes 2\. Name"):
        entries(path)
    assert path.read_bytes() == content


def test_an_empty_file_becomes_one(tmp_path):
    path = tmp_path / "empty"
    path.touch()
    assert entries(path) == []
    assert json.loads(path.read_text())["format"] == "rmtspec journal"


def test_in_use_by_another_process(path):
    pytest.importorskip("fcntl")
    code = (
        "import sys, json\nfrom rmtspec.runs.journal import open_journal\n"
        "with open_journal(sys.argv[1], json.loads(sys.argv[2])) as journal:\n"
        "    journal.add({'name': 'theirs'})\n    print('open', flush=True)\n    sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(path), json.dumps(HEADER)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        message = r"in use by another run\. Wait until it ends, or name another file\."
        with pytest.raises(FileError, match=message):
            entries(path)
        other.stdin.close()
    assert entries(path) == [*ENTRIES, {"name": "theirs"}]


def test_in_use_in_this_process_and_after_an_error(path):
    pytest.importorskip("fcntl")
    with open_journal(path, HEADER), pytest.raises(FileError, match="in use"):
        entries(path)
    with pytest.raises(KeyError), open_journal(path, HEADER):
        raise KeyError
    assert entries(path) == ENTRIES


def test_a_file_system_without_locks(path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    assert entries(path) == ENTRIES


def test_places_that_cannot_be_written(path, tmp_path, monkeypatch):
    for place, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "j", "does not exist"),
        (path / "j", "is a file, not a folder"),
        ("/dev/null", "is not a regular file"),
    ):
        with pytest.raises(FileError, match=message):
            entries(place)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_journal.os, "open", refuse)  # tests may run as root
    with pytest.raises(FileError, match=r"new cannot be used: permission denied\. Keep"):
        entries(tmp_path / "new")
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_loses_one_line(path):
    message = r"cannot be written: file too large\. It holds what was done so far: free some space"
    with (
        file_limit(path.stat().st_size + 5),
        pytest.raises(FileError, match=message),
        open_journal(path, HEADER) as journal,
    ):
        journal.add({"name": "d"})
    assert path.read_bytes().endswith(b'{"nam')
    assert entries(path) == ENTRIES


def test_a_full_disk_at_the_first_line(tmp_path):
    with (
        file_limit(20),
        pytest.raises(FileError, match=r"j cannot be used: file too large\. Keep the journal"),
        open_journal(tmp_path / "j", HEADER),
    ):
        pytest.fail("it is open")
    assert entries(tmp_path / "j") == []


def test_nan_cannot_be_added(path):
    with open_journal(path, HEADER) as journal, pytest.raises(ValueError, match="not JSON"):
        journal.add({"name": float("nan")})
    assert entries(path) == ENTRIES
