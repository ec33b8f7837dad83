"""Small matrices of one shape, read together: their spectra are found in one call."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec._arrays import is_model
from rmtspec.errors import RmtspecError
from rmtspec.matrix.spectrum import Spectrum, is_usual, stacked_spectra
from rmtspec.matrix.stacked import is_small
from rmtspec.report.options import AnalysisOptions

#: Matrices, and bytes in float64, that are read together.
_MOST, _BYTES = 256, 2**24


class Ready:
    """A matrix that was read with others: calling it returns what is known of it.

    Attributes
    ----------
    spent : float
        Its share of the seconds that reading it and its spectrum took.
    """

    def __init__(self, matrix: Any) -> None:
        self.kind = getattr(matrix, "kind", None)
        self.rounding = getattr(matrix, "rounding", None)
        self.spent = 0.0
        self.value: Any = None
        self._error: Exception | None = None
        try:
            array = matrix() if callable(matrix) else matrix
            self.value = np.array(_checks.matrix(array), copy=True)  # the source may write into it
        except (RmtspecError, MemoryError) as error:
            self._error = error

    def __call__(self) -> Any:
        """Return the spectrum or the array, or raise the error of reading it."""
        if self._error is not None:
            raise self._error
        return self.value


def read_together(
    items: Iterable[tuple[str, Any]], options: AnalysisOptions
) -> Iterator[tuple[str, Any]]:
    """Yield the named matrices in order, small ones next to each other read and solved together.

    Those that need more than their spectrum, or that are not small, are yielded as they are.
    """
    usual = is_usual(options.method, options.precision, options.eigensolver)
    if not usual or options.noise != "mp" or options.metrics:
        yield from items
        return
    waiting: list[tuple[str, Any]] = []
    entries = 0
    for name, value in items:
        sides = _sides(value)
        if sides is None:
            yield from _solved(waiting)
            waiting, entries = [], 0
            yield name, value
            continue
        if waiting and (len(waiting) == _MOST or 8 * (entries + sides[0] * sides[1]) > _BYTES):
            yield from _solved(waiting)
            waiting, entries = [], 0
        waiting.append((name, value))
        entries += sides[0] * sides[1]
    yield from _solved(waiting)


def _sides(value: Any) -> tuple[int, int] | None:
    """Return the sides of a small matrix; None for a large one, and for all else."""
    if isinstance(value, Spectrum) or is_model(value):
        return None
    sides = value.shape if isinstance(value, np.ndarray) else getattr(value, "sides", None)
    return sides if isinstance(sides, tuple) and is_small(sides) else None


def _solved(waiting: list[tuple[str, Any]]) -> Iterator[tuple[str, Ready]]:
    """Yield the matrices, with the spectrum in place of the array wherever it is known now."""
    if not waiting:
        return
    start = time.perf_counter()
    ready = [(name, Ready(value)) for name, value in waiting]
    alike: dict[Any, list[Ready]] = {}
    for _, matrix in ready:
        if matrix.value is not None:
            alike.setdefault((matrix.value.shape, matrix.value.dtype), []).append(matrix)
    for (shape, _), matrices in alike.items():
        if is_small(shape):
            spectra = stacked_spectra([matrix.value for matrix in matrices])
            for matrix, spectrum in zip(matrices, spectra, strict=True):
                matrix.value = matrix.value if spectrum is None else spectrum
    spent = (time.perf_counter() - start) / len(ready)
    for name, matrix in ready:
        matrix.spent = spent
        yield name, matrix
