"""The weighted error of an approximation: by its inputs, and by what its outputs matter.

With the second moment C = E[x x^T] of the inputs of a matrix W, and a weight G of its outputs, the
error of W' is tr(G (W - W') C (W - W')^T). With the second moment G = E[g g^T] of the gradients of
a loss at the outputs, half of that predicts how much the loss grows: its second derivative in W is
about the Kronecker product of the two (K-FAC [1]_). A vector stands for a diagonal G.

References
----------
.. [1] J. Martens, R. Grosse, Optimizing neural networks with Kronecker-factored approximate
   curvature, ICML (2015).
"""

import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._lapack import eigvalsh
from rmtspec.errors import InvalidValueError

#: Share of its mean diagonal added to a moment (which is often rank-deficient) or a weight.
RIDGE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Weighting:
    """The weights of both sides, checked, and the roots that turn them into plain distances.

    Attributes
    ----------
    moment : ndarray of shape (columns, columns) or None
        C, symmetric.
    weight : ndarray of shape (rows,) or (rows, rows), or None
        The diagonal of G, or G, symmetric.
    input_root : ndarray of shape (columns, columns) or None
        L, lower triangular: C + ridge = L L^T.
    output_root : ndarray of shape (rows,) or (rows, rows), or None
        The square roots of the diagonal, or R, lower triangular: G + ridge = R R^T.
    """

    moment: Float64Array | None
    weight: Float64Array | None
    input_root: Float64Array | None
    output_root: Float64Array | None

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        input_moment: ArrayLike | None,
        output_weight: ArrayLike | None,
    ) -> "Weighting":
        """Return the weights of a matrix of that shape; raise if they are none."""
        moment = weight = input_root = output_root = None
        if input_moment is not None:
            moment, input_root = _inputs(input_moment, shape[1])
        if output_weight is not None:
            weight = _weight(output_weight, shape[0])
            if weight.ndim == 1:
                output_root = np.sqrt(weight + RIDGE * weight.mean())
            else:
                output_root = _root(weight, _OUTPUTS)
        return cls(moment, weight, input_root, output_root)

    def applied(self, weight: Float64Array) -> Float64Array:
        """Return R^T W L, whose plain distances are the weighted ones of W."""
        left = self.output_root
        if left is not None:
            weight = left[:, None] * weight if left.ndim == 1 else left.T @ weight
        return weight if self.input_root is None else weight @ self.input_root

    def undone(self, outer: Float64Array, inner: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return R^-T outer and inner L^-1, the factors in the units of W."""
        from scipy.linalg import solve_triangular

        if self.output_root is not None and self.output_root.ndim == 1:
            outer = outer / self.output_root[:, None]
        elif self.output_root is not None:
            outer = solve_triangular(self.output_root, outer, lower=True, trans="T")
        if self.input_root is not None:
            inner = solve_triangular(self.input_root, inner.T, lower=True, trans="T").T
        return outer, inner

    def loss(self, gap: Float64Array) -> float:
        """Return (1/2) tr(G gap C gap^T) without ridges, or nan unless both weights are known."""
        if self.weight is None or self.moment is None:
            return np.nan
        seen = gap @ self.moment
        if self.weight.ndim == 1:
            rows = np.einsum("ij,ij->i", seen, gap)
            return max(0.0, 0.5 * float(self.weight @ rows))
        return max(0.0, 0.5 * float(np.vdot(self.weight @ gap, seen)))


def weighted_energies(
    W: ArrayLike, input_moment: ArrayLike | None = None, output_weight: ArrayLike | None = None
) -> Float64Array:
    """Return the squared singular values of G^(1/2) W C^(1/2), descending.

    Each is the weighted energy that one more rank adds to a split with that input moment C and
    output weight G, which are regularised as in `split`. Half the sum of those left out is the loss
    that the split is predicted to cause.

    Parameters
    ----------
    W : array_like of shape (rows, columns)
    input_moment : array_like of shape (columns, columns), optional
    output_weight : array_like of shape (rows,) or (rows, rows), optional

    Returns
    -------
    ndarray of shape (p,)
        p is the smaller side.
    """
    from rmtspec.matrix.eigenvalues import gram_matrix

    array = _checks.matrix(W)
    weighting = Weighting.of(array.shape, input_moment, output_weight)
    gram, _ = gram_matrix(weighting.applied(np.asarray(array, dtype=np.float64)))
    values: Float64Array = eigvalsh(gram, overwrite=True)
    return np.maximum(values[::-1], 0.0)


class _Side(NamedTuple):
    """The words for one side of a matrix."""

    name: str
    sides: str
    of: str
    meaning: str


_INPUTS = _Side("input_moment", "columns", "inputs", "X @ X.T / count")
_OUTPUTS = _Side("output_weight", "rows", "gradients", "E[g g^T]")


#: The moment that was used last, if it is read-only, with what was made of it: layers that read the
#: same input come one after the other, and the root costs as much as a decomposition.
_cache: dict[str, tuple[Any, Float64Array, Float64Array]] = {}


def _inputs(given: ArrayLike, columns: int) -> tuple[Float64Array, Float64Array]:
    """Return the moment of the inputs, checked, and its root."""
    last = _cache.get("last")
    if last is not None and last[0]() is given and len(last[1]) == columns:
        return last[1], last[2]
    _cache.clear()  # not two at a time
    del last
    moment = _square(given, columns, _INPUTS)
    root = _root(moment, _INPUTS)
    if isinstance(given, np.ndarray) and not given.flags.writeable:
        _cache["last"] = (weakref.ref(given), moment, root)
    return moment, root


def _square(given: ArrayLike, count: int, side: _Side) -> Float64Array:
    """Return a second moment as a symmetric float64 matrix, checked."""
    moment = _checks.floats(given, side.name)
    if moment.shape != (count, count):
        raise InvalidValueError(
            f"`{side.name}` has shape {moment.shape}; expected ({count}, {count}), the number of "
            f"{side.sides} of `W` on both sides. It is {side.meaning}"
            + (" for inputs X in columns." if side is _INPUTS else ".")
        )
    scale = float(np.abs(moment).max())
    if not (np.isfinite(moment).all() and scale > 0.0):
        raise InvalidValueError(
            f"`{side.name}` is all zeros or has nan or inf; expected the second moment of "
            f"{side.of}, {side.meaning}."
        )
    if np.abs(moment - moment.T).max() > 1e-6 * scale:
        raise InvalidValueError(f"`{side.name}` is not symmetric; expected {side.meaning}.")
    return (moment + moment.T) / 2.0


def _weight(given: ArrayLike, rows: int) -> Float64Array:
    """Return an output weight as a vector or a symmetric matrix, checked."""
    weight = _checks.floats(given, "output_weight")
    if weight.ndim != 1:
        if weight.shape != (rows, rows):
            raise InvalidValueError(
                f"`output_weight` has shape {weight.shape}; expected ({rows},) or ({rows}, "
                f"{rows}), one weight for each row of `W` or a matrix of them. It is E[g^2] or "
                "E[g g^T] for gradients g at the outputs."
            )
        return _square(weight, rows, _OUTPUTS)
    if weight.shape != (rows,):
        raise InvalidValueError(
            f"`output_weight` has {len(weight)} entries; expected {rows}, one for each row of `W`."
        )
    if not np.isfinite(weight).all() or weight.min() < 0.0 or weight.max() == 0.0:
        raise InvalidValueError(
            "`output_weight` is all zeros, or has negative, nan or infinite entries; expected "
            "E[g^2] for gradients g at the outputs, one number for each row."
        )
    return weight


def _root(moment: Float64Array, side: _Side) -> Float64Array:
    """Return the Cholesky factor of the regularised moment: moment + ridge = L L^T."""
    regularised = moment.copy()
    regularised.flat[:: len(moment) + 1] += RIDGE * float(np.trace(moment)) / len(moment)
    try:
        root: Float64Array = np.asarray(np.linalg.cholesky(regularised), dtype=np.float64)
    except np.linalg.LinAlgError:
        raise InvalidValueError(
            f"`{side.name}` has directions of negative weight beyond rounding; expected "
            f"{side.meaning}, which has none."
        ) from None
    return root
