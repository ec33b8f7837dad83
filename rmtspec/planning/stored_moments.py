"""Moments that stay in their file: each is mapped when it is asked for, and let go after use."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.stored import MappedTensor, named_dtype


class OpenFile:
    """A file that is open for reading as long as this is used."""

    def __init__(self, path: Path) -> None:
        self.stream = path.open("rb")
        weakref.finalize(self, self.stream.close)


class StoredMoments(Mapping[str, list[NDArray[Any]]]):
    """Lists of matrices by name, in a file that stays open, so that it may be deleted meanwhile.

    A mapped matrix counts as memory of this process as soon as it has been read, until it is let
    go. So none is kept here, but for the last few, which several layers in a row may share.
    """

    def __init__(self, file: OpenFile, tensors: Mapping[str, Sequence[MappedTensor]]) -> None:
        self._file = file
        self._tensors = {name: list(of) for name, of in tensors.items()}

    def __getitem__(self, name: str) -> list[NDArray[Any]]:
        return list(_mapped(self, name))

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:  # for other processes, and for copies
        return dict, ({name: [np.array(a) for a in arrays] for name, arrays in self.items()},)

    def read(self, name: str) -> list[NDArray[Any]]:
        """Return the matrices of that name, mapped anew."""
        return [self._map(tensor) for tensor in self._tensors[name]]

    def _map(self, tensor: MappedTensor) -> NDArray[Any]:
        raw: NDArray[Any] = np.memmap(
            self._file.stream, np.uint8, "r", tensor.begin, (tensor.nbytes,)
        )
        return raw.view(named_dtype(tensor.numpy_name)).reshape(tensor.shape)


@lru_cache(maxsize=3)
def _mapped(stored: StoredMoments, name: str) -> list[NDArray[Any]]:
    return stored.read(name)
