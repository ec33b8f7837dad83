"""An eigensolver for the core that computes on a torch device, in float64."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from rmtspec.errors import InvalidOptionError, RmtspecWarning

Done = TypeVar("Done")
#: Size in bytes of one float64 block on the device.
_BLOCK_BYTES = 2**28


class DeviceEigensolver:
    """Eigenvalues of Gram matrices by `torch.linalg` on a device, which must have float64.

    A matrix for which the device has too little memory is computed on the CPU, with a warning.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = usable_device(device)
        #: The Gram matrix that was returned last, and the same on the device.
        self._last: tuple[NDArray[np.float64], torch.Tensor] | None = None

    def gram(self, tall: NDArray[Any]) -> NDArray[np.float64]:
        """Return ``tall.T @ tall``; the array is uploaded in its own dtype, in blocks of rows."""
        return self.gram_with_sums(tall, 1.0)[0]

    def gram_with_sums(
        self, tall: NDArray[Any], unit: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Return the same, the sum of squares of each row, and that of all (w / unit)^4."""
        self._last = None
        work = functools.partial(_gram, unit=unit)
        gram, squares, fourths, there = self._computed(work, tall)
        self._last = gram, there
        return gram, squares, fourths

    def __call__(self, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the eigenvalues of a symmetric matrix; what `gram` made is there already."""
        last, self._last = self._last, None
        there = last[1] if last is not None and last[0] is gram else None
        return self._computed(functools.partial(_eigenvalues, there=there), gram)

    def _computed(
        self, work: Callable[[NDArray[Any], torch.device], Done], array: NDArray[Any]
    ) -> Done:
        try:
            return work(array, self.device)
        except torch.cuda.OutOfMemoryError:
            pass  # what the failed attempt holds is released with its traceback
        torch.cuda.empty_cache()
        warnings.warn(
            f"{self.device} has too little free memory for a matrix of {array.shape[0]} x "
            f"{array.shape[1]}, which was computed on the CPU instead.",
            RmtspecWarning,
            stacklevel=2,
        )
        return work(array, torch.device("cpu"))


def _gram(
    tall: NDArray[Any], device: torch.device, *, unit: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float, torch.Tensor]:
    """Return the product, sums of squares and of fourth powers, and the product on the device."""
    n, p = tall.shape
    total = torch.zeros((p, p), dtype=torch.float64, device=device)
    squares = torch.empty(n, dtype=torch.float64, device=device)
    fourths = torch.zeros((), dtype=torch.float64, device=device)
    step = max(1, _BLOCK_BYTES // (8 * p))
    for start in range(0, n, step):
        block = _uploaded(tall[start : start + step], device).to(torch.float64)
        total.addmm_(block.T, block)
        squared = block.square()
        squares[start : start + step] = squared.sum(1)
        fourths += squared.div_(unit).div_(unit).square_().sum()
        del block, squared  # before the next ones are made
    # Pinned memory is written several times faster. The product is symmetric: its transpose is in
    # Fortran order without a copy.
    host = torch.empty((p, p), dtype=torch.float64, pin_memory=device.type == "cuda").copy_(total)
    return host.numpy().T, squares.cpu().numpy(), float(fourths), total


def _eigenvalues(
    gram: NDArray[np.float64], device: torch.device, *, there: torch.Tensor | None = None
) -> NDArray[np.float64]:
    matrix = there
    if matrix is None or matrix.device.type != device.type:  # the CPU, where memory lacked
        matrix = torch.from_numpy(np.ascontiguousarray(gram.T)).to(device)
    values: NDArray[np.float64] = torch.linalg.eigvalsh(matrix).cpu().numpy()
    return values


def _uploaded(part: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array on the device, in its own dtype and layout if torch knows them."""
    if abs(part.strides[0]) < abs(part.strides[1]):  # columns are together, as in a transpose
        return _uploaded(part.T, device).T
    part = np.ascontiguousarray(part)
    if part.dtype.name == "bfloat16":
        bits = part.view(np.int16)
        part = bits if bits.flags.writeable else bits.copy()
        return torch.from_numpy(part).to(device).view(torch.bfloat16)
    if part.dtype.isbuiltin != 1 or part.dtype.itemsize > 8:  # torch cannot read it
        part = part.astype(np.float32 if part.dtype.itemsize < 4 else np.float64)
    elif not part.flags.writeable:  # torch would warn
        part = part.copy()
    return torch.from_numpy(part).to(device)


def usable_device(device: str | torch.device) -> torch.device:
    """Return `device` if it exists and computes in float64, or raise."""
    try:
        torch.ones(1, dtype=torch.float64, device=device).sum().item()
        return torch.device(device)
    except (RuntimeError, TypeError, AssertionError, ImportError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidOptionError(
            f"`device` {str(device)!r} cannot be used in float64: {words.rstrip('.')}",
            "a device of this machine, such as 'cpu' or 'cuda'",
            "Leave it out to use the CPU.",
        ) from None
