"""Eigenvalues of a symmetric matrix: in two stages where that is faster, else as SciPy does."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._lapack.library import found

Real = NDArray[Any]

#: Sides from which two stages are faster, by the precision of the matrix.
FROM = {"float64": 2560, "float32": 3584}
#: Threads up to which they are: the second stage, from the band, has one.
MOST_THREADS = {"float64": 4, "float32": 2}
#: Outside this range of the largest entry of the diagonal, the matrix is scaled first.
_LARGEST, _SMALLEST = {"float64": 1e100, "float32": 1e10}, {"float64": 1e-100, "float32": 1e-10}


def eigvalsh(matrix: Real, *, overwrite: bool = False) -> Real:
    """Return the eigenvalues of a symmetric matrix, ascending.

    A large matrix is reduced to a band by products of matrices, and the band to a tridiagonal
    matrix (Bischof, Lang and Sun, ACM TOMS 26, 581, 2000), as ``?sytrd_2stage`` of LAPACK does. The
    usual reduction spends half of its operations in products of the matrix with vectors, each of
    which reads the whole matrix.

    Parameters
    ----------
    matrix : ndarray of shape (p, p)
        float64 or float32, finite; only the upper triangle is read.
    overwrite : bool
        Whether the matrix may be destroyed, which saves its copy if it is in Fortran order.

    Returns
    -------
    ndarray of shape (p,)
        In the dtype of the matrix, off by a few units of rounding of the largest of them.
    """
    from scipy.linalg import eigvalsh as one_stage

    if in_two_stages(len(matrix), matrix.dtype):
        unit = _unit(matrix)
        work = np.array(matrix, order="F", copy=None if overwrite and unit == 1.0 else True)
        if unit != 1.0:
            work /= unit
        with np.errstate(under="ignore"):
            return found().two_stages().eigenvalues(work) * unit
    driver = "evd" if matrix.dtype == np.float64 else "evr"
    values: Real = one_stage(
        matrix, lower=False, overwrite_a=overwrite, check_finite=False, driver=driver
    )
    return values


def in_two_stages(side: int, dtype: Any = np.float64) -> bool:
    """Tell whether `eigvalsh` takes two stages for a matrix of this side."""
    name = np.dtype(dtype).name
    if side < FROM[name] or (library := found().library) is None:
        return False
    return library.threads() <= MOST_THREADS[name]


def used() -> str:
    """Return in words which LAPACK computes the eigenvalues of large matrices."""
    return found().words


def _unit(matrix: Real) -> float:
    """Return a power of two by which the matrix is divided, 1 unless it is very large or small."""
    largest, name = float(np.abs(np.diagonal(matrix)).max()), matrix.dtype.name
    if largest == 0.0 or _SMALLEST[name] < largest < _LARGEST[name]:
        return 1.0
    return math.ldexp(1.0, math.frexp(largest)[1] - 1)
