"""A tensor given where the core expects an array."""

from typing import Any

import torch
from numpy.typing import NDArray

from rmtspec.adapters.torch._weights.layer_kinds import unreadable
from rmtspec.adapters.torch._weights.tensors import readable, to_numpy
from rmtspec.adapting import Why
from rmtspec.errors import InvalidTypeError


def array_of(tensor: torch.Tensor, name: str) -> NDArray[Any]:
    """Return the values of a tensor of any device, with or without gradient, or say why not."""
    reason = unreadable(tensor, codes=True)
    if not reason and tensor.is_floating_point() and not readable(tensor.dtype):
        reason = Why.UNREADABLE.words(dtype=tensor.dtype)
    if reason:
        raise InvalidTypeError(
            f"`{name}` is a tensor that cannot be read: {reason}. Expected a dense tensor of "
            "numbers."
        )
    return to_numpy(tensor)
