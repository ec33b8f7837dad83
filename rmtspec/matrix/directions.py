"""Leading singular directions, random ones beside them, and the rows of a table nearest to each."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.subspaces import leading_vectors


def leading_directions(array: NDArray[Any], k: int) -> tuple[Float64Array, Float64Array]:
    """Return the k leading left and right singular vectors, (rows, k) and (columns, k).

    A pair of them has no sign of its own: the largest entry of the right one is made positive.
    """
    left, right = leading_vectors(array, k)
    largest = np.take_along_axis(right, np.abs(right).argmax(axis=0)[None], axis=0)
    signs = np.where(largest < 0.0, -1.0, 1.0)
    return left * signs, right * signs


def random_directions(d: int, count: int, rng: np.random.Generator) -> Float64Array:
    """Return unit vectors of d dimensions, uniform on the sphere, shape (d, count)."""
    found: Float64Array = rng.standard_normal((d, count))
    found /= np.linalg.norm(found, axis=0)
    return found


class Nearest(NamedTuple):
    """The rows of a table nearest to each of k directions, at both ends: towards and against.

    Arrays have shape (k, most); cosines of `towards` descend, those of `against` ascend.
    """

    towards: NDArray[np.int64]
    towards_cosines: Float64Array
    against: NDArray[np.int64]
    against_cosines: Float64Array

    @property
    def nearness(self) -> Float64Array:
        """The largest absolute cosine of each direction with any row, shape (k,)."""
        ends = np.maximum(self.towards_cosines[:, 0], -self.against_cosines[:, 0])
        return np.asarray(np.clip(ends, 0.0, 1.0))


def nearest_rows(blocks: Iterable[NDArray[Any]], directions: Float64Array, most: int) -> Nearest:
    """Return which rows of a table have the largest and the smallest cosine with directions.

    `blocks` are the rows in pieces, in order; `directions` has shape (d, k). A row or a direction
    of zeros has cosine 0 with everything.

    Raises
    ------
    InvalidValueError
        A row has nan or inf.
    """
    unit = _unit(directions.T).T
    k = unit.shape[1]
    rows = np.empty((k, 0), dtype=np.int64)
    cosines = np.empty((k, 0))
    start = 0
    for block in blocks:
        part = np.asarray(block, dtype=np.float64)
        if not np.isfinite(part).all():
            raise InvalidValueError(
                f"The table of embeddings has nan or inf in its rows {start} to "
                f"{start + len(part) - 1}; expected finite numbers. Load the weights again."
            )
        seen = _unit(part) @ unit  # (rows of the block, k)
        ends = _ends(seen.T, most)
        rows = np.hstack([rows, ends + start])
        cosines = np.hstack([cosines, np.take_along_axis(seen.T, ends, axis=1)])
        kept = _ends(cosines, most)
        rows = np.take_along_axis(rows, kept, axis=1)
        cosines = np.take_along_axis(cosines, kept, axis=1)
        start += len(part)
    return _sorted(rows, cosines, most)


def nearest_entries(directions: Float64Array, most: int) -> Nearest:
    """Return the same where each row of the table is an axis: the entries of unit directions."""
    cosines = _unit(directions.T)
    ends = _ends(cosines, most)
    return _sorted(ends, np.take_along_axis(cosines, ends, axis=1), most)


def chance(observed: float, drawn: Float64Array) -> float:
    """Return the share of draws that reach what was observed, which counts as one of them.

    This is a p-value: (1 + number of draws at or above) / (1 + number of draws).
    """
    return float((1 + np.count_nonzero(drawn >= observed)) / (1 + drawn.size))


def _sorted(rows: NDArray[np.int64], cosines: Float64Array, most: int) -> Nearest:
    order = np.lexsort((rows, -cosines), axis=1)[:, :most]
    other = np.lexsort((rows, cosines), axis=1)[:, :most]
    return Nearest(
        np.take_along_axis(rows, order, axis=1), np.take_along_axis(cosines, order, axis=1),
        np.take_along_axis(rows, other, axis=1), np.take_along_axis(cosines, other, axis=1),
    )  # fmt: skip


def _unit(vectors: Float64Array) -> Float64Array:
    """Return the rows of length 1; rows of zeros stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float64Array = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0.0)
    return unit


def _ends(values: Float64Array, most: int) -> NDArray[np.int64]:
    """Return the places of the `most` smallest and largest values of each row, without order."""
    count = values.shape[1]
    if count <= 2 * most:
        return np.tile(np.arange(count), (len(values), 1))
    placed = np.argpartition(values, (most - 1, count - most), axis=1)
    return np.hstack([placed[:, :most], placed[:, count - most :]])
