"""Which rows of a table, the embeddings of tokens say, point most along a direction."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from rmtspec._checks import Float64Array

_BLOCK = 8192
_RANDOM = 100


class Nearest(NamedTuple):
    """The rows nearest to a direction and to its opposite, by the cosine of the angle."""

    along: list[tuple[int, float]]
    against: list[tuple[int, float]]
    #: The cosine, in size, of the nearest row; and what one in twenty random directions reaches.
    closest: float
    chance: float


def nearest_rows(
    table: Any, directions: Float64Array, count: int, *, scale: Any = None, rng: Any = 0
) -> list[Nearest]:
    """Return the nearest rows of each direction, and how near random directions come.

    Rows are taken less their mean. With a `scale` of the columns, both the directions and the
    random ones are multiplied by it first, as the weight of a norm before the layer does.

    Parameters
    ----------
    table : array_like of shape (rows, width)
    directions : ndarray of shape (number, width)
    count : int
        Rows to return of each.
    scale : array_like of shape (width,), optional
    rng : int or numpy.random.Generator
    """
    generator = np.random.default_rng(rng)
    random = generator.standard_normal((_RANDOM, directions.shape[1]))
    asked = np.vstack([directions, random])
    if scale is not None:
        asked = asked * np.asarray(scale, dtype=np.float64)
    asked /= np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-300)
    mean = np.zeros(directions.shape[1])
    for block in _blocks(table):
        mean += block.sum(axis=0)
    mean /= len(table)
    cosines = np.concatenate([_cosines(block - mean, asked) for block in _blocks(table)])
    reached = np.abs(cosines).max(axis=0)
    chance = float(np.quantile(reached[len(directions) :], 0.95))
    found = []
    for column in cosines.T[: len(directions)]:
        order = np.argsort(column, kind="stable")
        along = [(int(i), float(column[i])) for i in order[::-1][:count]]
        against = [(int(i), float(column[i])) for i in order[:count]]
        found.append(Nearest(along, against, float(np.abs(column).max()), chance))
    return found


def _blocks(table: Any) -> Iterator[Float64Array]:
    for start in range(0, len(table), _BLOCK):
        yield np.asarray(table[start : start + _BLOCK], dtype=np.float64)


def _cosines(block: Float64Array, directions: Float64Array) -> Float64Array:
    lengths = np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-300)
    cosines: Float64Array = (block / lengths) @ directions.T
    return cosines
