"""How many entries the leading singular vectors are spread over."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec.matrix.eigenvalues import blocks, gram_matrix

#: How many leading vectors are looked at.
LEADING = 8
#: Below this side all vectors are found at once.
_SMALL = 64


class Localization(NamedTuple):
    """Of the leading singular vectors, the first one first; shape (k,) each.

    With v a vector of norm 1, the participation is ``1 / sum(v^4)``, from 1 to its length, and the
    localization ``||v||_1 / ||v||_inf``, in the same range; "left" is the side of the rows.
    """

    left_participation: Float64Array
    right_participation: Float64Array
    left_localization: Float64Array
    right_localization: Float64Array


def localization(array: NDArray[Any], k: int = LEADING) -> Localization:
    """Return the participations and localizations of the k leading singular vectors, or all."""
    shorter, longer = _vectors(array, min(k, *array.shape))
    wide = array.shape[0] < array.shape[1]
    left, right = (shorter, longer) if wide else (longer, shorter)
    return Localization(
        left_participation=_participation(left), right_participation=_participation(right),
        left_localization=_localization(left), right_localization=_localization(right),
    )  # fmt: skip


def _participation(vectors: Float64Array) -> Float64Array:
    fourths: Float64Array = np.sum(vectors**4, axis=0)
    return 1.0 / fourths


def _localization(vectors: Float64Array) -> Float64Array:
    sizes = np.abs(vectors)
    ratios: Float64Array = sizes.sum(axis=0) / sizes.max(axis=0)
    return ratios


def _vectors(array: NDArray[Any], k: int) -> tuple[Float64Array, Float64Array]:
    """Return the k leading singular vectors of the shorter side and of the longer, as columns."""
    gram, wide = gram_matrix(array)
    gram /= np.trace(gram)
    shorter = _leading(gram, k)
    del gram
    tall = array.T if wide else array
    longer = np.empty((tall.shape[0], k))
    largest = max(float(np.abs(block).max()) for _, block in blocks(tall))
    for start, block in blocks(tall):
        np.matmul(block / largest, shorter, out=longer[start : start + len(block)])
        del block  # before the next one is made
    norms = np.linalg.norm(longer, axis=0)
    longer /= np.where(norms > 0.0, norms, 1.0)
    return shorter, longer


def _leading(gram: Float64Array, k: int) -> Float64Array:
    """Return the k leading eigenvectors from the upper triangle of a symmetric matrix."""
    from scipy.linalg import eigh
    from scipy.linalg.blas import dsymv
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    p = len(gram)
    if p > max(_SMALL, 4 * k):
        operator = LinearOperator(
            (p, p), matvec=lambda x: dsymv(1.0, gram, x, lower=0), dtype=np.float64
        )
        start = np.random.default_rng(0).standard_normal(p)
        try:
            values, vectors = eigsh(operator, k=k, which="LA", v0=start, ncv=min(p, 5 * k))
            return np.asarray(vectors[:, np.argsort(-values)])
        except ArpackError:  # it did not converge: all of the matrix is reduced instead
            pass
    found = eigh(gram, lower=False, check_finite=False, subset_by_index=(p - k, p - 1))[1]
    return np.ascontiguousarray(found[:, ::-1])
