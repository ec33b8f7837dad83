"""Eigenvalues of many small symmetric matrices in one call."""

import numpy as np
from numba import config

from rmtspec._checks import Float64Array
from rmtspec._kernels.symmetric import eigenvalues_of_stack


def stacked_eigvalsh(matrices: Float64Array) -> Float64Array:
    """Return the eigenvalues of each matrix of a stack, ascending, as `numpy.linalg.eigvalsh`.

    Each is to the last digit what it is alone. With sides of 16 to 128 this takes a third to a half
    of LAPACK's time, which spends most of its own waiting for divisions.

    Parameters
    ----------
    matrices : ndarray of shape (count, p, p)
        Real, symmetric, finite, in C order; overwritten.

    Returns
    -------
    ndarray of shape (count, p)
    """
    if config.DISABLE_JIT:  # type: ignore[attr-defined]  # the kernel would take seconds
        return np.asarray(np.linalg.eigvalsh(matrices), dtype=np.float64)
    diagonals = matrices.diagonal(axis1=1, axis2=2).copy()
    values: Float64Array = eigenvalues_of_stack(matrices)
    values.sort(axis=1)
    failed = np.isnan(values[:, -1])  # nan comes last
    if failed.any():  # what is above the diagonal was left as it was
        rest = matrices[failed]
        places = np.arange(rest.shape[1])
        rest[:, places, places] = diagonals[failed]
        values[failed] = np.linalg.eigvalsh(rest, UPLO="U")
    return values
