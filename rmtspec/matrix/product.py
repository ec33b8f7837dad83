"""The spectrum of a product of two thin factors, at the cost of the factors."""

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.spectrum import Spectrum

_EPS = float(np.finfo(np.float64).eps)


def product_spectrum(outer: ArrayLike, inner: ArrayLike) -> Spectrum:
    """Return the spectrum of ``outer @ inner``, which is not computed.

    With outer = Q R and inner^T = P S (QR decompositions), the product has the singular values of
    R S^T, a k x k matrix, and zeros. So at a rank k that is much below the smaller side, it has no
    bulk for a law to be fitted to, whatever its k singular values look like.

    Parameters
    ----------
    outer : array_like of shape (rows, k)
    inner : array_like of shape (k, columns)
        Real, of any floating dtype.

    Returns
    -------
    Spectrum
        As `spectrum` of the product, in float64: zero rows and columns are left out.

    Raises
    ------
    InvalidTypeError
        A factor is not a real matrix.
    InvalidValueError
        The factors do not fit together, or have nan or infinite entries.

    Examples
    --------
    >>> import rmtspec
    >>> from rmtspec.matrix.product import product_spectrum
    >>> parts = rmtspec.split(rmtspec.ensembles.spiked(400, 300, [3, 20], rng=0), 2)
    >>> spec = product_spectrum(parts.outer, parts.inner)
    >>> spec.shape, spec.numerical_rank, rmtspec.bema(spec).reason
    ((400, 300), 2, 'no bulk')
    """
    from scipy.linalg import qr, svdvals

    left = np.asarray(_checks.matrix(outer, "outer"), dtype=np.float64)
    right = np.asarray(_checks.matrix(inner, "inner"), dtype=np.float64)
    if left.shape[1] != right.shape[0]:
        raise InvalidValueError(
            f"`outer` has shape {left.shape} and `inner` {right.shape}; expected as many columns "
            "of `outer` as rows of `inner`, as `split` returns them."
        )
    for name, factor in (("outer", left), ("inner", right)):
        if not np.isfinite(factor).all():
            raise InvalidValueError(
                f"`{name}` has nan or infinite entries; expected finite numbers. A layer whose "
                "training diverged has no spectrum."
            )
    shape = (left.shape[0], right.shape[1])
    left, right = left[left.any(1)], right[:, right.any(0)]
    sides = (len(left), right.shape[1])
    dropped = (shape[0] - sides[0], shape[1] - sides[1])
    if 0 in sides:
        sides, dropped = shape, (0, 0)
        values = np.zeros(0)
    else:
        core = qr(left, mode="r")[0][: left.shape[1]] @ qr(right.T, mode="r")[0][: len(right)].T
        values = svdvals(core)
    n, p = max(sides), min(sides)
    eigenvalues = np.zeros(p)
    kept = np.square(values[:p]) / n
    eigenvalues[p - len(kept) :] = kept[::-1]
    return Spectrum.from_dict(
        {
            "eigenvalues": eigenvalues, "n": n, "shape": shape, "method": "svd",
            "dtype": "float64", "rounding_variance": 100.0 * _EPS**2 * float(eigenvalues[-1]),
            "dropped_rows": dropped[0], "dropped_columns": dropped[1],
        }
    )  # fmt: skip
