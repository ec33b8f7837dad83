"""The difference of two tensors in files, and whether there is any."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.checkpoint.stored import StoredTensor, check_unchanged


@dataclass(frozen=True, slots=True)
class DifferenceTensor(StoredTensor):
    """What was added to a tensor between two checkpoints."""

    base: StoredTensor
    tuned: StoredTensor

    def _load(self) -> NDArray[Any]:
        """Return tuned - base in float64."""
        return difference(self.base(), self.tuned())

    def check_unchanged(self) -> None:
        """Raise `FileError` if one of the two files was rewritten since it was listed."""
        check_unchanged((self.base, self.tuned))


def difference(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float64]:
    """Return after - before in float64, so that no rounding is added to that of the files."""
    with np.errstate(invalid="ignore"):  # whether it is finite is checked by the analysis
        change = after.astype(np.float64)
        change -= before
    return change


def same(before: StoredTensor, after: StoredTensor) -> bool:
    """Tell whether two tensors of one shape hold the same numbers."""
    if not before.numpy_name or not after.numpy_name:
        return False
    return bool(np.array_equal(before(), after()))
