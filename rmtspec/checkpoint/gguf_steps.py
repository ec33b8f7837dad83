"""The step of each block of a quantised GGUF tensor: the distance between neighbouring values."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Bytes = NDArray[np.uint8]
#: Types whose blocks begin with their step.
_LEADING = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
#: Types of which `steps_in` knows the layout: those with equidistant values.
EQUIDISTANT = (*_LEADING, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def steps_in(kind: str, blocks: _Bytes) -> NDArray[np.float32]:
    """Return the steps in blocks of a type, shape (blocks, parts): each for as many entries.

    `blocks` has the shape (blocks, bytes); `kind` is one of `EQUIDISTANT`.
    """
    if kind in _LEADING:
        return np.abs(_halves(blocks, 0))
    if kind == "Q2_K":
        factors: NDArray[Any] = blocks[:, :16] & 0xF
        scale = _halves(blocks, 80)
    elif kind == "Q3_K":
        factors, scale = _packed_in_six_bits(blocks[:, 96:108]), _halves(blocks, 108)
    elif kind == "Q6_K":
        factors, scale = blocks[:, 192:208].view(np.int8), _halves(blocks, 208)
    else:  # Q4_K and Q5_K
        from gguf.quants import Q4_K

        factors, _ = Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
        scale = _halves(blocks, 0)
    return np.abs(scale * factors.astype(np.float32))


def _halves(blocks: _Bytes, at: int) -> NDArray[np.float32]:
    """Return the float16 number at a place in each block, shape (blocks, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _packed_in_six_bits(scales: _Bytes) -> NDArray[Any]:
    """Return the 16 factors of Q3_K, of which 8 bytes hold four bits and 4 bytes the other two."""
    low = (scales[:, None, :8] >> np.array([0, 4], np.uint8)[:, None]).reshape(-1, 16) & 0xF
    high = (scales[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None]).reshape(-1, 16) & 3
    return (low | high << np.uint8(4)).astype(np.int8) - np.int8(32)
