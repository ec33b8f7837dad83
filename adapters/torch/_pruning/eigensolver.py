"""An eigensolver for the core that computes on a torch device, in float64."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rmtspec.errors import InvalidOptionError

#: Size in bytes of one float64 block on the device.
_BLOCK_BYTES = 2**28


class DeviceEigensolver:
    """Eigenvalues of Gram matrices by `torch.linalg` on a device, which must have float64."""

    def __init__(self, device: str | torch.device) -> None:
        self.device = usable_device(device)

    def gram(self, tall: NDArray[Any]) -> NDArray[np.float64]:
        """Return ``tall.T @ tall``; the array is uploaded in its own dtype, in blocks of rows."""
        n, p = tall.shape
        total = torch.zeros((p, p), dtype=torch.float64, device=self.device)
        step = max(1, _BLOCK_BYTES // (8 * p))
        for start in range(0, n, step):
            part = np.ascontiguousarray(tall[start : start + step])
            if part.dtype.isbuiltin != 1 or part.dtype.itemsize > 8:  # torch cannot read it
                part = part.astype(np.float32 if part.dtype.itemsize < 4 else np.float64)
            elif not part.flags.writeable:  # torch would warn
                part = part.copy()
            block = torch.from_numpy(part).to(self.device).to(torch.float64)
            total.addmm_(block.T, block)
        return np.asfortranarray(total.cpu().numpy())

    def __call__(self, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the eigenvalues of a symmetric matrix."""
        matrix = torch.from_numpy(np.ascontiguousarray(gram)).to(self.device)
        values: NDArray[np.float64] = torch.linalg.eigvalsh(matrix).cpu().numpy()
        return values


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
