"""Writing files so that a failure leaves what was there intact: write beside it, then rename."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmtspec.errors import FileError, InvalidTypeError

#: Matches the names of files being written; a killed process may leave one behind.
TEMPORARY = ".rmtspec-*.tmp"
#: What functions of this package take as a path.
PathLike = str | os.PathLike[str]


def write_atomically(path: PathLike, content: str | bytes) -> Path:
    """Write `content` to `path` as `finished_file` does, text as UTF-8.

    What UTF-8 lacks (halves of surrogate pairs, from file names in other encodings) is written
    with a backslash, as JSON writes it.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with finished_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return Path(path)


def json_text(content: dict[str, Any], path: PathLike | None = None) -> str:
    """Return JSON-ready values as JSON for people to read; write it to `path` if given."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if path is not None:
        write_atomically(path, text)
    return text


@contextlib.contextmanager
def finished_file(path: PathLike) -> Iterator[Path]:
    """Give a new file beside `path` to write to; it takes that name if no error is raised.

    On any failure a file that was there before stays as it was. The folder must exist.
    """
    target = file_target(path)
    temporary = _create_beside(target)
    hint = "What was there is unchanged; free space or choose another place."
    try:
        with _file_errors(f"{target} cannot be written", hint):
            yield temporary
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o7777)
            temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def empty_folder(path: PathLike) -> Path:
    """Return `path` if it is an empty folder, or if a folder can be made there."""
    folder = _path(path)
    with _file_errors(f"{folder} cannot be made", "Name another one."):
        if folder.is_dir():
            if any(folder.iterdir()):
                raise FileError(
                    f"{folder} is not empty; expected an empty folder, or one that does not exist "
                    "yet. Name another one."
                )
            if os.path.ismount(folder) or not os.access(folder.absolute().parent, os.W_OK):
                raise FileError(
                    f"{folder} cannot be replaced by the finished folder: it is a mount point or "
                    "in a write-protected place. Name a folder inside it."
                )
            return folder
        if folder.exists() or folder.is_symlink():
            raise FileError(f"{folder} is a file; expected a folder. Name another one.")
        parent = folder.absolute().parent
        if not parent.is_dir():
            raise _no_parent(folder, parent)
        if not os.access(parent, os.W_OK):
            raise FileError(f"{folder} cannot be made: {parent} is write-protected.")
    return folder


@contextlib.contextmanager
def finished_folder(path: PathLike) -> Iterator[Path]:
    """Give a new folder beside `path` to write into; it takes that name if no error is raised.

    On any failure nothing is left at `path` or beside it.
    """
    target = Path(os.path.realpath(empty_folder(path)))
    work = target.parent / f".rmtspec-{secrets.token_hex(8)}.tmp"
    hint = "Nothing was left there; free space or choose another place."
    try:
        with _file_errors(f"{path} cannot be written", hint):
            work.mkdir()
            yield work
            work.replace(target)  # replaces an empty folder too
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def check_outside(out: PathLike, source: PathLike) -> None:
    """Raise if the new folder `out` would be in the folder `source`, which is only read."""
    read, made = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    if read.is_dir() and made.is_relative_to(read):
        raise FileError(
            f"{out} is in {source}, which is only read; expected a folder elsewhere. Name another "
            "one."
        )


def check_space(out: PathLike, needed: int) -> None:
    """Raise if the disk of the new folder `out` has fewer than `needed` free bytes."""
    free = shutil.disk_usage(Path(os.path.realpath(out)).parent).free
    if needed > free:
        raise FileError(
            f"{out} cannot be written: it needs {needed:,} bytes, and {free:,} are free. Free "
            "space, or choose another place."
        )


def check_writable(path: PathLike) -> None:
    """Raise now what `write_atomically` would raise later for this path."""
    _create_beside(file_target(path)).unlink()


def output_folder(path: PathLike) -> Path:
    """Return `path` as a folder to write into; it is made if its parent exists."""
    folder = _path(path)
    with _file_errors(f"{folder} cannot be made", "Name another one."):
        if folder.exists() and not folder.is_dir():
            raise FileError(f"{folder} is a file; expected a folder. Name another one.")
        try:
            folder.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise _no_parent(folder, folder.parent) from None
    return folder


def file_target(path: PathLike) -> Path:
    """Return the file that `path` names, links followed; its folder must exist."""
    given = _path(path)
    with _file_errors(f"{given} cannot be written"):
        target = Path(os.path.realpath(given))
        if target.is_dir():
            raise FileError(f"{given} is a folder; expected a file name to write to.")
        if target.exists() and not target.is_file():
            raise FileError(f"{given} is not a regular file; expected a file name to write to.")
        if not target.parent.exists():
            raise FileError(
                f"{given} cannot be written: the folder {given.parent} does not exist. "
                "Make it first, or write elsewhere."
            )
        if not target.parent.is_dir():
            raise FileError(f"{given} cannot be written: {given.parent} is a file, not a folder.")
    if target.exists() and not os.access(target, os.W_OK):
        raise FileError(f"{given} is write-protected. Write elsewhere, or make it writable.")
    return target


def _create_beside(target: Path) -> Path:
    """Create an empty file in the folder of `target`, with the permissions of a new file."""
    temporary = target.parent / f".rmtspec-{secrets.token_hex(8)}.tmp"
    with _file_errors(f"{target} cannot be written", "Choose a folder you may write to."):
        temporary.touch(exist_ok=False)
        if len(os.fsencode(target.name)) > 255:
            temporary.unlink()
            raise OSError("the file name is too long")
    return temporary


def _path(path: PathLike) -> Path:
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise InvalidTypeError(f"The path is {path!r}; expected text or a pathlib.Path.")
    return Path(path)


@contextlib.contextmanager
def _file_errors(problem: str, hint: str = "") -> Iterator[None]:
    """Raise an error of the system as a FileError that states the problem and its cause."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{problem}: {cause(error)}. {hint}".rstrip()) from error


def _no_parent(folder: Path, parent: Path) -> FileError:
    return FileError(f"{folder} cannot be made: {parent} does not exist. Make that folder first.")


def cause(error: OSError) -> str:
    """Return what went wrong as the system says it, in lower case."""
    return (error.strerror or str(error)).lower()
