"""The initial weights of the matrices of a report, found by name and read when needed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._arrays import as_array
from rmtspec.errors import FileError, InvalidOptionTypeError, RmtspecError
from rmtspec.matrix.eigenvalues import check_finite
from rmtspec.terms import Why


class InitialWeights:
    """Initial weights by name.

    Attributes
    ----------
    description : str
        What a report's settings say of them.
    path : str
        The file or folder that they are read from; empty for a mapping.
    """

    def __init__(self, matrices: Mapping[str, Any], path: str = "") -> None:
        self._by_name: dict[str, Any] = {}
        for name, matrix in matrices.items():
            for known in (name, *getattr(matrix, "names", ())):
                self._by_name.setdefault(known, matrix)
        self.path = path
        self.description = path or f"{len(matrices)} matrices"

    @classmethod
    def of(cls, given: Any) -> "InitialWeights":
        """Return the weights that the option `init` names: a path, or a mapping by name."""
        if isinstance(given, InitialWeights):
            return given
        if isinstance(given, str) or hasattr(given, "__fspath__"):
            from rmtspec.checkpoint.listing import matrices_in

            return cls(matrices_in(given).matrices, str(given))
        if isinstance(given, Mapping) and all(isinstance(name, str) for name in given):
            return cls(given)
        raise InvalidOptionTypeError(
            f"`init` is a {type(given).__name__}",
            "a mapping {name: matrix}, or the path of a file or folder of weights",
        )

    def find(self, name: str, others: Iterable[str]) -> Any:
        """Return the matrix of that name or the first of the others; the reason if there is none.

        A matrix in a file is not read yet: it is a callable.
        """
        for known in (name, *others):
            if known in self._by_name:
                return self._by_name[known]
        return Why.INIT_LACKS.words(name=name)


@dataclass(frozen=True, slots=True)
class WithInitial:
    """A matrix of a source, and its initial weights or the reason why there are none."""

    matrix: Any
    initial: Any


def with_initial(
    items: Iterable[tuple[str, Any]], weights: InitialWeights
) -> Iterator[tuple[str, Any]]:
    """Yield the named matrices with their initial weights."""
    for name, value in items:
        yield name, WithInitial(value, weights.find(name, getattr(value, "names", ())))
        del value  # not kept while the next one is made


def initial_of(initial: Any, array: NDArray[Any] | None) -> tuple[NDArray[Any] | None, str]:
    """Return the initial weights of a matrix, or None and the reason; "" if none were given.

    A kernel is read as outputs x everything else, as the matrix itself is.
    """
    if initial is None or isinstance(initial, str) or array is None:
        return None, initial if isinstance(initial, str) else ""
    try:
        found = as_array(initial() if callable(initial) else initial, "init")
        if found.ndim > 2 and found.size == array.size:
            found = found.reshape(len(found), -1)
        before = _checks.matrix(found, "init")
        check_finite(before)
    except FileError:
        raise  # it may be readable next time
    except RmtspecError as error:
        return None, Why.INIT_UNREAD.words(error=error)
    if before.shape != array.shape:
        return None, Why.INIT_SHAPE.words(before=before.shape, after=array.shape)
    return np.asarray(before), ""
