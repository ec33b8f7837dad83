"""Tensors as NumPy arrays and back, sharing memory where possible."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

#: Floats that NumPy lacks: the integer type of the same width, and the name in ml_dtypes.
_SHORT = {
    torch.bfloat16: (torch.uint16, "bfloat16"),
    torch.float8_e4m3fn: (torch.uint8, "float8_e4m3fn"),
    torch.float8_e5m2: (torch.uint8, "float8_e5m2"),
}
_PLAIN = (torch.float16, torch.float32, torch.float64)


def readable(dtype: torch.dtype) -> bool:
    """Tell whether `to_numpy` and the core can read floats of this dtype."""
    return dtype in _PLAIN or dtype in _SHORT


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return the values of a dense tensor; on the CPU a view of its memory."""
    tensor = tensor.detach().cpu()
    if tensor.dtype not in _SHORT:
        plain: NDArray[Any] = tensor.numpy()
        return plain
    import ml_dtypes

    integer, name = _SHORT[tensor.dtype]
    short: NDArray[Any] = tensor.view(integer).numpy().view(getattr(ml_dtypes, name))
    return short


def to_tensor(array: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    """Return `array` as a contiguous tensor of the dtype and on the device of `like`."""
    array = np.ascontiguousarray(array)
    short = next((dtype for dtype, (_, name) in _SHORT.items() if name == array.dtype.name), None)
    if short is not None:
        tensor = torch.from_numpy(array.view(f"u{array.itemsize}")).view(short)
    else:
        tensor = torch.from_numpy(array if array.dtype.isbuiltin == 1 else array.astype(np.float64))
    # Copied into memory that torch allocates: its alignment decides the last bit of products.
    return tensor.to(device=like.device, dtype=like.dtype, copy=True)
