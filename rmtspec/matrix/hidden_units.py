"""Which inputs of a matrix can leave, when the others stand in for them.

The inputs of W are hidden units h, with second moment C = E[h h^T]; G weighs its outputs. When the
units B leave, the others take their place as well as a linear fit can, which is W' = W C S (S^T C
S)^-1 for the units S that stay [1]_. With P the inverse of C restricted to the units still there,
the predicted loss then grows by

    (1/2) tr(P_BB^-1 W_B^T G W_B),

W becomes W_S - W_B P_BB^-1 P_BS, and P becomes P_SS - P_SB P_BB^-1 P_BS: the optimal brain surgeon
[2]_, on units in place of single weights. Units leave a few at a time, the cheapest first.

References
----------
.. [1] C.-H. Lin et al., MoDeGPT: modular decomposition for large language model compression, ICLR
   (2025); the Nystroem approximation of an MLP.
.. [2] B. Hassibi, D. G. Stork, Second order derivatives for network pruning: optimal brain
   surgeon, NIPS (1992).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.weighting import RIDGE, Weighting

#: Units leave in so many groups, each chosen after the matrix was fitted anew.
_GROUPS = 48
#: So many inputs count as one: those of neighbouring tokens are alike. With 1, five sequences of
#: 512 tokens took units of SmolLM2 whose loss on other text was twice that of low rank.
_ALIKE = 2


class UnitOrder(NamedTuple):
    """The order in which hidden units leave, and what is lost on the way.

    Attributes
    ----------
    order : ndarray of int of shape (units - 1,)
        First to leave first; one always stays.
    losses : ndarray of shape (units,)
        The predicted loss when so many have left; ascending from 0, linear within a group of units
        that leave together.
    """

    order: NDArray[np.int64]
    losses: Float64Array

    def kept(self, count: int) -> NDArray[np.int64]:
        """Return which `count` units stay, ascending."""
        stays = np.ones(len(self.losses), dtype=bool)
        stays[self.order[: len(stays) - count]] = False
        return np.flatnonzero(stays)


def unit_order(
    W: ArrayLike,
    input_moment: ArrayLike,
    output_weight: ArrayLike,
    *,
    rows: int | None = None,
) -> UnitOrder:
    """Return the order in which the inputs of a matrix can leave at the least predicted loss.

    Parameters
    ----------
    W : array_like of shape (rows, units)
        The matrix that reads the hidden units.
    input_moment : array_like of shape (units, units)
        C = E[h h^T], regularised as in `rmtspec.split`.
    output_weight : array_like of shape (rows,) or (rows, rows)
        The diagonal of G, or G: second moments of the loss's gradients at the outputs.
    rows : int, optional
        Number of inputs h behind the moment. A fit of d free coefficients to n inputs loses more on
        others than on these, by about (n / (n - d))^2; losses are given for others, two inputs
        counted as one. Where d is n or more, nothing is known, and the loss is infinite.

    Returns
    -------
    UnitOrder

    Examples
    --------
    The third unit is twice the first, so that either can leave.

    >>> import numpy as np
    >>> from rmtspec.matrix.hidden_units import unit_order
    >>> rng = np.random.default_rng(0)
    >>> h = rng.standard_normal((2, 1000))
    >>> h = np.vstack([h, 2 * h[0]])
    >>> found = unit_order(rng.standard_normal((5, 3)), h @ h.T / 1000, np.ones(5))
    >>> int(found.order[0]) in (0, 2), bool(found.losses[1] < 0.01 * found.losses[2])
    (True, True)
    """
    from scipy.linalg import cho_factor, cho_solve, lapack

    array = _checks.matrix(W)
    weighting = Weighting.of(array.shape, input_moment, output_weight)
    here: Float64Array = np.array(array, dtype=np.float64)
    outputs, units = here.shape
    inverse, info = lapack.dpotri(weighting.input_root, lower=1)
    if info:  # the root is regular: it is that of a regularised moment
        raise InvalidValueError("`input_moment` cannot be inverted; expected X @ X.T / count.")
    inverse = np.tril(inverse)
    inverse += np.tril(inverse, -1).T
    left = np.arange(units)
    output_root = np.asarray(weighting.output_root)
    order: list[NDArray[np.int64]] = []
    losses, factors = [np.zeros(1)], [np.ones(1)]
    ridge = RIDGE * float(np.trace(np.asarray(weighting.moment))) / units
    step = max(1, units // _GROUPS)
    while len(left) > 1:
        weighed = _weighed(output_root, here)
        growth = np.einsum("ij,ij->j", here, weighed) / np.diagonal(inverse)
        count = min(step, len(left) - 1)
        going = np.argsort(growth, kind="stable")[:count]
        stays = np.ones(len(left), dtype=bool)
        stays[going] = False
        across = inverse[going]
        factor = cho_factor(across[:, going], lower=True, check_finite=False)
        fit = cho_solve(factor, np.hstack([here[:, going].T, across[:, stays]]), check_finite=False)
        total = max(0.0, float(np.vdot(fit[:, :outputs], weighed[:, going].T)) / 2.0)
        losses.append(losses[-1][-1] + total * np.arange(1, count + 1) / count)
        order.append(left[going])
        here = here[:, stays] - here[:, going] @ fit[:, outputs:]
        inverse = inverse[np.ix_(stays, stays)]
        inverse -= across[:, stays].T @ fit[:, outputs:]
        left = left[stays]
        free = len(left) - ridge * float(np.trace(inverse))  # coefficients, less what ridges hold
        factors.append(np.full(count, _elsewhere(free, rows)))
    losses_elsewhere = np.concatenate(losses) * np.concatenate(factors)
    return UnitOrder(np.concatenate([np.empty(0, np.int64), *order]), losses_elsewhere)


def _elsewhere(free: float, rows: int | None) -> float:
    """Return how much more a fit to so many inputs loses on others."""
    if rows is None:
        return 1.0
    own = rows / _ALIKE
    return (own / (own - free)) ** 2 if free < own else np.inf


def refitted(W: ArrayLike, input_moment: ArrayLike, kept: NDArray[np.int64]) -> Float64Array:
    """Return the matrix for some of its inputs that comes nearest to the outputs of all.

    Parameters
    ----------
    W : array_like of shape (rows, units)
    input_moment : array_like of shape (units, units)
    kept : ndarray of int of shape (count,)

    Returns
    -------
    ndarray of shape (rows, count)
    """
    from scipy.linalg import solve

    array = np.asarray(_checks.matrix(W), dtype=np.float64)
    moment = np.asarray(Weighting.of(array.shape, input_moment, None).moment)
    ridge = RIDGE * float(np.trace(moment)) / len(moment)
    known = moment[kept]
    target = known @ array.T + ridge * array[:, kept].T
    within = known[:, kept]
    within.flat[:: len(kept) + 1] += ridge
    del known
    fitted: Float64Array = solve(within, target, assume_a="pos", overwrite_a=True).T
    return fitted


def _weighed(root: Float64Array, matrix: Float64Array) -> Float64Array:
    """Return G matrix, from the root of G."""
    if root.ndim == 1:
        return root[:, None] ** 2 * matrix
    return root @ (root.T @ matrix)
