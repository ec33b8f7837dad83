"""Rules that look at the entries: parallel analysis and bi-cross-validation."""

import math
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.spectrum import Spectrum, spectrum


def parallel_rank(array: Any, spec: Spectrum, beta: float, rng: Any) -> int:
    """Return the rank by permutation parallel analysis at level `beta`.

    Each draw shuffles every line of the shorter side's number (each column of a matrix with more
    rows than columns) on its own. The k-th singular value counts if it exceeds all but a share
    `beta` of the k-th of the draws, and those before it count (A. Buja, N. Eyuboglu, Remarks on
    parallel analysis, Multivariate Behavioral Research 27, 1992). There are as many draws as make
    the level exact for columns of exchangeable entries: 19 for 0.05 and above, 99 for 0.01.
    """
    tall = _tall(array)
    if tall.size == 0:
        return 0
    draws = max(19, math.ceil(1.0 / beta - 1e-9) - 1)
    kept = math.ceil((1.0 - beta) * (draws + 1) - 1e-9)  # of the draws, in ascending order
    generator: np.random.Generator = np.random.default_rng(rng)
    squares = np.zeros((draws, spec.p))  # a shuffled row may be zero, and is left out
    for b in range(draws):
        shuffled = spectrum(generator.permuted(tall, axis=0))
        squares[b, : shuffled.p] = _squares(shuffled)[::-1]
    limits = np.sort(squares, axis=0)[kept - 1]
    above = _squares(spec)[::-1] > limits * (1.0 + 1e-10)  # equal but for rounding is not above
    return int(spec.p if above.all() else np.argmin(above))


def bcv_rank(array: Any, rng: Any) -> int:
    """Return the rank by bi-cross-validation, half of the rows and half of the columns left out.

    With the matrix cut into blocks [[A, B], [C, D]] at random, A is predicted from the others as
    B D_k^+ C, D_k the best approximation of D of rank k. The rank is the k of the least squared
    error over the four blocks (A. B. Owen, P. O. Perry, Bi-cross-validation of the SVD and the
    nonnegative matrix factorization, Annals of Applied Statistics 3, 2009, with the halves that
    they recommend); the least rank if several are equal.
    """
    W = _tall(array)
    if W.size == 0:
        return 0
    if min(W.shape) < 2:
        raise InvalidValueError(
            f"`W` has {W.shape[0]} x {W.shape[1]} rows and columns that are not zero, and rule "
            "'bcv' leaves out half of each; expected at least 2 x 2. Choose another rule."
        )
    largest = float(np.abs(W).max())
    generator: np.random.Generator = np.random.default_rng(rng)
    rows, columns = (np.array_split(generator.permutation(side), 2) for side in W.shape)
    errors = [
        _errors(
            W[np.ix_(left, top)] / largest,
            W[np.ix_(left, other)] / largest,
            W[np.ix_(rest, top)] / largest,
            W[np.ix_(rest, other)] / largest,
        )
        for left, rest in (rows, rows[::-1])
        for top, other in (columns, columns[::-1])
    ]
    size = min(map(len, errors))
    return int(np.argmin(np.sum([e[:size] for e in errors], axis=0)))


def _errors(A: Float64Array, B: Float64Array, C: Float64Array, D: Float64Array) -> Float64Array:
    """Return ||A - B D_k^+ C||^2 for k = 0, 1, ... up to the rank of D."""
    U, s, Vt = np.linalg.svd(D, full_matrices=False)
    k = int(np.count_nonzero(s > s[0] * max(D.shape) * np.finfo(np.float64).eps))
    left = B @ (Vt[:k].T / s[:k])
    right = U[:, :k].T @ C
    linear = np.einsum("ik,ij,kj->k", left, A, right, optimize=True)
    square = np.cumsum(np.cumsum((left.T @ left) * (right @ right.T), axis=0), axis=1)
    change = np.diagonal(square) - 2.0 * np.cumsum(linear)
    return float(np.vdot(A, A)) + np.concatenate([[0.0], change])


def _tall(array: Any) -> Float64Array:
    """Return the matrix as float64 with its longer side first, without zero rows and columns."""
    W = np.asarray(_checks.matrix(array), dtype=np.float64)
    W = W[W.any(axis=1)][:, W.any(axis=0)]
    return W.T if W.shape[0] < W.shape[1] else W


def _squares(spec: Spectrum) -> Float64Array:
    squares: Float64Array = spec.n * spec.eigenvalues
    return squares
