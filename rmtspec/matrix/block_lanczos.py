"""Lanczos with several starting vectors at a time, on the Gram matrix that is never formed."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array

Matrix = NDArray[Any]

#: Bytes of one block of rows.
_BLOCK_BYTES = 2**23


class Krylov(NamedTuple):
    """What `lanczos` made: each starting vector's tridiagonal matrix, and all basis vectors.

    `diagonals` has the shape (vectors, steps), `beside` (vectors, steps - 1); `basis` is a list of
    arrays (p, vectors), one for each step.
    """

    diagonals: Float64Array
    beside: Float64Array
    basis: list[Matrix]


class Gram:
    """The operator ``W.T @ W / n / unit**2`` of a tall matrix W of shape (n, p).

    Products are made in float32, or in float64 where the entries are, a block of rows at a time.
    """

    def __init__(self, tall: Matrix, n: int, unit: float) -> None:
        self._tall = tall
        self._n = n
        self._unit = unit
        self.dtype = np.dtype(np.float64 if tall.dtype.itemsize >= 8 else np.float32)

    def __matmul__(self, vectors: Matrix) -> Matrix:
        """Return the product with the columns of `vectors`, of shape (p, m)."""
        out = np.zeros(vectors.shape, dtype=self.dtype)
        for block in self.blocks():
            out += block.T @ (block @ vectors)
        out /= self.dtype.type(self._n)
        return out

    def blocks(self) -> Iterator[Matrix]:
        """Yield the rows in units of `unit`, one block in memory at a time."""
        step = max(1, _BLOCK_BYTES // (self.dtype.itemsize * max(self._tall.shape[1], 1)))
        for start in range(0, len(self._tall), step):
            block = np.asarray(self._tall[start : start + step], dtype=self.dtype)
            yield block if self._unit == 1.0 else block / self.dtype.type(self._unit)


class Ritz(NamedTuple):
    """What `ritz_values` found: values, descending, their residuals, and vectors as columns."""

    values: Float64Array
    residuals: Float64Array
    vectors: Matrix


def lanczos(gram: Gram, start: Matrix, steps: int, known: Matrix) -> Krylov:
    """Run Lanczos from each column of `start`, all in the same products, orthogonal to `known`.

    The columns of `known` are orthonormal, eigenvectors or nearly so: the operator is that of the
    other eigenvalues. Each vector is orthogonalised against all of its own earlier ones, so that no
    eigenvalue appears again by rounding.
    """
    start = _without(start, known)
    start = start / np.sqrt(_dots(start, start)).astype(gram.dtype)
    vectors, basis = start, [start]
    diagonals, beside = [], []
    for step in range(steps):
        image = _without(gram @ vectors, known)
        diagonals.append(_dots(image, vectors))
        for earlier in reversed(basis):
            image -= earlier * np.einsum("ij,ij->j", image, earlier)
        image = _without(image, known)
        lengths = np.sqrt(_dots(image, image))
        if step == steps - 1 or not lengths.all():
            break
        beside.append(lengths)
        vectors = image / lengths.astype(gram.dtype)
        basis.append(vectors)
    shape = (start.shape[1], 0)
    return Krylov(np.array(diagonals).T, np.array(beside).T if beside else np.empty(shape), basis)


def ritz_values(gram: Gram, basis: list[Matrix], most: int) -> Ritz:
    """Return the largest eigenvalues in the span of all basis vectors, residuals and vectors.

    An eigenvalue of the operator lies within the residual ``||A x - theta x||`` of each (Parlett,
    The Symmetric Eigenvalue Problem, 4.5).
    """
    from scipy.linalg import qr

    space = np.empty((len(basis[0]), sum(part.shape[1] for part in basis)), gram.dtype, order="F")
    np.concatenate(basis, axis=1, out=space)
    space = qr(space, mode="economic", overwrite_a=True, check_finite=False)[0]  # in its place
    image = gram @ space
    small = np.asarray(space.T @ image, dtype=np.float64)
    values, turns = np.linalg.eigh((small + small.T) / 2.0)
    kept = min(most, len(values))
    values, turns = values[::-1][:kept], turns[:, ::-1][:, :kept].astype(gram.dtype)
    vectors, rest = space @ turns, image @ turns
    del space, image
    rest -= vectors * values.astype(gram.dtype)
    return Ritz(values, np.sqrt(_dots(rest, rest)), vectors)


def _without(vectors: Matrix, known: Matrix) -> Matrix:
    """Return what is left of vectors without their part in the span of `known`."""
    return vectors - known @ (known.T @ vectors) if known.shape[1] else vectors


def _dots(some: Matrix, others: Matrix) -> Float64Array:
    """Return the products of columns, summed in float64."""
    sums: Float64Array = np.einsum("ij,ij->j", some, others, dtype=np.float64)
    return sums
