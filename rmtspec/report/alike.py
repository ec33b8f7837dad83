"""Small matrices of one shape, read together: their spectra are found in one call."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec._arrays import is_model
from rmtspec.matrix.spectrum import Spectrum, is_usual, stacked_spectra
from rmtspec.matrix.stacked import is_small
from rmtspec.report.options import AnalysisOptions
from rmtspec.report.plain import Plain

#: Matrices, and bytes in float64, that are read together.
_MOST, _BYTES = 256, 2**24


class Ready:
    """A matrix that was read with others: calling it returns what is needed of it.

    Attributes
    ----------
    spectrum : Spectrum or None
        Its spectrum, if that was found with those of others.
    is_plain : bool
        Whether it needs no other noise model than "mp".
    spent : float
        The seconds that reading it took, and its share of those for the spectra.
    """

    def __init__(self, matrix: Any) -> None:
        self.kind = getattr(matrix, "kind", None)
        self.rounding = getattr(matrix, "rounding", None)
        self.is_plain = isinstance(matrix, Plain)
        self.value: Any = None
        self.spectrum: Spectrum | None = None
        self._error: Exception | None = None
        start = time.perf_counter()
        try:
            value = matrix() if callable(matrix) else matrix
            if not isinstance(value, Spectrum):  # a copy: the source may write into the array
                value = np.array(_checks.matrix(value), copy=True)
            self.value = value
        except Exception as error:  # raised where the matrix is asked for
            self._error = error
        self.spent = time.perf_counter() - start

    def __call__(self) -> Any:
        """Return the spectrum or the array, or raise the error of reading it."""
        if self._error is not None:
            raise self._error
        return self.value


def is_together(item: tuple[str, Any]) -> bool:
    """Tell whether a named matrix is one that `read_together` reads with others."""
    return _sides(item[1]) is not None


def read_together(
    options: AnalysisOptions, items: Iterable[tuple[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """Yield the named matrices in order, small ones next to each other read and solved together.

    Those that are not small are yielded as they are.
    """
    if not is_usual(options.route, options.precision, options.eigensolver):
        yield from items
        return
    whole = options.noise != "mp" or options.metrics
    waiting: list[tuple[str, Ready]] = []
    entries = 0
    for name, value in items:
        sides = _sides(value)
        more = 0 if sides is None else sides[0] * sides[1]
        if sides is None or len(waiting) == _MOST or 8 * (entries + more) > _BYTES:
            yield from _solved(waiting, whole=whole)
            waiting, entries = [], 0
        if sides is None:
            yield name, value
            continue
        waiting.append((name, Ready(value)))
        entries += more
    yield from _solved(waiting, whole=whole)


def _sides(value: Any) -> tuple[int, int] | None:
    """Return the sides of a small matrix; None for a large one, and for all else."""
    if isinstance(value, Spectrum) or is_model(value):
        return None
    sides = value.shape if isinstance(value, np.ndarray) else getattr(value, "sides", None)
    return sides if isinstance(sides, tuple) and is_small(sides) else None


def _solved(waiting: list[tuple[str, Ready]], *, whole: bool) -> Iterator[tuple[str, Ready]]:
    """Yield the matrices, solved; unless `whole`, with the spectrum in place of the array."""
    alike: dict[Any, list[Ready]] = {}
    for _, matrix in waiting:
        if isinstance(matrix.value, np.ndarray):
            alike.setdefault((matrix.value.shape, matrix.value.dtype), []).append(matrix)
    for (shape, _), matrices in alike.items():
        if not is_small(shape):  # not the sides that were announced
            continue
        start = time.perf_counter()
        spectra = stacked_spectra([matrix.value for matrix in matrices])
        share = (time.perf_counter() - start) / len(matrices)
        for matrix, spectrum in zip(matrices, spectra, strict=True):
            matrix.spectrum, matrix.spent = spectrum, matrix.spent + share
            if spectrum is not None and not whole:
                matrix.value = spectrum
    yield from waiting
