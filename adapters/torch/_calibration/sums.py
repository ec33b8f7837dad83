"""Running sums over rows: second moments in float64, on the device where the rows are."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

#: Bytes of the rows that are converted and multiplied at a time.
_BLOCK_BYTES = 2**26


class MomentSum:
    """The sum of x x^T over rows x; of the entries' squares alone if `diagonal`.

    Parameters
    ----------
    single : bool
        Sum in float32, in half the memory.
    """

    def __init__(self, *, diagonal: bool = False, single: bool = False) -> None:
        self.rows = 0
        self._diagonal = diagonal
        self._dtype = torch.float32 if single else torch.float64
        self._total: Any = None

    def add(self, rows: torch.Tensor) -> None:
        """Add rows, of shape (count, columns) and any floating dtype."""
        count, columns = rows.shape
        step = max(1, _BLOCK_BYTES // (8 * columns))
        for start in range(0, count, step):
            block = rows[start : start + step].detach()
            if block.device.type == "mps":  # which has no float64
                block = block.cpu()
            with torch.autocast(block.device.type, enabled=False):
                self._add_block(block.to(self._dtype))
        self.rows += count

    def _add_block(self, block: torch.Tensor) -> None:
        columns = block.shape[1]
        if self._diagonal:
            squares = block.square().sum(0)
            self._total = squares if self._total is None else self._total + squares
        elif block.device.type == "cpu":
            self._total = _rank_update(self._total, np.ascontiguousarray(block.numpy()))
        else:
            if self._total is None:
                self._total = block.new_zeros(columns, columns)
            self._total.addmm_(block.T, block)

    def mean(self, count: float | None = None) -> NDArray[Any]:
        """Return the sum divided by `count`, by default the number of rows."""
        total = self._total.cpu().numpy() if isinstance(self._total, torch.Tensor) else self._total
        mean: NDArray[Any] = total / (self.rows if count is None else count)
        if not self._diagonal and isinstance(self._total, np.ndarray):
            _mirror(mean)
            mean = mean.T  # in C order, where the sum is in Fortran's
        return np.ascontiguousarray(mean)

    @property
    def nbytes(self) -> int:
        """Bytes of the sum."""
        return 0 if self._total is None else int(self._total.nbytes)


def _rank_update(total: NDArray[Any] | None, block: NDArray[Any]) -> NDArray[Any]:
    """Return ``total + block.T @ block``, upper triangle in Fortran order, in place."""
    from scipy.linalg import blas

    update = blas.dsyrk if block.dtype == np.float64 else blas.ssyrk
    if total is None:
        total = np.zeros((block.shape[1],) * 2, dtype=block.dtype, order="F")
    result: NDArray[Any] = update(1.0, block.T, beta=1.0, c=total, trans=0, overwrite_c=1)
    return result


def _mirror(square: NDArray[Any], step: int = 256) -> None:
    """Copy the upper triangle of a square matrix to the lower one, in place."""
    for start in range(0, len(square), step):
        rows = slice(start, start + step)
        square[rows, rows] = np.triu(square[rows, rows]) + np.triu(square[rows, rows], 1).T
        square[start + step :, rows] = square[rows, start + step :].T
