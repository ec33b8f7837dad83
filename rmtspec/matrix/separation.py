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
        The counts at the levels 0.01 and 0.5 in the last round.
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
        self._start = starting_scales(entries)
        self._first: tuple[Scales, Eigensystem] | None = None
        self.numerical_rank = entries.p
        self.least_bulk = min(LEAST_BULK, (entries.p + 1) // 2)

    def separate(self, model: Model, beta: float) -> Separation:
        """Count the components at level `beta`."""
        entries = self._entries
        scales, left_over = self._start, None
        k = at_least = 0
        for number in range(1, _MAX_ROUNDS + 1):
            scales, system = self._equalized(scales, left_over)
            spectrum = self._spectrum(system)
            left_over, share = None, 0.0
            if model.uses_residual:
                left_over, share = residual(entries, scales, system, k)
            seen = np.empty((0, 0)) if left_over is None else left_over
            exact = spectrum.rounding_variance >= 1.0
            at = model.threshold(system.squares, entries.n, k, seen)
            count = _above(system.squares, at(beta))
            if number == 1:
                at_least = count
            settled, seen = count <= k, np.empty((0, 0))
            gone = not settled and entries.p - count < self.least_bulk
            if settled or gone or exact or number == _MAX_ROUNDS:
                break
            while count > k:
                k, left_over = count, None  # freed before the next one is made
                left_over, share = residual(entries, scales, system, k)
                count = min(_beyond(system.squares, left_over, k), entries.p - self.least_bulk)
            exact = k >= self.numerical_rank
            if exact:  # what is left is rounding, which must not be scaled up
                break
        lost = gone or exact
        if left_over is None and not lost:
            left_over, share = residual(entries, scales, system, k)
        return Separation(
            n_components=None if lost else k, count=count, at_least=at_least,
            low=_moved(system, at, k, (beta, 0.01)), high=_moved(system, at, k, (beta, 0.5)),
            threshold=at(beta), scales=scales, spectrum=spectrum,
            residual=None if lost or left_over is None else left_over.astype(np.float32),
            energy_share=np.nan if lost else share, rounds=number, settled=settled or lost,
            exact=exact,
        )  # fmt: skip

    def _spectrum(self, system: Eigensystem) -> Spectrum:
        return Spectrum.of_eigenvalues(
            system.eigenvalues, shape=self._entries.shape, dtype=self._entries.dtype
        )

    def _equalized(
        self, scales: Scales, left_over: Float64Array | None
    ) -> tuple[Scales, Eigensystem]:
        """Return the scales that equalize what is left, and the matrix so scaled, decomposed."""
        if left_over is not None and self._first is not None:
            step = sinkhorn(left_over)
            now = Scales(scales.rows * step.rows, scales.columns * step.columns)
            now = even(guarded(now, self._first[0]))
            return now, Eigensystem(self._entries, now)
        if self._first is None:
            whole = np.vstack([block for _, block in self._entries.blocks(scales)])
            step = sinkhorn(whole)
            del whole
            now = even(Scales(scales.rows * step.rows, scales.columns * step.columns))
            self._first = now, Eigensystem(self._entries, now)
            self.numerical_rank = self._spectrum(self._first[1]).numerical_rank
        return self._first


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
