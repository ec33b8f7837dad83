"""Writing files so that a failure leaves what was there whole: write beside, then rename."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmtspec.errors import FileError, InvalidTypeError

#: Matches the names of what is being written; a kill may leave one behind.
TEMPORARY = ".rmtspec-*.tmp"
#: What `write_atomically` and its callers take as a path.
PathLike = str | os.PathLike[str]


def write_atomically(path: PathLike, content: str | bytes) -> Path:
    """Write `content` to `path` in one step, text as UTF-8.

    What UTF-8 lacks (halves of surrogate pairs, from names of files in other encodings) is
    written with a backslash, as JSON does it.

    The content goes to a new file in the same folder, which then takes the name. Whatever fails,
    a file that was there before is kept as it was. The folder must exist.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with finished_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return Path(path)


@contextlib.contextmanager
def finished_file(path: PathLike) -> Iterator[Path]:
    """Give a new file beside `path` to write to; it takes that name when all went well.

    Whatever fails, a file that was there before is kept as it was. The folder must exist.
    """
    target = file_target(path)
    temporary = _create_beside(target)
    try:
        yield temporary
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o7777)
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise FileError(
                f"{target} cannot be written: {cause(error)}. What was there is unchanged; "
                "free space or choose another place."
            ) from error
        raise


def read_json(path: PathLike, what: str, schema: int) -> dict[str, Any]:
    """Return the object in a JSON file of ours, or raise where it is not `what`.

    `schema` is the version of the format written today: a file of a later one is refused.
    """
    file = _path(path)
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise FileError(f"{file} cannot be read: {cause(error)}. Check the path.") from error
    except ValueError as error:
        raise FileError(f"{file} is not {what}: it is no JSON ({error}).") from error
    version = content.get("schema") if isinstance(content, dict) else None
    if type(version) is not int:
        raise FileError(f"{file} is not {what}: it has no number under 'schema'.")
    if version > schema:
        raise FileError(
            f"{file} has schema {version}; this version of rmtspec reads up to {schema}. "
            "Update rmtspec: pip install --upgrade rmtspec."
        )
    found: dict[str, Any] = content
    return found


def empty_folder(path: PathLike) -> Path:
    """Return `path` if a folder of that name can be made there, or is one and empty."""
    folder = _path(path)
    try:
        if folder.is_dir():
            if any(folder.iterdir()):
                raise FileError(
                    f"{folder} is not empty; expected a folder that does not exist yet or has "
                    "nothing in it. Name another one."
                )
            if os.path.ismount(folder) or not os.access(folder.absolute().parent, os.W_OK):
                raise FileError(
                    f"{folder} cannot be replaced by the finished folder, being a mount point or "
                    "in a write-protected place. Name one inside it."
                )
            return folder
        if folder.exists() or folder.is_symlink():
            raise FileError(f"{folder} is a file; expected a folder. Name another one.")
        parent = folder.absolute().parent
        if not parent.is_dir():
            raise FileError(
                f"{folder} cannot be made: {parent} does not exist. Make that folder first."
            )
        if not os.access(parent, os.W_OK):
            raise FileError(f"{folder} cannot be made: {parent} is write-protected.")
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{folder} cannot be made: {cause(error)}. Name another one.") from error
    return folder


@contextlib.contextmanager
def finished_folder(path: PathLike) -> Iterator[Path]:
    """Give a new folder beside `path` to write into; it takes that name when all went well.

    Whatever fails, nothing is left under `path`, and nothing beside it.
    """
    target = Path(os.path.realpath(empty_folder(path)))
    work = target.parent / f".rmtspec-{secrets.token_hex(8)}.tmp"
    try:
        work.mkdir()
        yield work
        work.replace(target)  # an empty folder in its place is replaced too
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, FileError):
            raise FileError(
                f"{path} cannot be written: {cause(error)}. Nothing was left there; free space "
                "or choose another place."
            ) from error
        raise


def check_outside(out: PathLike, source: PathLike) -> None:
    """Raise where the new folder `out` would be in the folder `source`, which is only read."""
    read, made = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    if read.is_dir() and made.is_relative_to(read):
        raise FileError(
            f"{out} is in {source}, which is only read; expected a folder elsewhere. Name another "
            "one."
        )


def check_space(out: PathLike, needed: int) -> None:
    """Raise where the disk of the new folder `out` has fewer free bytes."""
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
    """Return `path` as a folder to write into, made if the folder above it exists."""
    folder = _path(path)
    try:
        if folder.exists() and not folder.is_dir():
            raise FileError(f"{folder} is a file; expected a folder. Name another one.")
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:
        raise FileError(
            f"{folder} cannot be made: {folder.parent} does not exist. Make that folder first."
        ) from None
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{folder} cannot be made: {cause(error)}. Name another one.") from error
    return folder


def file_target(path: PathLike) -> Path:
    """Return the file that `path` names, links followed; its folder must exist."""
    given = _path(path)
    try:
        target = Path(os.path.realpath(given))
        if target.is_dir():
            raise FileError(f"{given} is a folder; expected a file name to write to.")
        if target.exists() and not target.is_file():
            raise FileError(f"{given} is no regular file; expected a file name to write to.")
        if not target.parent.exists():
            raise FileError(
                f"{given} cannot be written: the folder {given.parent} does not exist. "
                "Make it first, or write elsewhere."
            )
        if not target.parent.is_dir():
            raise FileError(f"{given} cannot be written: {given.parent} is a file, not a folder.")
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{given} cannot be written: {cause(error)}.") from error
    if target.exists() and not os.access(target, os.W_OK):
        raise FileError(f"{given} is write-protected. Write elsewhere, or make it writable.")
    return target


def _create_beside(target: Path) -> Path:
    """Create an empty file in the folder of `target`, with the permissions a new file gets."""
    temporary = target.parent / f".rmtspec-{secrets.token_hex(8)}.tmp"
    try:
        temporary.touch(exist_ok=False)
        if len(os.fsencode(target.name)) > 255:
            temporary.unlink()
            raise OSError("the file name is too long")
    except OSError as error:
        raise FileError(
            f"{target} cannot be written: {cause(error)}. Choose a folder you may write to."
        ) from error
    return temporary


def _path(path: PathLike) -> Path:
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise InvalidTypeError(f"The path is {path!r}; expected text or a pathlib.Path.")
    return Path(path)


def cause(error: OSError) -> str:
    """Return what the system says went wrong, in lower case."""
    return (error.strerror or str(error)).lower()
