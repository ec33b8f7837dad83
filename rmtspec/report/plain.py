"""Matrices that need no other noise model than "mp", whatever the options say."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any


class Plain:
    """A matrix analysed with the noise model "mp", whatever the options say."""

    def __init__(self, matrix: Any) -> None:
        self.kind = getattr(matrix, "kind", None)
        self.rounding = getattr(matrix, "rounding", None)
        self.sides = getattr(matrix, "sides", None)
        self.names = getattr(matrix, "names", ())
        self._matrix = matrix

    def __call__(self) -> Any:
        """Return the array."""
        return self._matrix()


def marked(items: Iterable[tuple[str, Any]], plain: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the named matrices, those that `plain` names as `Plain`."""
    for name, value in items:
        yield name, Plain(value) if name in plain else value
        del value  # not kept while the next one is made
