"""Making a folder that takes hours: the work is kept next to it, and a later call resumes it."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rmtspec._files.writing import TEMPORARY, PathLike, cause, empty_folder
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError
from rmtspec.runs.hidden_folder import JOURNAL, hidden_beside, make_hidden, remove_hidden
from rmtspec.runs.journal import Journal, open_journal

#: In the hidden folder: what becomes the new folder.
_CONTENT = "content"
#: Key of the line of the journal that says that the content is complete.
FINISHED = "finished"


class WorkFolder:
    """A hidden folder next to `out`: at `path`, with a journal and the `content` so far."""

    def __init__(self, out: Path, path: Path, journal: Journal) -> None:
        self.out, self.path, self.journal = out, path, journal
        self.content = path / _CONTENT

    def finish(self) -> None:
        """Move the content to `out`, unless that has been done."""
        if self.content.exists():
            for left in self.content.glob(TEMPORARY):  # from a kill while a small file was written
                left.unlink()
            _sync(self.content)
            self.content.replace(self.out)  # an empty folder in its place is replaced too
            _sync(self.out.parent)


def work_path(out: PathLike) -> Path:
    """Return the hidden folder in which the work on `out` is kept."""
    return hidden_beside(out, "rmtspec-work")


def written_bytes(out: PathLike) -> int:
    """Return the number of bytes of content that an earlier call wrote."""
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in (work_path(out) / _CONTENT).iterdir())
    return 0


def is_finished(out: PathLike) -> bool:
    """Tell whether `out` is in place already, and only the hidden folder must be removed."""
    place = work_path(out)
    with contextlib.suppress(OSError):
        place.rmdir()  # if it is empty: a kill came just before it was removed
    try:
        moved = (place / JOURNAL).exists() and not (place / _CONTENT).exists()
        return moved and Path(out).is_dir() and any(Path(out).iterdir())
    except OSError:  # a place that cannot be read: what makes the folder says so
        return False


@contextlib.contextmanager
def work_folder(out: PathLike, header: Mapping[str, Any]) -> Iterator[WorkFolder]:
    """Yield a folder to work in, the one that an earlier call left if it was for the same work.

    It is removed after success, when `WorkFolder.finish` has moved its content. An interrupt leaves
    it for the next call, and so does an error if something was done. After an error in the options,
    only content counts as done, because other options cannot use the rest.
    """
    if not is_finished(out):
        empty_folder(out)
    target, place = Path(os.path.realpath(out)), work_path(out)
    began = make_hidden(place)
    try:
        way_out = f"name another folder, or delete {place}"
        with open_journal(place / JOURNAL, header, way_out=way_out) as journal:
            folder = WorkFolder(target, place, journal)
            if not journal.entries:
                empty_folder(out)
                # Content without a line in the journal is from other work.
                shutil.rmtree(folder.content, ignore_errors=True)
                folder.content.mkdir(exist_ok=True)
            elif not is_finished(out):
                folder.content.mkdir(exist_ok=True)
            elif not any(FINISHED in entry for entry in journal.entries):
                empty_folder(out)  # raises: what is there is not from this work
            yield folder
    except BaseException as error:
        _leave(out, place, began, error)
        raise
    remove_hidden(place)


def _leave(out: PathLike, place: Path, began: bool, error: BaseException) -> None:
    """Keep the work if a later call can resume it, and say so; otherwise remove it."""
    if isinstance(error, OSError) and not isinstance(error, FileError):
        raise FileError(
            f"{out} cannot be written: {cause(error)}. What was done is kept in {place}: free "
            "space and run the same command again, or delete it."
        ) from error
    if not isinstance(error, Exception):
        return
    done = _anything_done(place, error)
    if began and not done:
        remove_hidden(place)
    elif done and isinstance(error, FileError) and str(place) not in str(error):
        raise FileError(
            f"{error} What was done is kept in {place}: the same command resumes it."
        ) from error


def _anything_done(place: Path, error: Exception) -> bool:
    """Tell whether the next call could resume something after this error."""
    with contextlib.suppress(OSError):
        if any((place / _CONTENT).iterdir()):
            return True
    if isinstance(error, InvalidValueError | InvalidTypeError):
        return False
    with contextlib.suppress(OSError), (place / JOURNAL).open("rb") as stream:
        return len(list(itertools.islice(stream, 2))) == 2
    return False


def _sync(folder: Path) -> None:
    """Flush the entries of a folder to disk, if the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
