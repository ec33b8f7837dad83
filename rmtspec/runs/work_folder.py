"""Making a folder that takes hours: work beside it that a later call goes on with."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rmtspec._files import TEMPORARY, PathLike, cause, empty_folder
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError
from rmtspec.runs.journal import Journal, open_journal

#: In the hidden folder: what becomes the folder that is made.
_CONTENT = "content"
#: Key of the journal's line that says that the content is whole.
FINISHED = "finished"
_JOURNAL = "journal.jsonl"


class WorkFolder:
    """A hidden folder beside `out`, with a journal and what is finished of its content.

    Attributes
    ----------
    out : Path
        The folder that is made.
    path : Path
        Where the work is.
    content : Path
        The folder that becomes `out`.
    journal : Journal
        Of the work.
    """

    def __init__(self, out: Path, path: Path, journal: Journal) -> None:
        self.out, self.path, self.journal = out, path, journal
        self.content = path / _CONTENT

    def finish(self) -> None:
        """Give the content its name; once only."""
        if self.content.exists():
            for left in self.content.glob(TEMPORARY):  # of a kill while a small file was written
                left.unlink()
            _sync(self.content)
            self.content.replace(self.out)  # an empty folder in its place is replaced too
            _sync(self.out.parent)

    def restart(self) -> None:
        """Forget the content made so far; what the journal holds of other work stays."""
        shutil.rmtree(self.content, ignore_errors=True)
        self.content.mkdir(exist_ok=True)


def work_path(out: PathLike) -> Path:
    """Return where the work on `out` is kept."""
    target = Path(os.path.realpath(out))
    return target.parent / f".{target.name}.rmtspec-work"


def written_bytes(out: PathLike) -> int:
    """Return the bytes of the content that an earlier call wrote."""
    content = work_path(out) / _CONTENT
    return sum(file.stat().st_size for file in content.iterdir()) if content.is_dir() else 0


def is_finished(out: PathLike) -> bool:
    """Tell whether `out` has its name already, and only the work beside it is to be removed."""
    place = work_path(out)
    with contextlib.suppress(OSError):
        place.rmdir()  # empty: a kill came just before it was removed
    moved = (place / _JOURNAL).exists() and not (place / _CONTENT).exists()
    return moved and Path(out).is_dir() and any(Path(out).iterdir())


@contextlib.contextmanager
def work_folder(out: PathLike, header: Mapping[str, Any]) -> Iterator[WorkFolder]:
    """Give a folder to work in, the one that an earlier call left if it was for the same work.

    When all went well, it is removed (`WorkFolder.finish` has moved its content before). An error
    leaves it for the next call where something was done, or an interrupt; an error of the options
    counts only content as done, as other options have no use for the rest.
    """
    if not is_finished(out):
        empty_folder(out)
    target, place = Path(os.path.realpath(out)), work_path(out)
    began = not place.exists()
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(f"{out} cannot be made: {cause(error)}. Name another place.") from error
    try:
        way_out = f"name another folder, or delete {place}"
        with open_journal(place / _JOURNAL, header, way_out=way_out) as journal:
            folder = WorkFolder(target, place, journal)
            if not journal.entries:
                empty_folder(out)
                folder.restart()  # what is there without a line about it is of other work
            elif not is_finished(out):
                folder.content.mkdir(exist_ok=True)
            elif not any(FINISHED in entry for entry in journal.entries):
                empty_folder(out)  # raises: what is there is not of this work
            yield folder
    except BaseException as error:
        _leave(out, place, began, error)
        raise
    _remove(place)


def _leave(out: PathLike, place: Path, began: bool, error: BaseException) -> None:
    """Keep the work where a later call can go on with it, and say so; else remove it."""
    if isinstance(error, OSError) and not isinstance(error, FileError):
        raise FileError(
            f"{out} cannot be written: {cause(error)}. What was done is kept in {place}: free "
            "space and run the same command again, or delete it."
        ) from error
    if not isinstance(error, Exception):
        return
    done = _anything_done(place, error)
    if began and not done:
        _remove(place)
    elif done and isinstance(error, FileError) and str(place) not in str(error):
        raise FileError(
            f"{error} What was done is kept in {place}: the same command goes on with it."
        ) from error


def _anything_done(place: Path, error: Exception) -> bool:
    """Tell whether the next call could go on with something after this error."""
    with contextlib.suppress(OSError):
        if any((place / _CONTENT).iterdir()):
            return True
    if isinstance(error, InvalidValueError | InvalidTypeError):
        return False
    with contextlib.suppress(OSError), (place / _JOURNAL).open("rb") as stream:
        return len(list(itertools.islice(stream, 2))) == 2
    return False


def _remove(place: Path) -> None:
    """Remove the work; the journal last, so that a kill meanwhile leaves it recognisable."""
    shutil.rmtree(place / _CONTENT, ignore_errors=True)
    with contextlib.suppress(OSError):
        (place / _JOURNAL).unlink(missing_ok=True)
        place.rmdir()


def _sync(folder: Path) -> None:
    """Bring a folder's entries to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
