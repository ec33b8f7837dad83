"""Leading singular subspaces of two matrices: how far one is turned against the other."""

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array

#: Up to this smaller side, and from this share of all vectors on, all of them are computed.
_SMALL, _FEW = 256, 0.1
#: Chance that a direction at random seems to lie in a subspace, for all directions together.
_LEVEL = 0.01


def leading_vectors(array: NDArray[Any], k: int) -> tuple[Float64Array, Float64Array]:
    """Return the k leading left and right singular vectors, (rows, k) and (columns, k)."""
    from scipy.sparse.linalg import ArpackError, svds

    wide = np.asarray(array, dtype=np.float64)
    p = min(wide.shape)
    if p > _SMALL and k <= _FEW * p:
        start = np.random.default_rng(0).standard_normal(p)
        with contextlib.suppress(ArpackError):
            left, singular, right = svds(wide, k=k, v0=start)
            order = np.argsort(-singular, kind="stable")
            return left[:, order], right[order].T
    left, _, right = np.linalg.svd(wide, full_matrices=False)
    return left[:, :k], right[:k].T


def product_vectors(
    outer: NDArray[Any], inner: NDArray[Any], k: int
) -> tuple[Float64Array, Float64Array]:
    """Return the same of ``outer @ inner``, which is not computed."""
    left, core_left = np.linalg.qr(np.asarray(outer, dtype=np.float64))
    right, core_right = np.linalg.qr(np.asarray(inner, dtype=np.float64).T)
    u, _, vt = np.linalg.svd(core_left @ core_right.T)
    return left @ u[:, :k], right @ vt[:k].T


def principal_angles(one: Float64Array, other: Float64Array) -> Float64Array:
    """Return the angles between two subspaces in degrees, ascending; orthonormal columns span each.

    .. [1] A. Bjorck, G. Golub, Numerical methods for computing angles between linear subspaces,
       Math. Comp. 27 (1973).
    """
    from scipy.linalg import subspace_angles

    angles: Float64Array = np.degrees(subspace_angles(one, other))[::-1]
    return angles


def overlap(angles: Float64Array) -> float:
    """Return the mean squared cosine of principal angles: 1 for equal, k / d for random ones."""
    return float(np.mean(np.square(np.cos(np.radians(angles))))) if angles.size else np.nan


def lies_within(vectors: Float64Array, span: Float64Array) -> NDArray[np.bool_]:
    """Tell for each column of `vectors` whether it leans into a subspace more than by chance.

    The squared length of the projection of a random direction in d dimensions onto r of them has
    the distribution Beta(r / 2, (d - r) / 2); the level is 0.01 for all columns together.
    """
    from scipy.special import betainccinv

    d, r = span.shape
    count = vectors.shape[1]
    if not count or not r or r >= d:
        return np.zeros(count, dtype=bool)
    share = np.square(span.T @ vectors).sum(axis=0)
    return np.asarray(share > betainccinv(r / 2.0, (d - r) / 2.0, _LEVEL / count))
