"""Reading the weights of Keras: .weights.h5, .h5 and .keras, one variable at a time.

Links to other files, and data that lie in other files, are refused: who wrote a file could
otherwise make it show any file of the reader.
"""

import contextlib
import importlib.util
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._files.reading import open_regular
from rmtspec.checkpoint.keras_names import KerasNames
from rmtspec.checkpoint.keras_pieces import RATIO, SMALL, Storage, not_unpacked, read_array
from rmtspec.checkpoint.keras_walk import MEMBER, WalkError, found_in
from rmtspec.checkpoint.outputs_first import outputs_first
from rmtspec.checkpoint.safetensors_reader import looks_like
from rmtspec.checkpoint.stored import ZIP_ERRORS, StoredTensor
from rmtspec.errors import FileError, MissingDependencyError
from rmtspec.terms import Why


@dataclass(frozen=True, slots=True)
class KerasTensor(StoredTensor):
    """A variable in a file of Keras."""

    storage: Storage

    def _load(self) -> NDArray[Any]:
        """Return the variable."""
        try:
            with _weights(self.path) as stream:
                return read_array(stream, self.dtype, self.shape, self.storage)
        except FileError:
            raise
        except ZIP_ERRORS as error:
            raise FileError(
                f"{self.path} is damaged at {self.name!r}: {error}. Copy or save the file again."
            ) from error


@contextlib.contextmanager
def _weights(path: str) -> Iterator[IO[bytes]]:
    """Give the HDF5 file, which a .keras archive holds as a member."""
    with open_regular(path) as file:
        if not path.lower().endswith(".keras"):
            yield file
            return
        with zipfile.ZipFile(file) as archive, archive.open(archive.getinfo(MEMBER)) as stream:
            yield stream


def keras_tensors(file: Path) -> tuple[list[StoredTensor], list[dict[str, str]]]:
    """Return the variables of a file of Keras, and what is not read with the reason.

    Raises MissingDependencyError where h5py is not installed.
    """
    if importlib.util.find_spec("h5py") is None:
        raise MissingDependencyError(
            f"{file} needs the package h5py, which is not installed: pip install 'rmtspec[keras]'."
        )
    _check_start(file)
    try:
        found = found_in(str(file))
    except WalkError as error:
        words = f"{file} is damaged: {error}. Copy or save the file again."
        raise FileError(words) from None
    entries = found["entries"]
    _check_inside(file, entries)
    shapes = {e["place"]: tuple(e["shape"] or ()) for e in entries if e["what"] == "array"}
    names = KerasNames(found["names"], shapes)
    tensors: dict[str, StoredTensor] = {}
    skipped: list[dict[str, str]] = []
    for entry in entries:
        place = entry["place"].strip("/")
        if entry["what"] != "array":
            linked = entry["what"] == "link"
            reason = f"a link to {entry['target']}" if linked else Why.OPTIMIZER_STATE.words()
            skipped.append({"name": place, "reason": reason})
            continue
        name = names.of(entry["place"])
        reason = _not_read(entry, name, found["size"])
        if reason:
            skipped.append({"name": name, "reason": reason})
        elif name in tensors:
            skipped.append({"name": place, "reason": Why.SECOND_ARRAY.words()})
        else:
            tensors[name] = KerasTensor(
                path=str(file), name=name, dtype=entry["dtype"], numpy_name=entry["dtype"],
                shape=shapes[entry["place"]], nbytes=_bytes(entry), storage=Storage.of(entry),
            )  # fmt: skip
    return outputs_first(tensors), skipped


def _check_start(file: Path) -> None:
    """Raise `FileError` unless a file begins as one of Keras; an archive is checked for bombs."""
    with file.open("rb") as stream:
        start = stream.read(8)
    archived = file.suffix.lower() == ".keras"
    if not archived:
        if not start.startswith(b"\x89HDF"):
            raise FileError(f"{file} is not a file of Keras{looks_like(start)}")
        return
    try:
        with zipfile.ZipFile(file) as archive:
            member = archive.getinfo(MEMBER)
    except ZIP_ERRORS as error:
        raise FileError(
            f"{file} is damaged, or no archive of Keras: {error}. Copy or save the file again."
        ) from error
    if member.file_size > RATIO * member.compress_size + SMALL:
        raise FileError(
            f"{file} is damaged: {MEMBER} announces {member.file_size} bytes and is stored in "
            f"{member.compress_size}. Save the file again."
        )


def _check_inside(file: Path, entries: list[dict[str, Any]]) -> None:
    """Raise `FileError` if a part of the file lies in another one."""
    for entry in entries:
        place = entry["place"].strip("/")
        if entry["what"] == "other file":
            raise FileError(
                f"{file} is refused: {place!r} is a link to another file, {entry['target']!r}; "
                "expected all weights in this one. Save the model again."
            )
        if entry["what"] == "outside":
            raise FileError(
                f"{file} is refused: the numbers of {place!r} lie in another file; expected all "
                "weights in this one. Save the model again."
            )


def _bytes(entry: Mapping[str, Any]) -> int:
    return int(np.dtype(entry["dtype"]).itemsize * math.prod(entry["shape"]))


def _not_read(entry: Mapping[str, Any], name: str, size: int) -> str:
    """Return why an array in a file of that size is not read, or nothing."""
    if not entry["dtype"]:
        return Why.NOT_REAL.words(dtype=entry["type"], hint="")
    if entry["shape"] is None:
        return Why.EMPTY.words()
    reason = not_unpacked(entry, size)
    if not reason and name.endswith("depthwise_kernel"):
        return Why.DEPTHWISE.words()
    return reason
