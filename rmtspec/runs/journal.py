"""A journal of a long run: one line of JSON per finished piece, so a kill costs one piece.

The last key of each line is the CRC-32 of what comes before it. Journals of schema 1, which earlier
versions wrote, have none and are read without that check.
"""

import contextlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rmtspec._files.reading import open_regular
from rmtspec._files.writing import PathLike, cause, file_target
from rmtspec.errors import FileError

SCHEMA = 2
#: Also read: its lines need no checksum.
_WITHOUT_CHECKSUMS = 1
#: What ends a line: the checksum of the text before it.
_CHECKSUM = re.compile(rb',"crc32":"([0-9a-f]{8})"\}$')
_FORMAT = "rmtspec journal"
#: How its first line begins, within so many bytes.
_BEGINNING = re.compile(rb'\{"schema": ?\d{1,9}, ?"format": ?"rmtspec journal"')
_HEAD = 100
#: Keys of the first line that must be equal for a run to resume, and what differs otherwise.
_SAME = {
    "command": "another command", "checkpoint": "another checkpoint",
    "settings": "other options", "versions": "other versions of the packages",
}  # fmt: skip


#: Settings that journals of earlier versions lack, at the values that those versions had.
_LATER = {"noise": "mp", "rng": 0}


class Journal:
    """The lines that were there when the journal was opened, and a way to add one."""

    def __init__(self, path: Path, entries: list[dict[str, Any]], stream: IO[bytes]) -> None:
        self.path = path
        self.entries = entries
        self._stream = stream

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append a line; it survives the death of this process once this returns."""
        try:
            _write(self._stream, _line(entry))
        except OSError as error:
            raise FileError(
                f"{self.path} cannot be written: {cause(error)}. It holds what was done so "
                "far: free some space and run the same command again."
            ) from error


@contextlib.contextmanager
def open_journal(
    path: PathLike,
    header: Mapping[str, Any],
    *,
    way_out: str = "name another file, or delete this one",
) -> Iterator[Journal]:
    """Open a journal to resume from, or begin one; its folder must exist.

    `header` has the "command", "checkpoint", "settings" and "versions" of the run, JSON-ready;
    `way_out` is what error messages suggest if the journal cannot be used. A last line that a kill
    cut short is removed, and its piece is done again.

    Raises
    ------
    FileError
        The file is not a journal of rmtspec, belongs to another run (the message says what
        differs and what to do), is in use, is damaged in the middle, or cannot be read or written.
    """
    target = file_target(path)
    first = {"schema": SCHEMA, "format": _FORMAT, **header}
    try:
        # Not in append mode: a line that was cut short is overwritten. Unbuffered: closing would
        # otherwise try again to write what a full disk has refused.
        stream = os.fdopen(os.open(target, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    except OSError as error:
        raise _unusable(target, error) from error
    with stream:
        _lock(stream, target, way_out)
        try:
            entries, end = _read(stream, target, first, way_out)
            stream.truncate(end)
            stream.seek(end)
            if end == 0:
                _write(stream, _line(first))
        except FileError:
            raise
        except OSError as error:
            raise _unusable(target, error) from error
        yield Journal(target, entries, stream)


def is_journal(path: Path) -> bool:
    """Tell whether a file begins as a journal of this package does."""
    try:
        with open_regular(path) as stream:
            return _BEGINNING.match(stream.read(_HEAD)) is not None
    except OSError:
        return False


def _unusable(path: Path, error: OSError) -> FileError:
    return FileError(f"{path} cannot be used: {cause(error)}. Keep the journal somewhere else.")


def _read(
    stream: IO[bytes], path: Path, first: dict[str, Any], way_out: str
) -> tuple[list[dict[str, Any]], int]:
    """Return the entries of a journal after its first line, and where the complete lines end."""
    content = stream.read()
    end = content.rfind(b"\n") + 1
    lines = content[:end].splitlines()
    if not lines:
        if content and not _line(first).startswith(content):
            raise _not_a_journal(path, way_out)
        return [], 0
    parsed: list[dict[str, Any]] = []
    checked = False
    for number, line in enumerate(lines, 1):
        try:
            entry = _checked(line)
            if number == 1:
                checked = entry.get("schema") == SCHEMA
            if checked and "crc32" not in entry:
                raise ValueError("no checksum")
            entry.pop("crc32", None)
        except (ValueError, RecursionError):
            if number == 1:
                raise _not_a_journal(path, way_out) from None
            if number == len(lines):  # the file system may have kept only part of it
                end -= len(line) + 1
                break
            raise FileError(
                f"{path} is damaged at line {number}. Delete the file, or that line and all that "
                "follow, and run again."
            ) from None
        if number == 1 and entry.get("format") != _FORMAT:
            raise _not_a_journal(path, way_out)
        parsed.append(entry)
    header, entries = parsed[0], parsed[1:]
    if header.get("schema") not in (SCHEMA, _WITHOUT_CHECKSUMS):
        raise FileError(
            f"{path} has schema {header.get('schema')}; this version of rmtspec writes {SCHEMA}. "
            f"{_sentence(way_out)}"
        )
    for key, what in _SAME.items():
        old, new = header.get(key), first.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            old = {name: value for name, value in _LATER.items() if name in new} | old
        if old != new:
            raise FileError(
                f"{path} is the journal of {what}{_difference(old, new)}. Run the same command on "
                f"the same checkpoint to resume it; otherwise {way_out}."
            )
    return entries, end


def _not_a_journal(path: Path, way_out: str) -> FileError:
    return FileError(
        f"{path} is not a journal of rmtspec; expected a file that does not exist yet or one that "
        f"an earlier run wrote. {_sentence(way_out)}"
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _difference(old: Any, new: Any) -> str:
    """Return the first difference in words; empty if there is nothing short to say."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return ""
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            return f" ({key} was {str(old.get(key))[:60]}, is now {str(new.get(key))[:60]})"
    return ""


def _line(entry: Mapping[str, Any]) -> bytes:
    # ASCII: names of files and tensors may have characters that UTF-8 cannot encode.
    text = json.dumps(entry, allow_nan=False, separators=(",", ":")).encode("ascii")
    return b'%s,"crc32":"%08x"}\n' % (text[:-1], zlib.crc32(text[:-1]))


def _checked(line: bytes) -> dict[str, Any]:
    """Return the entry in a line; raise ValueError if it is damaged."""
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    if "crc32" in entry:
        match = _CHECKSUM.search(line)
        if match is None or int(match[1], 16) != zlib.crc32(line[: match.start()]):
            raise ValueError("another checksum")
    return entry


def _write(stream: IO[bytes], content: bytes) -> None:
    while content:  # an unbuffered stream may write less than it is given
        content = content[stream.write(content) :]


def _lock(stream: IO[bytes], path: Path, way_out: str) -> None:
    """Keep two runs from writing to the same journal, if the system can."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileError(
            f"{path} is in use by another run. Wait until it ends, or {way_out.partition(',')[0]}."
        ) from None
    except OSError:  # a file system without locks
        return
