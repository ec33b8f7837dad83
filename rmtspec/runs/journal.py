"""A journal of long work: a line of JSON for each piece that is done, so that a kill costs one."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rmtspec._files import PathLike, cause, file_target
from rmtspec.errors import FileError

SCHEMA = 1
_FORMAT = "rmtspec journal"
#: Keys of the first line that must be the same for a run to go on, and what they are.
_SAME = {
    "command": "another command",
    "checkpoint": "another checkpoint",
    "settings": "other options",
    "versions": "other versions of the packages",
}


class Journal:
    """Lines that were there when it was opened, and a way to add one."""

    def __init__(self, path: Path, entries: list[dict[str, Any]], stream: IO[bytes]) -> None:
        self.path = path
        self.entries = entries
        self._stream = stream

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append a line; it is with the system when this returns, whatever becomes of us."""
        try:
            _write(self._stream, _line(entry))
        except OSError as error:
            raise FileError(
                f"{self.path} cannot be written: {cause(error)}. What was done so far is in it; "
                "free space and run the same command again."
            ) from error


@contextlib.contextmanager
def open_journal(
    path: PathLike,
    header: Mapping[str, Any],
    *,
    way_out: str = "name another file, or delete this one",
) -> Iterator[Journal]:
    """Open a journal to go on with, or begin one.

    A last line that a kill cut short is taken off: what it stood for is done again.

    Parameters
    ----------
    path : path
        The file; its folder must exist.
    header : mapping
        "command", "checkpoint", "settings" and "versions" of the run, JSON-ready.
    way_out : str
        What to do where it cannot be used, for messages.

    Raises
    ------
    FileError
        No journal of ours, one of other work (the message says what differs and what to do), one
        that another run has open, damaged in the middle, or that cannot be read or written.
    """
    target = file_target(path)
    first = {"schema": SCHEMA, "format": _FORMAT, **header}
    try:
        # Not for appending: a line that was cut is overwritten. Without a buffer: closing it would
        # try once more to write what a full disk has not taken.
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


def _unusable(path: Path, error: OSError) -> FileError:
    return FileError(
        f"{path} cannot be used: {cause(error)}. Choose another place for the journal."
    )


def _read(
    stream: IO[bytes], path: Path, first: dict[str, Any], way_out: str
) -> tuple[list[dict[str, Any]], int]:
    """Return the entries of a journal after its first line, and where the whole lines end."""
    content = stream.read()
    end = content.rfind(b"\n") + 1
    lines = content[:end].splitlines()
    if not lines:
        if content and not _line(first).startswith(content):
            raise _no_journal(path, way_out)
        return [], 0
    parsed = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            if number == 1:
                raise _no_journal(path, way_out) from None
            if number == len(lines):  # a file system may have kept only part of the last one
                end -= len(line) + 1
                break
            raise FileError(
                f"{path} is damaged at line {number}. Delete it, or cut it off before that "
                "line, and run again."
            ) from None
        if number == 1 and entry.get("format") != _FORMAT:
            raise _no_journal(path, way_out)
        parsed.append(entry)
    found, entries = parsed[0], parsed[1:]
    if found.get("schema") != SCHEMA:
        raise FileError(
            f"{path} has schema {found.get('schema')}; this version of rmtspec writes {SCHEMA}. "
            f"{_sentence(way_out)}"
        )
    for key, what in _SAME.items():
        if found.get(key) != first.get(key):
            raise FileError(
                f"{path} is the journal of {what}{_difference(found.get(key), first.get(key))}. "
                f"Run the same command on the same checkpoint to go on with it; else {way_out}."
            )
    return entries, end


def _no_journal(path: Path, way_out: str) -> FileError:
    return FileError(
        f"{path} is no journal of rmtspec; expected a file that does not exist yet or one that an "
        f"earlier run wrote. {_sentence(way_out)}"
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _difference(old: Any, new: Any) -> str:
    """Return the first thing that differs, in words, where it is short enough to say."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return ""
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            return f" ({key} was {str(old.get(key))[:60]}, is now {str(new.get(key))[:60]})"
    return ""


def _line(entry: Mapping[str, Any]) -> bytes:
    # ASCII: the name of a file or tensor may have what UTF-8 has not.
    return json.dumps(entry, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def _write(stream: IO[bytes], content: bytes) -> None:
    while content:  # what has no buffer may take less than it is given
        content = content[stream.write(content) :]


def _lock(stream: IO[bytes], path: Path, way_out: str) -> None:
    """Keep two runs from writing into one journal, where the system can."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileError(
            f"{path} is in use by another run. Wait for its end, or {way_out.partition(',')[0]}."
        ) from None
    except OSError:  # a file system without locks
        return
