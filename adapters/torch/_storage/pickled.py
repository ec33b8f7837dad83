"""Tensors of files that torch.save wrote, mapped into memory; what is pickled is never run."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from rmtspec.adapters.torch._storage.state_dict import read_state_dict
from rmtspec.adapters.torch._weights.layer_kinds import unreadable
from rmtspec.adapters.torch._weights.tensors import to_numpy
from rmtspec.adapting import DTYPES, StoredTensor, Why, cause, named_dtype
from rmtspec.errors import FileError


@dataclass(frozen=True, slots=True)
class PickledTensor(StoredTensor):
    """A tensor in a file of torch.save; calling it returns the array, mapped where it can be."""

    def __call__(self) -> NDArray[Any]:
        """Return the tensor; the file is opened once in a process."""
        file = Path(self.path)
        try:
            stamp = file.stat()
        except OSError as error:
            raise FileError(
                f"{file} cannot be read: {cause(error)}. Was it changed meanwhile? Read it again."
            ) from error
        found = _opened(self.path, stamp.st_size, stamp.st_mtime_ns).get(self.name)
        if found is None or tuple(found.shape) != self.shape:
            raise FileError(f"{file} was changed at {self.name!r} meanwhile. Read it again.")
        return to_numpy(found)


def pickled_tensors(file: Path) -> tuple[list[PickledTensor], list[dict[str, str]]]:
    """Return the tensors of a state dict, and "name" and "reason" of those that cannot be read."""
    stamp = file.stat()
    tensors, skipped = [], []
    for name, value in _opened(str(file), stamp.st_size, stamp.st_mtime_ns).items():
        reason = unreadable(value, codes=True)
        if reason and reason != "empty":
            skipped.append({"name": name, "reason": reason})
            continue
        dtype = to_numpy(value.new_empty(0)).dtype
        short = next((key for key, known in DTYPES.items() if named_dtype(known) == dtype), "")
        if not short:
            skipped.append(
                {"name": name, "reason": Why.UNSUPPORTED.words(dtype=value.dtype, hint="")}
            )
            continue
        tensors.append(
            PickledTensor(
                path=str(file),
                name=name,
                dtype=short,
                numpy_name=DTYPES[short],
                shape=tuple(value.shape),
                nbytes=value.numel() * value.element_size(),
            )
        )
    return tensors, skipped


@functools.lru_cache(maxsize=2)
def _opened(path: str, size: int, changed: int) -> dict[str, torch.Tensor]:
    """Return the state dict of a file of this size and date, mapped."""
    return read_state_dict(path)
