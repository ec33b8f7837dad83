"""Shrinkage: the singular values that bring a truncated matrix nearest to the signal in it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidOptionError
from rmtspec.matrix.spiked_model import overlaps, strengths

NORMS = ("frobenius", "operator", "nuclear")


def shrunk(singular: Float64Array, norm: str, *, variance: float, n: int, p: int) -> Float64Array:
    """Return the singular values that are optimal in `norm` for white noise of that variance.

    With theta and the overlaps c, c' of `rmtspec.matrix.spiked_model`, in units of sqrt(n v),
    y = s / sqrt(n v) and g = p / n (Gavish and Donoho, 2017; the operator norm: Leeb, 2022, which
    is theta, their value, for square matrices and nearer to the signal for all others)::

        frobenius   theta c c', which is sqrt((y^2 - g - 1)^2 - 4 g) / y
        operator    theta c / c', c the smaller, which is theta sqrt((theta^2 + g) / (theta^2 + 1))
        nuclear     theta (c c' - sqrt((1 - c^2) (1 - c'^2))) if positive, else 0,
                    which is max(0, theta^4 - g - sqrt(g) theta y) / (theta^2 y)

    and 0 for a singular value that does not stand beyond the edge 1 + sqrt(g).
    """
    if variance <= 0.0:
        return singular.copy()
    unit = np.sqrt(n * variance)
    theta = strengths(np.square(singular / unit), n, p)
    longer, shorter = overlaps(theta, n, p)
    factor = longer * shorter
    if norm == "operator":
        factor = longer / np.where(shorter > 0.0, shorter, 1.0)
    if norm == "nuclear":
        factor -= np.sqrt((1.0 - np.square(longer)) * (1.0 - np.square(shorter)))
    values: Float64Array = np.maximum(factor, 0.0) * theta * unit
    return np.minimum(values, singular)


def noise_shape(array: NDArray[Any]) -> tuple[int, int]:
    """Return the larger and the smaller side of a matrix without its zero rows and columns."""
    entries = array != 0
    sides = int(entries.any(axis=1).sum()), int(entries.any(axis=0).sum())
    return max(sides), min(sides)


def check_rank(rank: int, p: int) -> None:
    """Raise where a split leaves nothing to estimate the noise from."""
    if rank >= p:
        raise InvalidOptionError(
            f"`rank` is {rank} with `shrink`, and the matrix has {p} singular values: none is left "
            "to estimate the noise from",
            f"a rank below {p}, or `noise_variance`",
        )


def check_shrink(shrink: Any, noise_variance: Any, **weights: Any) -> None:
    """Raise unless the options of shrinkage in `split` go together."""
    if shrink is None:
        if noise_variance is not None:
            raise InvalidOptionError(
                "`noise_variance` is given without `shrink`", "both or neither",
                "Pass shrink='frobenius', 'operator' or 'nuclear' as well.",
            )  # fmt: skip
        return
    _checks.choice(shrink, "shrink", NORMS)
    if noise_variance is not None:
        hint = "Pass the variance of the noise entries, or leave it out to estimate it."
        _checks.positive(noise_variance, "noise_variance", hint)
    for name, weight in weights.items():
        if weight is not None:
            raise InvalidOptionError(
                f"`shrink` and `{name}` are both given", "one of them",
                "Shrinkage is optimal for the entries of the matrix, a split with an input moment "
                "or an output weight for its output: leave one out.",
            )  # fmt: skip
