"""All singular values and some leading right singular vectors from one reduction."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec.matrix.eigenvalues import Eigenvalues, bulk_is_safe
from rmtspec.matrix.entries import Entries, Scales

_EPS = float(np.finfo(np.float64).eps)


class Eigensystem:
    """Spectrum of a scaled matrix Z, and its leading right singular vectors on request.

    The Gram matrix is reduced to tridiagonal form once: all eigenvalues, and as many vectors as
    are asked for, follow at a fraction of that cost. If the largest eigenvalue is so large that
    the bulk would be rounding noise, Z itself is decomposed instead.

    Attributes
    ----------
    squares : ndarray of shape (p,)
        s^2, ascending.
    eigenvalues : Eigenvalues
        The same divided by n, with their route.
    """

    def __init__(self, entries: Entries, scales: Scales) -> None:
        self._entries, self._scales = entries, scales
        route = self._decompose()
        self.eigenvalues = Eigenvalues(self.squares / entries.n, entries.n, route, _EPS)

    def _decompose(self) -> str:
        """Set the eigenvalues and what `vectors` needs, and return the route."""
        from scipy.linalg import lapack

        p = self._entries.p
        gram = _lower_gram(self._entries, self._scales)
        work = int(lapack.dsytrd_lwork(p, lower=1)[0])
        reflected, self._diagonal, self._beside, self._tau, _ = lapack.dsytrd(
            gram, lower=1, lwork=work, overwrite_a=1
        )
        values = lapack.dsterf(self._diagonal, self._beside)[0] if p > 1 else self._diagonal
        self.squares: Float64Array = np.maximum(values, 0.0)
        self._reflectors: Float64Array | None = _below(reflected)
        self._vectors: Float64Array | None = None
        if bulk_is_safe(self.squares):
            return "gram"
        del gram, reflected
        self._reflectors = None
        whole = np.vstack([block for _, block in self._entries.blocks(self._scales)])
        _, singular, right = np.linalg.svd(whole, full_matrices=False)
        self.squares, self._vectors = np.square(singular[::-1]), right.T
        return "svd"

    def forget(self) -> None:
        """Free what only `vectors` needs; it is made again if they are asked for."""
        self._reflectors = self._vectors = None

    def vectors(self, k: int) -> Float64Array:
        """Return the k leading right singular vectors, descending, of shape (p, k)."""
        from scipy.linalg import eigh_tridiagonal, lapack

        if self._reflectors is None and self._vectors is None:
            self._decompose()
        if self._vectors is not None:
            return np.ascontiguousarray(self._vectors[:, :k])
        p = self._diagonal.size
        if p == 1:
            return np.ones((1, k))
        vectors = eigh_tridiagonal(
            self._diagonal, self._beside, select="i", select_range=(p - k, p - 1),
            lapack_driver="stemr", check_finite=False,
        )[1]  # fmt: skip
        vectors = np.asfortranarray(vectors[:, ::-1])
        # Q = H(1) ... H(p-1), whose vectors are stored below the subdiagonal.
        turned, work = np.asfortranarray(vectors[1:]), max(1, 64 * k)
        vectors[1:] = lapack.dormqr(
            "L", "N", self._reflectors, self._tau, turned, work, overwrite_c=1
        )[0]  # fmt: skip
        return np.ascontiguousarray(vectors)


def _below(square: Float64Array) -> Float64Array:
    """Return the part below the diagonal, (p - 1, p - 1) in Fortran order, in the same memory."""
    p = len(square)
    columns = square.reshape(-1, order="F")
    for j in range(p - 1):
        columns[j * (p - 1) : (j + 1) * (p - 1)] = columns[j * p + 1 : (j + 1) * p]
    return columns[: (p - 1) ** 2].reshape((p - 1, p - 1), order="F")


def _lower_gram(entries: Entries, scales: Scales) -> Float64Array:
    """Return the lower triangle of Z^T Z, in Fortran order."""
    from scipy.linalg.blas import dsyrk

    gram = np.zeros((entries.p, entries.p), order="F")
    for _, block in entries.blocks(scales):
        gram = dsyrk(1.0, block.T, beta=1.0, c=gram, trans=0, lower=1, overwrite_c=1)
        del block  # before the next one is made
    return gram


def residual(
    entries: Entries, scales: Scales, system: Eigensystem, k: int, *, dtype: type = np.float64
) -> tuple[NDArray[Any], float]:
    """Return Z without k components, corrected for leverage, and their share of ||W||^2.

    E_ij = (Z - U_k S_k V_k^T)_ij / sqrt((1 - h_i)(1 - g_j)), where the leverages h and g are the
    row sums of squares of U_k and V_k. The share is 1 - ||W - C||^2 / ||W||^2 with the components
    C in the units of W; nan where they are larger than W there. E has shape (n, p), C order and the
    dtype asked for.
    """
    vectors = system.vectors(k) if k else None  # needs memory of its own
    left_over: NDArray[Any] = np.empty((entries.n, entries.p), dtype)
    if vectors is None:
        for start, block in entries.blocks(scales):
            left_over[start : start + len(block)] = block
            del block
        return left_over, 0.0
    inverse = 1.0 / np.maximum(system.squares[::-1][:k], math.ulp(0.0))
    columns = _corrections(np.einsum("jk,jk->j", vectors, vectors))
    lost = 0.0
    for start, block in entries.blocks(scales):
        here = slice(start, start + len(block))
        projected = block @ vectors
        rows = _corrections(np.einsum("ik,ik,k->i", projected, projected, inverse))
        part = projected @ vectors.T
        np.subtract(block, part, out=part)
        np.square(part, out=block)
        with np.errstate(over="ignore", invalid="ignore"):  # of scales that go apart without end
            energies = block @ np.square(scales.columns)
            lost += float(np.dot(energies, np.square(scales.rows[here] / entries.largest)))
        part *= 1.0 / rows[:, None]
        np.multiply(part, 1.0 / columns, out=left_over[here], casting="same_kind")
        del block, part
    # Entries without equalizing scales, such as a single full row and column: no share is known.
    return left_over, 1.0 - lost / entries.energy if lost < 2.0 * entries.energy else math.nan


def _corrections(leverages: Float64Array) -> Float64Array:
    return np.sqrt(np.maximum(1.0 - leverages, 0.05))
