"""Separating components from noise whose variance may differ from entry to entry.

In rounds: equalize what is left without the components so far, find how many singular values of
the whole, so scaled, exceed the noise, and stop when they are no more than before.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec.matrix.eigensystem import Eigensystem, residual
from rmtspec.matrix.entries import Entries, Scales
from rmtspec.matrix.equalize import even, guarded, sinkhorn, starting_scales
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.matrix.thresholds import Model, Threshold

#: At least this many singular values must be left as noise, or half of them if there are fewer.
LEAST_BULK = 16
_MAX_ROUNDS = 30
#: A value counts as above a threshold if it exceeds it by more than this share: those of sparse
#: matrices may be equal.
_TIE = 2e-6
#: Values taken as components before the next round must exceed a bound on the noise by this factor.
_MARGIN = 1.05
#: At most so many times before the next round: where values go on and on, a round tells more.
_STEPS = 6
#: The level of the lower end of the interval of the count, and of its upper end.
LOW, HIGH = 0.01, 0.5
_NOTHING = np.empty((0, 0), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Separation:
    """Outcome of the rounds.

    Attributes
    ----------
    n_components : int or None
        The count; None if no bulk is left.
    count : int
        Number of values above the threshold in the last round.
    at_least : int
        That of the first round.
    low, high : int
        The count at the level 0.01, and that at 0.5 in the last round.
    threshold : float
        For s^2, in the last round.
    scales : Scales
    spectrum : Spectrum
        Of the matrix divided by the scales.
    residual : ndarray of float32, shape (n, p)
        The equalized matrix without its components, corrected for leverage.
    energy_share : float
        Share of ||W||^2 that the components explain.
    rounds : int
    settled : bool
        False if the count still grew in the last of 30 rounds.
    exact : bool
        Whether only rounding is left beyond the components, so that the rank is known exactly.
    """

    n_components: int | None
    count: int
    at_least: int
    low: int
    high: int
    threshold: float
    scales: Scales
    spectrum: Spectrum
    residual: NDArray[np.float32] | None
    energy_share: float
    rounds: int
    settled: bool
    exact: bool


class Separator:
    """The rounds on one matrix; the first is the same for every model and is made once.

    Attributes
    ----------
    least_bulk : int
        How many singular values must be left as noise.
    numerical_rank : int
        Number of singular values above rounding, known after the first round.
    """

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._first: tuple[Scales, Eigensystem] | None = None
        self.numerical_rank = entries.p
        self.least_bulk = min(LEAST_BULK, (entries.p + 1) // 2)

    def separate(self, model: Model, beta: float) -> Separation:
        """Count the components at level `beta`."""
        entries = self._entries
        scales, system = self._first_round()
        k = at_least = 0
        parted = False  # whether a round at the lower level would have removed fewer
        for number in range(1, _MAX_ROUNDS + 1):
            spectrum = self._spectrum(system)
            seen, share = None, 0.0
            if model.uses_residual:
                seen, share = residual(entries, scales, system, k, dtype=np.float32)
            exact = spectrum.rounding_variance >= 1.0
            at = model.threshold(system.squares, entries.n, k, _NOTHING if seen is None else seen)
            count = _above(system.squares, at(beta))
            if number == 1:
                at_least = count
            settled = count <= k
            gone = not settled and entries.p - count < self.least_bulk
            if settled or gone or exact or number == _MAX_ROUNDS:
                break
            parted = parted or _above(system.squares, at(LOW)) < count
            seen = None  # freed before the next one is made, as is all that is large here
            k, left_over = self._removed(scales, system, count)
            exact = k >= self.numerical_rank
            if exact:  # what is left is rounding, which must not be scaled up
                break
            system.forget()
            scales = self._rescaled(scales, left_over)
            del left_over
            system = Eigensystem(entries, scales)
        lost = gone or exact
        low = k if beta >= LOW else _moved(system, at, k, (beta, LOW))
        if parted and not lost:
            seen = None
            system.forget()
            fewer = self.separate(model, LOW).n_components
            low = k if fewer is None else min(k, fewer)
        if seen is None and not lost:
            seen, share = residual(entries, scales, system, k, dtype=np.float32)
        return Separation(
            n_components=None if lost else k, count=count, at_least=at_least,
            low=low, high=_moved(system, at, k, (beta, HIGH)), threshold=at(beta),
            scales=scales, spectrum=spectrum, residual=None if lost else seen,
            energy_share=np.nan if lost else share, rounds=number, settled=settled or lost,
            exact=exact,
        )  # fmt: skip

    def _spectrum(self, system: Eigensystem) -> Spectrum:
        return Spectrum.of_eigenvalues(
            system.eigenvalues, shape=self._entries.shape, dtype=self._entries.dtype
        )

    def _first_round(self) -> tuple[Scales, Eigensystem]:
        """Return the scales that equalize the matrix, and the matrix so scaled, decomposed."""
        if self._first is None:
            start = starting_scales(self._entries)
            whole = np.vstack([block for _, block in self._entries.blocks(start)])
            step = sinkhorn(whole)
            del whole
            scales = even(Scales(start.rows * step.rows, start.columns * step.columns))
            self._first = scales, Eigensystem(self._entries, scales)
            self.numerical_rank = self._spectrum(self._first[1]).numerical_rank
        return self._first

    def _removed(self, scales: Scales, system: Eigensystem, count: int) -> tuple[int, Float64Array]:
        """Return how many components are removed, at least `count`, and what is left."""
        most = self._entries.p - self.least_bulk
        steps = 0
        while True:
            k, left_over = count, residual(self._entries, scales, system, count)[0]
            count = min(_beyond(system.squares, left_over, k), most)
            steps += 1
            if count <= k or steps == _STEPS:
                return k, left_over
            del left_over  # before the next one is made

    def _rescaled(self, scales: Scales, left_over: Float64Array) -> Scales:
        """Return the scales that equalize what is left, itself divided by `scales`."""
        step = sinkhorn(left_over)
        now = Scales(scales.rows * step.rows, scales.columns * step.columns)
        return even(guarded(now, self._first_round()[0]))


def _above(squares: Float64Array, threshold: float) -> int:
    """Return how many squares, ascending, exceed the threshold."""
    least = threshold * (1.0 + _TIE)
    return squares.size - int(np.searchsorted(squares, least, side="right"))


def _moved(system: Eigensystem, at: Threshold, k: int, levels: tuple[float, float]) -> int:
    """Return the count k, reached at the first of two levels, moved to the second."""
    first, second = (_above(system.squares, at(level)) for level in levels)
    return max(0, k + second - first)


def _beyond(squares: Float64Array, left_over: Float64Array, k: int) -> int:
    """Return how many squares lie beyond any noise of the variances that `left_over` has.

    The largest singular value of independent entries is at most about the root of the largest row
    sum of variances plus that of columns (Bandeira and van Handel, 2016).
    """
    n, p = left_over.shape
    rows = np.einsum("ij,ij->i", left_over, left_over).max()
    columns = np.einsum("ij,ij->j", left_over, left_over).max()
    bound = (np.sqrt(rows * (p - k) / p) + np.sqrt(columns * (n - k) / n)) ** 2
    return _above(squares, _MARGIN * float(bound))
