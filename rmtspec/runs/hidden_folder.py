"""A hidden folder for work that can be resumed: made for this user alone, known by its journal."""

import contextlib
import hashlib
import os
import shutil
import stat
from pathlib import Path

from rmtspec._files.writing import PathLike, cause
from rmtspec.errors import FileError
from rmtspec.runs.journal import is_journal

JOURNAL = "journal.jsonl"
#: For this user alone: in a shared folder nobody else may plant links in it.
_PRIVATE = 0o700
#: Bytes that a name may have on most file systems.
_LONGEST_NAME = 255


def hidden_beside(out: PathLike, suffix: str) -> Path:
    """Return the hidden folder in which the work on `out` is kept, ".out.suffix".

    Where that name would be too long for a file system, its end is a digest.
    """
    target = Path(os.path.realpath(out))
    name = os.fsencode(target.name)
    if len(name) + len(suffix) + 2 > _LONGEST_NAME:
        digest = hashlib.sha256(name).hexdigest()[:16]
        return target.parent / f".{target.name[:40]}-{digest}.{suffix}"
    return target.parent / f".{target.name}.{suffix}"


def make_hidden(place: Path) -> bool:
    """Make a hidden folder, or take the one that an earlier call left; tell whether it is new.

    Raises
    ------
    FileError
        What is there is a link, or was not made by this package for this user: it is left as it
        is. Or the folder cannot be made.
    """
    try:
        place.mkdir(mode=_PRIVATE)
    except FileExistsError:
        try:
            strange = _strange(place)
        except OSError as error:
            strange = f"cannot be read: {cause(error)}"
        if strange:
            raise FileError(
                f"{place}, where the work is kept, {strange}. It is left as it is: move it away, "
                "or name another place for the result."
            ) from None
        return False
    except OSError as error:
        raise FileError(f"{place} cannot be made: {cause(error)}. Name another place.") from error
    return True


def remove_hidden(place: Path) -> None:
    """Remove a hidden folder, its journal last, so that it stays recognisable after a kill."""
    with contextlib.suppress(OSError):
        for entry in place.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != JOURNAL:
                entry.unlink()
        (place / JOURNAL).unlink(missing_ok=True)
        place.rmdir()


def _strange(place: Path) -> str:
    """Return what tells that a folder is not one that this package made; "" if nothing does."""
    about = place.lstat()
    if not stat.S_ISDIR(about.st_mode):
        return "is a link" if stat.S_ISLNK(about.st_mode) else "is a file"
    if hasattr(os, "geteuid") and about.st_uid != os.geteuid():
        return "belongs to another user"
    entries = list(place.iterdir())
    if any(entry.is_symlink() for entry in entries):
        return "has links in it"
    journal = place / JOURNAL
    if entries in ([], [journal]):  # nothing to lose; a kill came early, or late
        return ""
    return "" if is_journal(journal) else "has no journal of rmtspec"
