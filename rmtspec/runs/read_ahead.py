"""Reading the next matrix while the current one is being analysed."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from rmtspec.checkpoint.stored import StoredMatrix


class Held:
    """A matrix in memory; calling it returns the array, or raises the error of reading it."""

    def __init__(self, matrix: StoredMatrix) -> None:
        self.kind, self.sides = matrix.kind, matrix.sides
        self._array: Any = None
        self._error: Exception | None = None
        try:
            self._array = np.array(matrix(), copy=True)
        except Exception as error:
            self._error = error

    def __call__(self) -> Any:
        """Return the array."""
        if self._error is not None:
            raise self._error
        return self._array


def read_ahead(items: Iterable[tuple[str, StoredMatrix]]) -> Iterator[tuple[str, Held]]:
    """Yield the named matrices in memory, at most two of them at a time."""
    waiting: deque[tuple[str, Future[Held]]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for name, matrix in items:
            waiting.append((name, reader.submit(Held, matrix)))
            if len(waiting) == 2:
                ready, future = waiting.popleft()
                yield ready, future.result()
                del future
        for ready, future in waiting:
            yield ready, future.result()
