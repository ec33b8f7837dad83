"""Tensors in files that torch.save wrote, one at a time; pickled code is never run."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rmtspec.adapters.torch._storage.checksums import check_file
from rmtspec.adapters.torch._storage.state_dict import StoredState, stored_state
from rmtspec.adapters.torch._weights.layer_kinds import unreadable
from rmtspec.adapters.torch._weights.tensors import to_numpy
from rmtspec.adapting import DTYPES, StoredTensor, Why, cause, named_dtype
from rmtspec.errors import FileError


@dataclass(frozen=True, slots=True)
class PickledTensor(StoredTensor):
    """A tensor in a file of torch.save, which is mapped; calling it returns a copy.

    `key` is that of the state dict in the file, if it was given.
    """

    key: str | None

    def _load(self) -> NDArray[Any]:
        """Return the tensor; each process opens the file once."""
        file = Path(self.path)
        try:
            stamp = file.stat()
        except OSError as error:
            raise FileError(
                f"{file} cannot be read: {cause(error)}. Was it changed meanwhile? Read it again."
            ) from error
        check_file(self.path, stamp.st_size, stamp.st_mtime_ns)
        opened = _opened(self.path, stamp.st_size, stamp.st_mtime_ns, self.key)
        tensor = opened.entries.get(self.name)
        if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != self.shape:
            raise FileError(f"{file} was changed at {self.name!r} meanwhile. Read it again.")
        return np.array(to_numpy(tensor))  # a mapping would end the process if the file shrinks


def pickled_tensors(
    file: Path, key: str | None = None
) -> tuple[list[PickledTensor], list[dict[str, str]]]:
    """Return the tensors of a state dict, and "name" and "reason" of all else in the file."""
    stamp = file.stat()
    state = _opened(str(file), stamp.st_size, stamp.st_mtime_ns, key)
    tensors, skipped = [], []
    for name, value in state.entries.items():
        reason, short = unreadable(value, codes=True), ""
        if not reason:
            dtype = to_numpy(value.new_empty(0)).dtype
            short = next((key for key, known in DTYPES.items() if named_dtype(known) == dtype), "")
            reason = Why.UNSUPPORTED.words(dtype=value.dtype, hint="")
            if value.nbytes > max(stamp.st_size, value.untyped_storage().nbytes()):
                stored = value.untyped_storage().nbytes()
                reason = Why.EXPANDED.words(shape=tuple(value.shape), stored=stored)
                short = ""
        if short:
            tensors.append(PickledTensor(
                path=str(file), name=name, dtype=short, numpy_name=DTYPES[short],
                shape=tuple(value.shape), nbytes=value.nbytes, key=key,
            ))  # fmt: skip
        else:
            skipped.append({"name": name, "reason": reason})
    beside = Why.BESIDE_WEIGHTS.words(key=state.key)
    skipped += [{"name": name, "reason": beside} for name in state.others]
    return tensors, skipped


@functools.lru_cache(maxsize=2)
def _opened(path: str, size: int, changed: int, key: str | None) -> StoredState:
    """Return the state dict of a file with this size and time of change, mapped."""
    return stored_state(path, key)
