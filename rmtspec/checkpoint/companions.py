"""The other files in the folder of a checkpoint: configs, tokenizers, licences."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from rmtspec._files.reading import open_regular
from rmtspec._files.writing import cause
from rmtspec._frameworks import SUFFIXES
from rmtspec.checkpoint.manifest import MANIFEST
from rmtspec.checkpoint.paths import INDEX, PLAIN
from rmtspec.errors import FileError

#: Suffixes of files that may hold the same weights in another format.
_WEIGHTS = (*PLAIN, *SUFFIXES, ".onnx", ".ot", ".tflite", ".mlmodel")


def companions(path: Path, read: Iterable[Path] = ()) -> tuple[list[Path], list[str]]:
    """Return the files to copy along, and the names of what stays behind, except those in `read`.

    Weights in other formats, folders and hidden files stay behind. A checkpoint given as a file
    has no companions.
    """
    if not path.is_dir():
        return [], []
    known = {file.name for file in read}
    copied, left_behind = [], []
    for place in sorted(path.iterdir()):
        name = place.name
        if name in known or name.endswith(INDEX) or name == MANIFEST or name.startswith("."):
            continue
        if place.is_file() and place.suffix.lower() not in _WEIGHTS:
            copied.append(place)
        else:
            left_behind.append(f"{name}/" if place.is_dir() else name)
    return copied, left_behind


def check_companions(path: Path) -> None:
    """Raise now what copying the companions would raise after all the work."""
    try:
        for place in companions(path)[0]:
            try:
                open_regular(place).close()
            except OSError as error:
                raise FileError(
                    f"{place} cannot be read: {cause(error)}. It would be copied along: check its "
                    "permissions, or move it away."
                ) from error
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read: {cause(error)}. Check its permissions.") from error


def copy_companions(path: Path, folder: Path) -> None:
    """Copy the companions into a folder; links are replaced by what they point to."""
    for place in companions(path)[0]:
        shutil.copyfile(place, folder / place.name)
