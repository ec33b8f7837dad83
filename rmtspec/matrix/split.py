"""Split: a matrix as the product of two thin factors that keep its largest singular values."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._text import Readable, aligned
from rmtspec.matrix.eigenvalues import blocks, gram_matrix
from rmtspec.matrix.in_dtype import in_dtype
from rmtspec.matrix.shrinkage import check_rank, check_shrink, noise_shape, shrunk
from rmtspec.matrix.spiked_model import residual_variance
from rmtspec.matrix.weighting import Weighting

#: Beyond this share of all vectors, divide and conquer for all is faster than bisection for some
#: (measured: the two are equal at 0.2 to 0.4 for smaller sides of 200 to 2500).
_FEW = 0.3
#: Above this discarded energy, ||W||^2 - sum s^2 has at least eight digits and the rounding of the
#: factors (float32 or better) is negligible; below, the error is measured on the product.
_PLAIN_ENERGY = 1e-6


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SplitFactors(Readable):
    """Two factors whose product ``outer @ inner`` approximates the matrix.

    Attributes
    ----------
    outer : ndarray of shape (rows, rank)
        U sqrt(S), in the dtype of the matrix.
    inner : ndarray of shape (rank, columns)
        sqrt(S) V^T, in the dtype of the matrix.
    rank : int
        Number of singular values kept.
    singular_values : ndarray of shape (rank,)
        The singular values kept, descending; with an input moment C or an output weight G, those of
        G^(1/2) W C^(1/2); with shrinkage, those of the product, which may be 0.
    error : float
        ||W - outer @ inner|| / ||W|| in the Frobenius norm, for the factors as returned: it
        includes rounding to their dtype wherever that matters.
    discarded_energy : float
        The share of ||W||^2 left out, the square of `error`.
    output_error : float
        ||(W - outer @ inner) C^(1/2)|| / ||W C^(1/2)|| with an input moment C, else nan.
    predicted_loss : float
        Half of tr(G (W - outer @ inner) C (W - outer @ inner)^T) with an input moment C and an
        output weight G, else nan: the growth of the loss to second order.
    shrink : str or None
        The norm of the shrinkage, as given.
    noise_variance : float
        Variance of the noise that the shrinkage assumed, else nan.
    """

    outer: NDArray[Any]
    inner: NDArray[Any]
    rank: int
    singular_values: Float64Array
    error: float
    discarded_energy: float
    output_error: float
    predicted_loss: float = math.nan
    shrink: str | None = None
    noise_variance: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return sizes, errors and singular values as JSON-ready values, without the factors."""
        shrinkage = {"shrink": self.shrink, "noise_variance": self.noise_variance}
        return {
            "rank": self.rank,
            "rows": self.outer.shape[0],
            "columns": self.inner.shape[1],
            "dtype": str(self.outer.dtype),
            "parameters": self.outer.size + self.inner.size,
            "error": self.error,
            "discarded_energy": self.discarded_energy,
            "output_error": None if math.isnan(self.output_error) else self.output_error,
            "predicted_loss": None if math.isnan(self.predicted_loss) else self.predicted_loss,
            "singular_values": self.singular_values.tolist(),
            **(shrinkage if self.shrink else {}),
        }

    def __repr__(self) -> str:
        rows, columns = self.outer.shape[0], self.inner.shape[1]
        after = self.outer.size + self.inner.size
        pairs: list[tuple[str, object]] = [
            ("outer, inner", f"{rows} x {self.rank}, {self.rank} x {columns} {self.outer.dtype}"),
            ("parameters", f"{after:,} instead of {rows * columns:,}"),
            ("error", f"{self.error:.6g} (discarded energy {self.discarded_energy:.6g})"),
        ]
        if not math.isnan(self.output_error):
            pairs.append(("output error", self.output_error))
        if not math.isnan(self.predicted_loss):
            pairs.append(("predicted loss", self.predicted_loss))
        if self.shrink:
            pairs.append(
                ("shrunk", f"{self.shrink} norm, noise variance {self.noise_variance:.6g}")
            )
        return aligned("SplitFactors", pairs)


def split(
    W: ArrayLike,
    rank: Any,
    *,
    input_moment: ArrayLike | None = None,
    output_weight: ArrayLike | None = None,
    shrink: str | None = None,
    noise_variance: float | None = None,
) -> SplitFactors:
    """Split a matrix into two factors of the given rank (the paper, section 4.2, step 9).

    The result is the best approximation of that rank in the Frobenius norm: W V V^T, where V are
    the leading `rank` right singular vectors (or U U^T W from the smaller side). Only these vectors
    are computed, from the smaller Gram matrix; the projection makes the result insensitive to the
    rounding of the Gram matrix. With `input_moment`, the error of the output is minimised instead;
    with `output_weight` besides, what a loss loses by it. With `shrink`, the product is brought
    near to the signal in the matrix, not to the matrix.

    Parameters
    ----------
    W : array_like of shape (rows, columns)
        Real, of any floating dtype, which the factors share (integers give float64).
    rank : int or RankDecision
        From 1 to the smaller side.
    input_moment : array_like of shape (columns, columns), optional
        Second moment C = X X^T / count of the inputs (X of shape (columns, count)). Then
        ||(W - W') C^(1/2)|| is minimised, with C regularised by 0.1 % of its mean diagonal.
    output_weight : array_like of shape (rows,) or (rows, rows), optional
        How much the outputs matter: the second moment G = E[g g^T] of the gradients g of a loss at
        the outputs, or its diagonal. Then ||G^(1/2) (W - W') C^(1/2)|| is minimised, with G
        regularised likewise, and C = I without `input_moment`.
    shrink : {"frobenius", "operator", "nuclear"}, optional
        Noise makes singular values too large and turns their vectors. With `shrink`, each kept
        value is lowered to the one that brings the product nearest to the signal in that norm,
        where the signal has rank `rank` and the noise is white [1]_ [2]_. Values that do not stand
        beyond the edge of the noise become 0, and so do their column and row; `rank` stays. Not
        together with `input_moment` or `output_weight`. The errors of the result remain those
        against `W`, and grow.
    noise_variance : float, optional
        Variance of the noise entries, for `shrink`. By default it is estimated from the energy that
        the split leaves out, as in `rmtspec.noise_variance`, which takes a rank below the smaller
        side. Where entries differ in variance, it is the mean, and the values are lowered by less
        than would be best.

    Returns
    -------
    SplitFactors

    Raises
    ------
    InvalidTypeError
        `W` is not a real matrix, or `rank` is not a whole number.
    InvalidValueError
        `W` has nan or inf, the rank is below 1 or above the smaller side, or a weight has the wrong
        shape, is not symmetric, or has directions of negative weight; or the options do not go
        together, or the dtype has no room for the factors.

    References
    ----------
    .. [1] M. Gavish, D. L. Donoho, Optimal shrinkage of singular values, IEEE Trans. Inf. Theory 63
       (2017).
    .. [2] W. Leeb, Optimal singular value shrinkage for operator norm loss: extending to non-square
       matrices, Stat. Probab. Lett. 186 (2022).

    Examples
    --------
    >>> import rmtspec
    >>> W = rmtspec.ensembles.spiked(400, 300, [3, 20], rng=0)
    >>> rmtspec.split(W, 2)
    SplitFactors
      outer, inner  400 x 2, 2 x 300 float64
      parameters    1,400 instead of 120,000
      error         0.6459 (discarded energy 0.417187)
    """
    check_shrink(shrink, noise_variance, input_moment=input_moment, output_weight=output_weight)
    array = _checks.matrix(W)
    variance = math.nan
    hint = f"`W` is {array.shape[0]} x {array.shape[1]}. Rank 0 means that no signal was found: "
    hint += "leave the matrix as it is."
    k = _checks.integer(rank, "rank", 1, min(array.shape), hint=hint)
    dtype = array.dtype if _checks.is_float(array.dtype) else np.dtype(np.float64)
    weighting = Weighting.of(array.shape, input_moment, output_weight)
    if input_moment is None and output_weight is None:
        outer, inner, singular, energy = _leading(array, k)
        discarded = 1.0 - float(np.sum(np.square(singular))) / energy if energy else 0.0
        if shrink is not None and energy:
            observed = _Unshrunk(
                array=array, outer=outer, inner=inner, singular=singular, energy=energy
            )
            outer, inner, singular, variance = _shrunk(observed, shrink, noise_variance)
            discarded += float(np.sum(np.square(observed.singular - singular))) / energy
    else:
        weighted = weighting.applied(np.asarray(array, dtype=np.float64))
        outer, inner, singular, _ = _leading(weighted, k)
        discarded = math.nan  # the projection is not orthogonal in the weights
        outer, inner = _balance(*weighting.undone(outer, inner))
    outer, inner = in_dtype(outer, dtype), in_dtype(inner, dtype)
    loss = math.nan
    if discarded > _PLAIN_ENERGY and _checks.resolution(dtype)[0] < 1e-6:
        error, output_error = math.sqrt(discarded), math.nan
    else:
        factor = np.asarray(inner, dtype=np.float64)
        error, output_error, loss = relative_errors(
            array,
            lambda a, b: np.asarray(outer[a:b], dtype=np.float64) @ factor,
            weighting.moment,
            weighting.weight,
        )
        discarded = error**2
        if weighting.weight is not None and weighting.weight.ndim == 2:
            product = np.asarray(outer, dtype=np.float64) @ factor
            loss = weighting.loss(np.asarray(array, dtype=np.float64) - product)
    return SplitFactors(
        outer=outer, inner=inner, rank=k, singular_values=singular,
        error=error, discarded_energy=discarded, output_error=output_error,
        predicted_loss=loss, shrink=shrink, noise_variance=variance,
    )  # fmt: skip


def _leading(array: NDArray[Any], k: int) -> tuple[Float64Array, Float64Array, Float64Array, float]:
    """Return U sqrt(S), sqrt(S) V^T and S of the k largest singular values, and ||array||^2."""
    from scipy.linalg import eigh

    gram, wide = gram_matrix(array)
    p, energy = gram.shape[0], float(np.trace(gram))
    how = {"driver": "evd"} if k > _FEW * p else {"subset_by_index": (p - k, p - 1)}
    vectors = eigh(gram, lower=False, overwrite_a=True, check_finite=False, **how)[1]
    vectors = np.asfortranarray(vectors[:, ::-1][:, :k])  # descending; a copy of these alone
    del gram
    tall = array.T if wide else array
    other = np.empty((tall.shape[0], k))
    for start, block in blocks(tall):
        np.matmul(block, vectors, out=other[start : start + len(block)])
        del block  # before the next one is made
    singular = np.sqrt(np.einsum("ij,ij->j", other, other))
    if (np.diff(singular) > 0.0).any():  # equal values out of order by rounding
        order = np.argsort(-singular, kind="stable")
        singular, other, vectors = singular[order], other[:, order], vectors[:, order]
    root = np.sqrt(singular)
    other /= np.where(root > 0.0, root, 1.0)  # where a singular value is 0, so is its column
    vectors *= root
    return (vectors, other.T, singular, energy) if wide else (other, vectors.T, singular, energy)


class _Unshrunk(NamedTuple):
    """A matrix, the factors of its truncation, their singular values, and ||array||^2."""

    array: NDArray[Any]
    outer: Float64Array
    inner: Float64Array
    singular: Float64Array
    energy: float


def _shrunk(
    parts: _Unshrunk, norm: str, noise_variance: float | None
) -> tuple[Float64Array, Float64Array, Float64Array, float]:
    """Return the factors and their singular values shrunk, and the variance of the noise."""
    array, outer, inner, singular, energy = parts
    n, p = noise_shape(array)
    if noise_variance is not None:
        variance = float(noise_variance)
    else:
        check_rank(len(singular), p)
        beyond = energy - float(np.sum(np.square(singular)))
        if beyond <= _PLAIN_ENERGY * energy:  # too few digits are left of the difference
            error = relative_errors(array, lambda a, b: outer[a:b] @ inner, None)[0]
            beyond = error**2 * energy
        variance = residual_variance(beyond, np.square(singular), n=n, p=p)
    lower = shrunk(singular, norm, variance=variance, n=n, p=p)
    root = np.sqrt(lower / np.where(singular > 0.0, singular, 1.0))
    return outer * root, inner * root[:, None], lower, variance


def _balance(outer: Float64Array, inner: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Scale each pair of column and row to equal norms, leaving the product unchanged."""
    left = np.sqrt(np.einsum("ij,ij->j", outer, outer))
    right = np.sqrt(np.einsum("ij,ij->i", inner, inner))
    both = (left > 0.0) & (right > 0.0)
    scale = np.sqrt(np.where(both, right, 1.0) / np.where(both, left, 1.0))
    return outer * scale, inner / scale[:, None]


def relative_errors(
    array: NDArray[Any],
    approximation: Callable[[int, int], Float64Array],
    moment: ArrayLike | None,
    weight: Float64Array | None = None,
) -> tuple[float, float, float]:
    """Return the relative Frobenius errors of a matrix and, with a moment, of its output (or nan).

    The third number is the predicted loss, with a vector that weighs the outputs, or nan.
    ``approximation(a, b)`` returns the rows a to b - 1.
    """
    lost = whole = lost_output = whole_output = 0.0
    known = None if moment is None else np.asarray(moment, dtype=np.float64)
    vector = weight if known is not None and weight is not None and weight.ndim == 1 else None
    loss = 0.0 if vector is not None else math.nan
    for start, block in blocks(array):
        gap = approximation(start, start + len(block)) - block
        lost += float(np.vdot(gap, gap))
        whole += float(np.vdot(block, block))
        if known is not None:
            rows = np.einsum("ij,ij->i", gap @ known, gap)
            lost_output += max(0.0, float(rows.sum()))
            if vector is not None:
                loss += max(0.0, float(vector[start : start + len(block)] @ rows)) / 2.0
            whole_output += max(0.0, float(np.vdot(block @ known, block)))
        del block, gap  # before the next one is made
    error = math.sqrt(lost / whole) if whole else 0.0
    if known is None:
        return error, math.nan, loss
    return error, math.sqrt(lost_output / whole_output) if whole_output else 0.0, loss


#: Number of rows of the product held in float64 at a time.
_ROWS = 1024


class Truncation(NamedTuple):
    """The approximation, and its errors, defined as in `SplitFactors`."""

    matrix: NDArray[Any]
    error: float
    output_error: float
    predicted_loss: float


def truncate(
    W: ArrayLike,
    rank: Any,
    *,
    input_moment: ArrayLike | None = None,
    output_weight: ArrayLike | None = None,
) -> Truncation:
    """Return the product of the factors of `split`, rounded once, with the errors of the product.

    It takes the parameters of `split` and raises the same errors.
    """
    array = _checks.matrix(W)
    full = np.asarray(array, dtype=np.float64)
    parts = split(full, rank, input_moment=input_moment, output_weight=output_weight)
    kept = np.empty(array.shape, array.dtype)
    for start in range(0, len(kept), _ROWS):
        here = slice(start, start + _ROWS)
        kept[here] = in_dtype(parts.outer[here] @ parts.inner, array.dtype)
    errors = relative_errors(array, lambda a, b: kept[a:b].astype(np.float64), input_moment)
    return Truncation(kept, *errors[:2], parts.predicted_loss)
