"""Telling a change from rounding: fp16 against fp32, a quantised copy, the same numbers merged."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.comparison.sides import Entry
from rmtspec.matrix.rounding import gaps
from rmtspec.matrix.rounding_level import level_of_variances
from rmtspec.matrix.spectrum import Spectrum

#: What is left of a change is put down to rounding up to this many times the variance of that.
ROUNDING = 1.5
#: Eigenvalues of rounding errors reach up to this many times the edge that their variances give.
_MARGIN = 1.2
#: Between rounding and what is beyond it there is a gap of this factor, but for so many values.
_GAP, _STRAYS = 4.0, 0.1
#: Number of entries whose steps are in memory at once.
_ENTRIES = 2**21
#: Errors made before the sum reach so far beyond that edge; what is beyond them is larger by this.
_REACH, _FAR = 10.0, 1000.0
#: So many values, of this share of the variance, are needed to speak of rounding.
_LEAST, _SHARE = 4, 0.3
_TINY = float(np.finfo(np.float64).tiny)


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


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean variances of the rounding errors in each row (rows,) and in each column (columns,).

    Attributes
    ----------
    well : bool
        Whether they are known well: those of quantised files and of products are not.
    """

    rows: Float64Array
    columns: Float64Array
    well: bool

    @classmethod
    def of(cls, entry: Entry, array: NDArray[Any]) -> "Errors":
        """Return those of a matrix: step^2 / 12 in a quantised file, ulp^2 / 12 in a float format.

        See `rmtspec.rounding_noise`.
        """
        quantised = entry.rounding() if entry.rounding is not None else None
        height, width = array.shape
        rows, columns = np.zeros(height), np.zeros(width)
        if quantised is None and not _checks.is_float(array.dtype):
            return cls(rows, columns, True)
        for part in _parts(array):
            if quantised is not None:
                squares = np.square(quantised[1][part].astype(np.float64))
            else:
                above, below = gaps(array[part].astype(np.float64), array.dtype)
                squares = above * above - above * below + below * below
            rows[part] = squares.mean(axis=1) / 12.0
            columns += squares.sum(axis=0) / (12.0 * height)
        return cls(rows, columns, quantised is None)

    def __add__(self, other: "Errors") -> "Errors":
        well = self.well and other.well
        return Errors(self.rows + other.rows, self.columns + other.columns, well)

    @property
    def variance(self) -> float:
        """Their mean over all entries."""
        return float(self.rows.mean())


def _parts(array: NDArray[Any]) -> Iterator[slice]:
    """Yield ranges of rows, so that not all is in float64 at once."""
    step = max(1, _ENTRIES // array.shape[1])
    for start in range(0, len(array), step):
        yield slice(start, start + step)


def beyond_rounding(spec: Spectrum, errors: Errors) -> Beyond | None:
    """Return how many singular values of a difference are beyond rounding; None if it has others.

    `errors` are those of both matrices. The rest is rounding if all of it is below the edge of such
    errors, not far below, and there is a gap to what is beyond: a bulk of noise reaches down to the
    level of the rounding without one. Where only one of the two was rounded the rest is smaller,
    and so is the edge that counts; that is used only if the errors are known well.
    """
    level = level_of_variances(spec, "rounding", errors.rows, errors.columns)
    if not level.edge > 0.0:
        return None
    values, n, p = spec.eigenvalues, spec.n, spec.p
    edge = _MARGIN * level.edge
    inside = int(np.searchsorted(values, edge, side="right"))
    strays = int(np.searchsorted(values, _GAP * edge, side="right")) - inside
    least = min(_LEAST, p)
    if strays:  # the change may have been rounded itself, before it was added
        reach = min(p - 1, int(np.searchsorted(values, _REACH * edge, side="right")))
        ratios = values[least : reach + 1] / np.maximum(values[least - 1 : reach], _TINY)
        if ratios.size and ratios.max() > _FAR:
            end = least - 1 + int(ratios.argmax())
            return _with_rank(spec, math.sqrt(float(values[end]) * float(values[end + 1])))
    if inside < least or strays > _STRAYS * inside or inside + strays == p > inside:
        return None
    beyond = p - inside
    variance = float(values[:inside].sum()) * n / max(1, (n - beyond) * inside)
    share = variance / level.variance
    if share < _SHARE:
        return None
    edge *= min(1.0, share) if errors.well else 1.0
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
    for part in _parts(change):
        reach = np.zeros(change[part].shape)
        for array in (before, after):
            reach += 0.5 * gaps(array[part].astype(np.float64), array.dtype)[0]
        if (np.abs(change[part]) > reach * (1.0 + 1e-9)).any():
            return False
    return True
