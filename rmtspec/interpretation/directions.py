"""The leading singular directions of a matrix, and a random one to compare them with."""

from typing import Any, NamedTuple

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidOptionError


class Directions(NamedTuple):
    """The leading `k` singular triples: ``W @ inputs[i] = values[i] * outputs[i]``.

    The last row of `inputs` and of `outputs`, without a value, is a random direction.
    """

    values: Float64Array  # (k,), largest first
    inputs: Float64Array  # (k + 1, columns), rows of length 1
    outputs: Float64Array  # (k + 1, rows)


def leading_directions(W: Any, k: int, rank: int, rng: Any = 0) -> Directions:
    """Return the leading singular directions of a matrix.

    The sign of a pair of vectors is free; here the entry of the input direction that is largest in
    size is positive.

    Parameters
    ----------
    W : array_like of shape (rows, columns)
    k : int
        Number of directions, at most `rank`.
    rank : int
        The numerical rank of the matrix: behind it, directions are rounding.
    rng : int or numpy.random.Generator
        Of the random direction, which is uniform on the sphere.

    Raises
    ------
    InvalidOptionError
        `k` is no whole number from 1 to `rank`.
    """
    k = _checks.integer(k, "k", 1)
    if k > rank:
        raise InvalidOptionError(
            f"`k` is {k}", f"at most {rank}, the numerical rank of the matrix",
            "Directions behind it are rounding.",
        )  # fmt: skip
    W = _checks.matrix(W)
    inputs, values, outputs = _svd(np.asarray(W, dtype=np.float64), k)
    signs = np.sign(np.take_along_axis(inputs, np.abs(inputs).argmax(axis=1)[:, None], axis=1))
    generator = np.random.default_rng(rng)
    random = [generator.standard_normal((1, side.shape[1])) for side in (inputs, outputs)]
    random = [each / np.linalg.norm(each) for each in random]
    return Directions(
        values, np.vstack([signs * inputs, random[0]]), np.vstack([signs * outputs, random[1]])
    )


def _svd(W: Float64Array, k: int) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return k input directions, values and output directions from the smaller Gram matrix."""
    from scipy.linalg import eigh

    wide = W.shape[0] < W.shape[1]
    A = W.T if wide else W
    scale = float(np.abs(A).max())  # so that no square overflows or vanishes
    A = A / scale
    p = A.shape[1]
    _, vectors = eigh(A.T @ A, subset_by_index=(p - k, p - 1))
    right = vectors.T[::-1]
    left = right @ A.T
    lengths = np.linalg.norm(left, axis=1)
    if lengths[-1] < 1e-6 * lengths[0]:  # then the Gram matrix has lost the last of them
        U, s, Vt = np.linalg.svd(A, full_matrices=False)
        left, lengths, right = U.T[:k] * s[:k, None], s[:k], Vt[:k]
    left = left / lengths[:, None]
    values = scale * lengths
    return (left, values, right) if wide else (right, values, left)
