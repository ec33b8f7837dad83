"""Calibrating the model in a folder on a text: the work is kept next to the new folder."""

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rmtspec._files.reading import open_regular
from rmtspec._files.writing import PathLike, cause
from rmtspec._frameworks import calibration_on
from rmtspec._records import versions
from rmtspec.checkpoint.listing import Checkpoint
from rmtspec.errors import FileError
from rmtspec.planning.calibration import Calibration
from rmtspec.runs.fingerprint import fingerprint
from rmtspec.runs.hidden_folder import JOURNAL, hidden_beside, make_hidden, remove_hidden
from rmtspec.runs.journal import Journal, open_journal
from rmtspec.runs.targets import refuse_factors

#: Packages that the moments depend on; an adapter says what to do where one is missing.
_FRAMEWORKS = ("torch", "transformers")


def calibration_path(out: PathLike) -> Path:
    """Return the hidden folder in which the calibration for `out` is kept."""
    return hidden_beside(out, "rmtspec-calibration")


class CalibrationWork(NamedTuple):
    """Where an adapter keeps the work, what was done of it, and who is told about it."""

    place: Path
    journal: Journal
    say: Callable[[str], object]


@contextlib.contextmanager
def calibrated_on(
    listed: Checkpoint,
    text: Path,
    out: PathLike | None,
    *,
    sequences: int,
    objective: str | None,
    say: Callable[[str], object],
    progress: Any = None,
) -> Iterator[Calibration]:
    """Give the calibration of a language model on a text, for the pruning of it into `out`.

    The moments are kept in a hidden folder next to `out` until that is done. After an interrupt, a
    kill or an error the next call with the same text and options goes on where this one stopped.
    Without `out` they lie in a temporary folder.

    Raises
    ------
    FileError
        The text cannot be read, the folder is of no language model, the disk has too little space,
        or the hidden folder holds the work of another call.
    """
    refuse_factors(listed)
    options: dict[str, Any] = {
        "sequences": sequences, "objective": objective, "progress": progress, "stored": True
    }  # fmt: skip
    if out is None:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            place = Path(temporary)
            with open_journal(place / JOURNAL, {}) as journal:
                work = CalibrationWork(place, journal, say)
                yield calibration_on(listed.path, text, work=work, **options)
        return
    header = {
        "command": "prune --calibration", "checkpoint": fingerprint(listed),
        "settings": {"text": _digest(text), "sequences": sequences, "objective": objective},
        "versions": versions(*(name for name in _FRAMEWORKS if find_spec(name))),
    }  # fmt: skip
    place = calibration_path(out)
    make_hidden(place)
    way_out = f"name another folder, or delete {place}"
    with open_journal(place / JOURNAL, header, way_out=way_out) as journal:
        try:
            work = CalibrationWork(place, journal, say)
            yield calibration_on(listed.path, text, work=work, **options)
        except BaseException:
            if _done(place):
                say(f"The calibration so far is kept in {place}: the same command goes on with it.")
            else:
                remove_hidden(place)
            raise
        remove_hidden(place)


def _digest(text: Path) -> str:
    try:
        with open_regular(text) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{text} cannot be read: {cause(error)}.") from error


def _done(place: Path) -> bool:
    """Tell whether there is something to go on with."""
    with contextlib.suppress(OSError):
        return len((place / JOURNAL).read_bytes().splitlines()) > 1
    return False
