"""Telling a change from rounding: fp16 against fp32, a quantised copy, the same numbers merged."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.comparison.sides import Entry
from rmtspec.matrix.rounding import gaps
from rmtspec.matrix.rounding_level import rounding_level
from rmtspec.matrix.spectrum import Spectrum

#: What is left of a change is put down to rounding up to this many times the variance of that.
ROUNDING = 1.5
#: Eigenvalues of rounding errors reach up to this many times the edge that their variances give.
_MARGIN = 1.2
#: Between rounding and what is beyond it there is a gap of this factor, but for so many values.
_GAP, _STRAYS = 4.0, 0.1
#: These belong to the rounding if what is beyond the gap is larger than they by this factor.
_FAR = 100.0
#: So many values, of this share of the variance, are needed to speak of rounding.
_LEAST, _SHARE = 4, 0.3


@dataclass(frozen=True, slots=True)
class Beyond:
    """A difference that is of low rank but for rounding.

    Attributes
    ----------
    rank : int
        Number of singular values beyond the rounding.
    spectrum : Spectrum
        The spectrum given, with this as its numerical rank.
    """

    rank: int
    spectrum: Spectrum


def squared_steps(entry: Entry, array: NDArray[Any]) -> tuple[Float64Array | None, bool]:
    """Return 12 times the variance of each entry's rounding error, and whether it is known well.

    It is None if there is no such error.

    The error is uniform: of variance step^2 / 12 in a quantised file and ulp^2 / 12 in a floating
    format; see `rmtspec.rounding_noise`.
    """
    quantised = entry.rounding() if entry.rounding is not None else None
    if quantised is not None:
        return np.square(quantised[1].astype(np.float64)), False
    if not _checks.is_float(array.dtype):
        return None, True
    above, below = gaps(array.astype(np.float64), array.dtype)
    squares: Float64Array = above * above - above * below + below * below
    return squares, True


def beyond_rounding(spec: Spectrum, steps: Float64Array, well: bool) -> Beyond | None:
    """Return how many singular values of a difference are beyond rounding; None if it has others.

    `steps` says, for each entry, from which uniform error the rounding of both matrices comes. The
    rest is rounding if all of it is below the edge of such errors, not far below, and there is a
    gap to what is beyond: a bulk of noise reaches down to the level of the rounding without one.
    Where only one of the two was rounded the rest is smaller, and so is the edge that counts; that
    is used only if `steps` are known `well`.
    """
    level = rounding_level(spec, "rounding", steps)
    if not level.edge > 0.0:
        return None
    values, n, p = spec.eigenvalues, spec.n, spec.p
    edge = _MARGIN * level.edge
    inside = int(np.searchsorted(values, edge, side="right"))
    strays = int(np.searchsorted(values, _GAP * edge, side="right")) - inside
    if inside < min(_LEAST, p) or strays > _STRAYS * inside:
        return None
    if strays:  # the change was rounded itself before it was added
        wide = inside + strays
        if wide == p:
            return None
        if values[wide] > _FAR * values[wide - 1]:
            return _with_rank(spec, float(values[wide - 1]) * _MARGIN)
    beyond = p - inside
    variance = float(values[:inside].sum()) * n / max(1, (n - beyond) * inside)
    share = variance / level.variance
    if share < _SHARE:
        return None
    edge *= min(1.0, share) if well else 1.0
    return _with_rank(spec, edge)


def _with_rank(spec: Spectrum, edge: float) -> Beyond:
    """Return the number of eigenvalues above an edge, and the spectrum with that as its rank."""
    variance = edge / (1.0 + np.sqrt(spec.p / spec.n)) ** 2
    known = Spectrum.from_dict({**spec.to_dict(), "rounding_variance": variance})
    return Beyond(known.numerical_rank, known)


def is_recast(before: NDArray[Any], after: NDArray[Any]) -> bool:
    """Tell whether one of two matrices is the other in its own dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        there = np.array_equal(before.astype(after.dtype), after)
        return there or np.array_equal(after.astype(before.dtype), before)


def within_rounding(before: NDArray[Any], after: NDArray[Any], change: Float64Array) -> bool:
    """Tell whether both may be the same numbers, rounded to their two floating formats."""
    if not (_checks.is_float(before.dtype) and _checks.is_float(after.dtype)):
        return False
    reach = np.zeros(change.shape)
    for array in (before, after):
        reach += 0.5 * gaps(array.astype(np.float64), array.dtype)[0]
    return bool((np.abs(change) <= reach * (1.0 + 1e-9)).all())
