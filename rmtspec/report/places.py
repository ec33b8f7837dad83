"""Where a report may be written: never over a file that is read, nor unasked over anything else."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from rmtspec._files.reading import open_regular, read_json
from rmtspec._files.writing import PathLike, check_writable, file_target
from rmtspec.checkpoint.listing import CONFIG
from rmtspec.checkpoint.lora import ADAPTER_CONFIG
from rmtspec.checkpoint.manifest import MANIFEST
from rmtspec.checkpoint.paths import INDEX
from rmtspec.errors import FileError
from rmtspec.report.report import SCHEMA, check_suffix
from rmtspec.report.unfreeze import HEAD

#: How a report in CSV begins, and what the head of one in HTML holds.
_CSV = b"name,kind,rows,columns,"
_HTML = b'<meta name="generator" content="rmtspec ', b"<title>rmtspec report</title>"
_HEAD = 2**12


def check_place(path: PathLike, read: Iterable[PathLike] = ()) -> None:
    """Raise now what writing a report to `path` would raise, or what it would destroy.

    `read` are the files and folders that the work reads. Of a folder, every file but a report is
    refused, and so are the files that are read beside a weight file.

    Raises
    ------
    InvalidValueError
        The suffix is not that of a report.
    FileError
        A file of the input has that name, or it cannot be written.
    """
    check_suffix(path)
    check_target(path, read)


def check_target(path: PathLike, read: Iterable[PathLike] = ()) -> None:
    """Raise what `check_place` raises, for a file of any suffix."""
    check_writable(path)
    target = file_target(path)
    for source in map(Path, read):
        if target.exists() and _belongs(target, source):
            raise FileError(
                f"{path} is a file of the input, {source}, which is only read. Name another file "
                "for the report."
            )


def is_report(path: PathLike) -> bool:
    """Tell whether a file is a report, or a list of weights to train, of ours, or is empty."""
    file = Path(path)
    with contextlib.suppress(FileError):
        if file.suffix.lower() == ".json" and file.stat().st_size:
            content = read_json(file, "a report", SCHEMA)
            return isinstance(content.get("rows"), list) and "skipped" in content
    try:
        with open_regular(file) as stream:
            head = stream.read(_HEAD)
    except OSError:
        return False
    begins = head.startswith((_CSV, HEAD.encode()))
    return not head or begins or any(mark in head for mark in _HTML)


def _belongs(target: Path, source: Path) -> bool:
    """Tell whether an existing file is one that is read with `source`."""
    if _same(target, source):
        return True
    folder = source if source.is_dir() else source.parent
    with contextlib.suppress(OSError):
        if not source.is_dir() and not source.name.endswith(INDEX):
            beside = [folder / name for name in (CONFIG, ADAPTER_CONFIG, MANIFEST)]
            return any(_same(target, file) for file in beside)
        within = target.is_relative_to(os.path.realpath(folder))
        linked = any(_same(target, file) for file in folder.iterdir())
        return (within or linked) and not is_report(target)
    return False


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
