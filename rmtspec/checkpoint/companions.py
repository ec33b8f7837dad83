"""The other files of a checkpoint's folder: configs, tokenizers, licences."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from rmtspec._frameworks import SUFFIXES
from rmtspec.checkpoint.manifest import MANIFEST
from rmtspec.checkpoint.paths import INDEX, PLAIN

#: Suffixes of files that hold the same weights in other formats.
_WEIGHTS = (*PLAIN, *SUFFIXES, ".gguf", ".onnx", ".h5", ".msgpack", ".ot", ".tflite", ".mlmodel")


def companions(path: Path, read: Iterable[Path] = ()) -> tuple[list[Path], list[str]]:
    """Return the files to copy along, and the names of what stays behind but for those `read`.

    Weights in other formats, folders and hidden files stay behind. A checkpoint that was given as
    a file has no companions.
    """
    if not path.is_dir():
        return [], []
    known = {file.name for file in read}
    copied, left = [], []
    for place in sorted(path.iterdir()):
        name = place.name
        if name in known or name.endswith(INDEX) or name == MANIFEST or name.startswith("."):
            continue
        if place.is_file() and place.suffix.lower() not in _WEIGHTS:
            copied.append(place)
        else:
            left.append(f"{name}/" if place.is_dir() else name)
    return copied, left


def copy_companions(path: Path, folder: Path) -> None:
    """Copy them into a folder, what links point to in place of links."""
    for place in companions(path)[0]:
        shutil.copyfile(place, folder / place.name)
