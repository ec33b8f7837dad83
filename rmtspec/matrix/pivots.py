"""A product of two factors in fewer numbers: some of its rows, and the others as combinations.

A matrix of rank k, m x n, has k rows that span the others. Kept as they are (k n numbers), with
the coefficients of the others (k (m - k) numbers), they make the same matrix from k (m + n - k)
numbers, where two factors take k (m + n): pivoting factorization [1]_.

References
----------
.. [1] J. Zhao, M. Zhang, M. Wang, Y. Shang, K. Zhang, W. Guan, Y. Wang, M. Zhang, Pivoting
   factorization: a compact meta low-rank representation of sparsity for efficient inference in
   large language models, ICML (2025).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec._checks import Float64Array

_EPS = float(np.finfo(np.float64).eps)


class PivotedFactors(NamedTuple):
    """A matrix as some of its rows and the combinations of them that give the others.

    Attributes
    ----------
    kept : ndarray of shape (k, columns)
        The pivot rows.
    mixing : ndarray of shape (rows - k, k)
        The coefficients of the other rows.
    place : ndarray of shape (rows,)
        Which row of the stack of `kept` and ``mixing @ kept`` each row of the matrix is.
    """

    kept: Float64Array
    mixing: Float64Array
    place: NDArray[np.int64]


def pivoted(outer: ArrayLike, inner: ArrayLike) -> PivotedFactors:
    """Return the product ``outer @ inner`` as pivot rows and combinations of them.

    The pivots are those of a QR decomposition of the outer factor's transpose with column pivoting,
    which keeps the coefficients small. Directions that the outer factor lacks get coefficients 0.

    Parameters
    ----------
    outer : array_like of shape (rows, k)
    inner : array_like of shape (k, columns)

    Returns
    -------
    PivotedFactors

    Examples
    --------
    >>> import numpy as np
    >>> from rmtspec.matrix.pivots import pivoted
    >>> outer, inner = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0, 1.0]])
    >>> kept, mixing, place = pivoted(outer, inner)
    >>> np.vstack([kept, mixing @ kept])[place]
    array([[1., 1.],
           [2., 2.],
           [3., 3.]])
    """
    from scipy.linalg import qr, solve_triangular

    left, right = np.asarray(outer, dtype=np.float64), np.asarray(inner, dtype=np.float64)
    rows, k = left.shape
    upper, order = qr(left.T, mode="r", pivoting=True, check_finite=False)
    upper = upper[:k]
    sizes = np.abs(np.diag(upper))
    rank = int(np.count_nonzero(sizes > _EPS * rows * sizes[0])) if sizes.size else 0
    mixing = np.zeros((rows - k, k))
    if rank and rows > k:
        mixing[:, :rank] = solve_triangular(
            upper[:rank, :rank], upper[:rank, k:], check_finite=False
        ).T
    place = np.empty(rows, dtype=np.int64)
    place[order] = np.arange(rows)
    return PivotedFactors(left[order[:k]] @ right, mixing, place)
