"""Reading the weights of Keras: .weights.h5, .h5 and .keras, one variable at a time.

Links to other files, and data that lie in other files, are refused: who wrote a file could
otherwise make it show any file of the reader.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.keras_names import KerasNames
from rmtspec.checkpoint.outputs_first import outputs_first
from rmtspec.checkpoint.safetensors_reader import looks_like
from rmtspec.checkpoint.stored import ZIP_ERRORS, StoredTensor
from rmtspec.errors import FileError, MissingDependencyError
from rmtspec.terms import Why

#: The weights in a .keras archive.
_MEMBER = "model.weights.h5"
_OPTIMIZER = ("optimizer", "optimizer_weights")
#: Nothing that HDF5 or zip compress becomes more than about 1030 times smaller.
_RATIO = 1100
_SMALL = 2**20
_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)


@dataclass(frozen=True, slots=True)
class KerasTensor(StoredTensor):
    """A variable in a file of Keras; `place` is its path in the HDF5 file."""

    place: str

    def _load(self) -> NDArray[Any]:
        """Return the variable."""
        try:
            with _opened(Path(self.path)) as file:
                values: NDArray[Any] = file[self.place][()]
                return values
        except _ERRORS as error:
            raise FileError(
                f"{self.path} is damaged at {self.name!r}: {error}. Copy or save the file again."
            ) from error


def keras_tensors(file: Path) -> tuple[list[StoredTensor], list[dict[str, str]]]:
    """Return the variables of a file of Keras, and what is not read with the reason.

    Raises MissingDependencyError where h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError(
            f"{file} needs the package h5py, which is not installed: pip install 'rmtspec[keras]'."
        ) from None
    tensors: dict[str, StoredTensor] = {}
    skipped: list[dict[str, str]] = []
    try:
        with _opened(file) as opened:
            names = KerasNames(opened)
            for place, found in _datasets(opened, file, h5py):
                if isinstance(found, str):
                    skipped.append({"name": place.strip("/"), "reason": found})
                    continue
                name = names.of(place, found)
                tensor = _tensor(file, place, found, name)
                if isinstance(tensor, str):
                    skipped.append({"name": name, "reason": tensor})
                elif name in tensors:
                    skipped.append({"name": place.strip("/"), "reason": Why.SECOND_ARRAY.words()})
                else:
                    tensors[name] = tensor
    except FileError:
        raise
    except _ERRORS as error:
        with file.open("rb") as stream:
            start = stream.read(8)
        known = start.startswith(b"\x89HDF") or (start[:2] == b"PK" and file.suffix == ".keras")
        what = f"damaged: {error}. Copy or save the file again." if known else ""
        raise FileError(f"{file} is {what or 'not a file of Keras' + looks_like(start)}") from error
    return outputs_first(tensors), skipped


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Give the HDF5 file, which a .keras archive holds as a member."""
    import h5py

    if file.suffix.lower() != ".keras":
        with h5py.File(file, "r") as opened:
            yield opened
        return
    try:
        with zipfile.ZipFile(file) as archive:
            member = archive.getinfo(_MEMBER)
            if member.file_size > _RATIO * member.compress_size + _SMALL:
                raise FileError(
                    f"{file} is damaged: {_MEMBER} announces {member.file_size} bytes and is "
                    f"stored in {member.compress_size}. Save the file again."
                )
            with archive.open(member) as stream, h5py.File(stream, "r") as opened:
                yield opened
    except ZIP_ERRORS as error:
        raise FileError(
            f"{file} is damaged, or no archive of Keras: {error}. Copy or save the file again."
        ) from error


def _datasets(root: Any, file: Path, h5py: Any) -> Iterator[tuple[str, Any]]:
    """Yield each dataset by its path, or why what is there is not read; each object once."""
    waiting, seen = [("", root)], set()
    while waiting:
        place, group = waiting.pop()
        for name in group:
            here = f"{place}/{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise FileError(
                    f"{file} is refused: {here[1:]!r} is a link to another file, "
                    f"{link.filename!r}; expected all weights in this one. Save the model again."
                )
            if isinstance(link, h5py.SoftLink):
                yield here, f"a link to {link.path}"
                continue
            if not place and name in _OPTIMIZER:
                yield here, Why.OPTIMIZER_STATE.words()
                continue
            found = group[name]
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(found, h5py.Group):
                waiting.append((here, found))
            elif isinstance(found, h5py.Dataset):
                if found.external or found.is_virtual:
                    raise FileError(
                        f"{file} is refused: the numbers of {here[1:]!r} lie in another file; "
                        "expected all weights in this one. Save the model again."
                    )
                yield here, found


def _tensor(file: Path, place: str, dataset: Any, name: str) -> StoredTensor | str:
    dtype = dataset.dtype
    if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None:
        return Why.NOT_REAL.words(dtype=dtype, hint="")
    if dataset.shape is None:
        return Why.EMPTY.words()
    nbytes = int(np.prod(dataset.shape, dtype=object)) * dtype.itemsize
    stored = dataset.id.get_storage_size()
    if nbytes > _RATIO * stored + _SMALL:
        return Why.DAMAGED.words(error=f"it announces {nbytes} bytes and stores {stored}")
    tensor = KerasTensor(
        path=str(file), name=name, dtype=dtype.str, numpy_name=dtype.str,
        shape=tuple(dataset.shape), nbytes=nbytes, place=place,
    )  # fmt: skip
    if "depthwise" in tensor.name and tensor.name.endswith("kernel"):
        return Why.DEPTHWISE.words()
    return tensor
