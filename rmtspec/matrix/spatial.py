"""A k x l kernel as a k x 1 and a 1 x l kernel, the second fitted to the inputs.

The convolution with V (rank x in x k x 1) and then U (out x rank x 1 x l) is one with the kernel
W'[o, i, a, b] = sum_r U[o, r, b] V[r, i, a], of rank (in k + out l) numbers [1]_. V comes from the
singular value decomposition of W as an (in k) x (out l) matrix, each of its sides weighted: by the
second moment of a column of the patch, and by the weight of the outputs. Given V, the outputs are
linear in U, whose best value is that of least squares with the second moment C of the patches:
U = W C A^T (A C A^T)^-1, where A (rank l x in k l) applies V to each column of a patch.

References
----------
.. [1] M. Jaderberg, A. Vedaldi, A. Zisserman, Speeding up convolutional neural networks with low
   rank expansions, BMVC (2014).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.in_dtype import in_dtype
from rmtspec.matrix.split import relative_errors
from rmtspec.matrix.weighting import RIDGE, Weighting
from rmtspec.terms import Form

Kernel = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class SpatialFactors:
    """The kernels of two convolutions that stand in for one.

    Attributes
    ----------
    inner : ndarray of shape (rank, in * k)
        V, in the dtype of the matrix.
    outer : ndarray of shape (out, rank * l)
        U, in the dtype of the matrix.
    rank : int
        Number of channels between them.
    error, output_error, predicted_loss : float
        As in `rmtspec.matrix.split.SplitFactors`, for the factors as returned.
    matrix : ndarray of shape (out, in * k * l)
        The kernel that they make, in float64.
    """

    inner: NDArray[Any]
    outer: NDArray[Any]
    rank: int
    error: float
    output_error: float
    predicted_loss: float
    matrix: Float64Array


def spatial_losses(
    W: ArrayLike, kernel: Kernel, input_moment: ArrayLike, output_weight: ArrayLike
) -> Float64Array:
    """Return the predicted loss that each further channel saves.

    Parameters
    ----------
    W : array_like of shape (out, in * k * l)
    kernel : (int, int)
        k and l.
    input_moment : array_like of shape (in * k * l, in * k * l)
        C of the patches.
    output_weight : array_like of shape (out,) or (out, out)

    Returns
    -------
    ndarray of shape (min(in * k, out * l),)
        Not always descending. Their sum is the loss without the layer.
    """
    from scipy.linalg import cholesky, solve_triangular

    array, weighting = _checked(W, kernel, input_moment, output_weight)
    applied = _applied(_first(array, kernel, weighting), kernel)
    moment = _ridged(weighting)
    seen = applied @ moment
    gram = seen @ applied.T
    gram.flat[:: len(gram) + 1] *= 1.0 + 1e-9  # the last channels say little that is new
    weighed = array @ seen.T  # W C A^T
    root = weighting.output_root
    if root is not None:
        weighed = root[:, None] * weighed if root.ndim == 1 else root.T @ weighed
    known = solve_triangular(cholesky(gram, lower=True), weighed.T, lower=True)
    saved: Float64Array = np.einsum("ij,ij->i", known, known) / 2.0
    each: Float64Array = saved.reshape(-1, kernel[1]).sum(1)
    return each


def spatial_split(
    W: ArrayLike,
    kernel: Kernel,
    rank: int,
    input_moment: ArrayLike,
    output_weight: ArrayLike | None = None,
) -> SpatialFactors:
    """Return the two kernels of a given number of channels.

    Parameters
    ----------
    W : array_like of shape (out, in * k * l)
    kernel : (int, int)
        k and l.
    rank : int
        Channels between them, at most the smaller of in * k and out * l.
    input_moment : array_like of shape (in * k * l, in * k * l)
        C of the patches.
    output_weight : array_like of shape (out,) or (out, out), optional

    Returns
    -------
    SpatialFactors

    Raises
    ------
    InvalidValueError
        The kernel does not divide the columns, a moment is none, or the dtype has no room for the
        kernels.

    Examples
    --------
    >>> import numpy as np
    >>> from rmtspec.matrix.spatial import spatial_split
    >>> rng = np.random.default_rng(0)
    >>> smooth = np.einsum("oi,a,b->oiab", rng.standard_normal((8, 5)), [1, 2, 1], [1, 3, 1])
    >>> found = spatial_split(smooth.reshape(8, 45), (3, 3), 5, np.eye(45))
    >>> found.inner.shape, found.outer.shape, bool(found.error < 1e-6)
    ((5, 15), (8, 15), True)
    """
    from scipy.linalg import solve

    array, weighting = _checked(W, kernel, input_moment, output_weight)
    rows, columns = array.shape
    rank = _checks.integer(rank, "rank", 1, Form.SPATIAL.most(rows, columns, kernel))
    inner = _first(array, kernel, weighting)[:rank]
    applied = _applied(inner, kernel)
    moment = _ridged(weighting)
    seen = applied @ moment
    gram = seen @ applied.T
    gram.flat[:: len(gram) + 1] *= 1.0 + 1e-9
    outer: Float64Array = solve(gram, seen @ array.T, assume_a="pos").T
    # Both kernels get entries of the same size, channel by channel.
    norms = [
        np.linalg.norm(inner, axis=1),
        np.linalg.norm(outer.reshape(len(array), rank, -1), axis=(0, 2)),
    ]
    scale = np.sqrt(np.divide(norms[1], norms[0], out=np.ones(rank), where=norms[0] > 0))
    scale[scale == 0.0] = 1.0
    dtype = _checks.matrix(W).dtype
    first = in_dtype(inner * scale[:, None], dtype)
    second = in_dtype(outer / np.repeat(scale, kernel[1]), dtype)
    product = second.astype(np.float64) @ _applied(first.astype(np.float64), kernel)
    error, output_error, _ = relative_errors(array, lambda a, b: product[a:b], weighting.moment)
    return SpatialFactors(
        first, second, rank, error=error, output_error=output_error,
        predicted_loss=weighting.loss(array - product), matrix=product,
    )  # fmt: skip


def _checked(
    W: ArrayLike, kernel: Kernel, input_moment: ArrayLike, output_weight: ArrayLike | None
) -> tuple[Float64Array, Weighting]:
    array = np.asarray(_checks.matrix(W), dtype=np.float64)
    if array.shape[1] % (kernel[0] * kernel[1]):
        raise InvalidValueError(
            f"`W` has {array.shape[1]} columns; expected in * {kernel[0]} * {kernel[1]}, a column "
            "for each entry of a patch."
        )
    return array, Weighting.of(array.shape, input_moment, output_weight)


def _ridged(weighting: Weighting) -> Float64Array:
    moment = np.array(weighting.moment)
    moment.flat[:: len(moment) + 1] += RIDGE * float(np.trace(moment)) / len(moment)
    return moment


def _first(array: Float64Array, kernel: Kernel, weighting: Weighting) -> Float64Array:
    """Return V for all channels, the most telling first."""
    from scipy.linalg import cholesky, eigh, solve_triangular

    (out, columns), (k, width) = array.shape, kernel
    inside = columns // (k * width)
    root = weighting.output_root
    if root is not None:
        array = root[:, None] * array if root.ndim == 1 else root.T @ array
    patches = np.asarray(weighting.moment).reshape(inside * k, width, inside * k, width)
    column = np.einsum("pbqb->pq", patches) / width
    column.flat[:: len(column) + 1] += RIDGE * float(np.trace(column)) / len(column)
    lower = cholesky(column, lower=True)
    matrix = array.reshape(out, inside * k, width).transpose(1, 0, 2).reshape(inside * k, -1)
    weighted = lower.T @ matrix
    most = Form.SPATIAL.most(out, columns, kernel)
    _, vectors = eigh(weighted @ weighted.T)
    vectors = vectors[:, ::-1][:, :most]
    found: Float64Array = solve_triangular(lower, vectors, lower=True, trans="T").T
    return found


def _applied(inner: Float64Array, kernel: Kernel) -> Float64Array:
    """Return A, which applies V to each column of a patch: (rank * l) x (in * k * l)."""
    rank, rows = inner.shape
    width = kernel[1]
    applied = np.zeros((rank, width, rows, width))
    for column in range(width):
        applied[:, column, :, column] = inner
    return applied.reshape(rank * width, rows * width)
