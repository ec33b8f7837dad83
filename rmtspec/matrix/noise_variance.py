"""How sure: the variance of the noise beside a known number of components, with an interval."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._records import plain
from rmtspec._text import Readable, aligned
from rmtspec.errors import InvalidOptionError
from rmtspec.matrix.residual_sums import residual_sums
from rmtspec.matrix.spiked_model import residual_variance
from rmtspec.terms import Why

#: A residual with fewer rows or columns than this is too small for the laws of large matrices.
_LEAST_BULK = 16


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class NoiseVariance(Readable):
    """Variance of the noise and edge of the bulk, each with an interval.

    Where no noise is left, the numbers are nan and `reason` says why.

    Attributes
    ----------
    variance, low, high : float
        Variance of the noise entries (with scales, its mean over the matrix), and the ends of its
        interval.
    standard_error : float
        Of the variance.
    edge, edge_low, edge_high : float
        Upper edge of the bulk, in the units of a spectrum, s^2 / n, and the ends of its interval.
        With scales, that of the equalized matrix.
    kurtosis : float
        Fourth moment of the noise entries divided by their squared variance, 3 for Gaussian noise,
        estimated from the residual; with scales, that of the equalized noise.
    n_components : int
        Number of components left out, as given.
    n, p : int
        Larger and smaller side, without rows and columns of zeros.
    level : float
        Nominal probability that an interval covers the truth.
    scaled : bool
        Whether scales were given.
    reason : str
        Why there are no numbers, or why they are unreliable; empty if neither applies.
    """

    variance: float
    low: float
    high: float
    standard_error: float
    edge: float
    edge_low: float
    edge_high: float
    kurtosis: float
    n_components: int
    n: int
    p: int
    level: float
    scaled: bool
    reason: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NoiseVariance":
        """Return the result that gave this `to_dict`."""
        known: dict[str, Any] = {}
        for name, value in values.items():
            known[name] = math.nan if value is None else value
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values (nan as None)."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}

    def __repr__(self) -> str:
        pairs: list[tuple[str, object]] = []
        if not math.isnan(self.variance):
            of = ", of the equalized matrix" if self.scaled else ""
            pairs += [
                ("variance", f"{self.variance:.6g} ({self.low:.6g} to {self.high:.6g})"),
                ("edge", f"{self.edge:.6g} ({self.edge_low:.6g} to {self.edge_high:.6g}){of}"),
                ("kurtosis", self.kurtosis),
            ]
        pairs += [
            ("components", f"{self.n_components} left out of {self.n} x {self.p}"),
            ("level", self.level),
        ]
        if self.reason:
            pairs.append(("reason", self.reason))
        return aligned("NoiseVariance", pairs)


def noise_variance(
    W: ArrayLike,
    n_components: Any,
    *,
    row_scales: ArrayLike | None = None,
    column_scales: ArrayLike | None = None,
    level: float = 0.95,
) -> NoiseVariance:
    """Estimate the variance of the noise beside a known number of components, with an interval.

    With k components and their residual E, the variance solves::

        v = (||E||^2 + sum_i v (p - k) / theta_i^2) / ((n - k)(p - k))

    where theta_i is the strength [1]_ of a component with singular value sqrt(s_i^2 - k v) in an
    (n - k) x (p - k) matrix, in units of sqrt((n - k) v). The sum is the noise that the leading
    singular vectors take with them: without it the estimate is too low. A component that does not
    stand beyond the edge counts as one at the detection limit.

    The standard error is ``v sqrt((kurtosis - 1) / ((n - k)(p - k)))``: heavy tails widen the
    interval. Removing components takes from the fourth powers too, so with h and g the leverages of
    rows and columns (the row sums of squares of the singular vectors)::

        kurtosis = 3 + (sum E^4 - 3 w^2 sum r^2) / (w^2 sum r^4),    r = (1 - h)(1 - g)

    where ``w = sum E^2 / sum r``.

    With scales the noise has variance proportional to ``row_scales^2 column_scales^2``. All of the
    above is then done on the equalized matrix, the target is the mean variance, each square of the
    residual counts with its own variance, and so does its share of the degrees of freedom::

        v = mean(x y) v_Z (sum x y E^2 / sum x y r) / (||E||^2 / ((n - k)(p - k)))

    where x and y are the squared scales, E the residual of the equalized matrix, and v_Z its
    variance by the first formula. The standard error gets the factor
    ``sqrt(mean(x^2 y^2)) / mean(x y)``. This does not rely on the scales being exact: an error in
    them cancels in x y E^2.

    The matrix is read in blocks of rows, twice; beside it, memory holds its smaller Gram matrix and
    the leading singular vectors.

    Parameters
    ----------
    W : array_like of shape (rows, columns)
        Real, of any floating dtype.
    n_components : int
        Number of components in the matrix, from 0 to the smaller side less 1. The interval does not
        account for an error in this number: each one too many lowers the variance by about
        1 / sqrt(n p) of itself.
    row_scales : array_like of shape (rows,), optional
    column_scales : array_like of shape (columns,), optional
        ``W / (row_scales[:, None] * column_scales)`` has noise of equal row and column means of
        its variance; 0 for a row or column that is left out.
    level : float
        Nominal probability that the interval covers the truth, in (0, 1).

    Returns
    -------
    NoiseVariance

    Raises
    ------
    InvalidTypeError
        `W` is not a real matrix, or `n_components` is not a whole number.
    InvalidValueError
        nan or inf in `W`, too many components, scales of the wrong length or negative, or a level
        outside (0, 1).

    References
    ----------
    .. [1] F. Benaych-Georges, R. R. Nadakuditi, The singular values and vectors of low rank
       perturbations of large rectangular random matrices, J. Multivariate Anal. 111 (2012).

    Examples
    --------
    >>> import rmtspec
    >>> W = rmtspec.ensembles.spiked(400, 300, [3, 20], rng=0)
    >>> rmtspec.noise_variance(W, 2)
    NoiseVariance
      variance    1.00268 (0.994561 to 1.0108)
      edge        3.49138 (3.46311 to 3.51964)
      kurtosis    3.02369
      components  2 left out of 400 x 300
      level       0.95
    """
    from scipy.special import ndtri

    array = _checks.matrix(W)
    hint = "They must leave noise to measure; its variance needs at least one value beyond them."
    k = _checks.integer(n_components, "n_components", 0, min(array.shape) - 1, hint=hint)
    level = _checks.inside(level, "level", 0.0, 1.0, hint="0.95 is usual.")
    scaled = row_scales is not None or column_scales is not None
    rows = _scales(row_scales, "row_scales", array.shape[0])
    columns = _scales(column_scales, "column_scales", array.shape[1])
    residual = residual_sums(array, k, rows, columns)
    n, p = max(residual.n_rows, residual.n_columns), min(residual.n_rows, residual.n_columns)
    kept: dict[str, Any] = {"n_components": k, "n": n, "p": p, "level": level, "scaled": scaled}
    if p <= k or not residual.above_rounding:
        nan = math.nan
        return NoiseVariance(
            variance=nan, low=nan, high=nan, standard_error=nan, edge=nan, edge_low=nan,
            edge_high=nan, kurtosis=nan, reason=Why.NO_BULK.words(), **kept,
        )  # fmt: skip
    unit = residual_variance(residual.energy, residual.squares, n=n, p=p, all_real=True)
    error = math.sqrt(max(residual.kurtosis - 1.0, 0.0) / ((n - k) * (p - k)))
    corrected = unit * ((n - k) * (p - k) / residual.energy)
    variance = residual.mean_weight * corrected * residual.weighted
    reach = float(ndtri((1.0 + level) / 2.0))
    edge = unit * (1.0 + math.sqrt(p / n)) ** 2
    wide = error * residual.dispersion
    reason = ""
    if p - k < _LEAST_BULK:
        reason = Why.UNRELIABLE.words(p=p - k, least=_LEAST_BULK)
    return NoiseVariance(
        variance=variance, low=variance * max(0.0, 1.0 - reach * wide),
        high=variance * (1.0 + reach * wide), standard_error=variance * wide,
        edge=edge, edge_low=edge * max(0.0, 1.0 - reach * error),
        edge_high=edge * (1.0 + reach * error), kurtosis=residual.kurtosis, reason=reason, **kept,
    )  # fmt: skip


def _scales(scales: ArrayLike | None, name: str, size: int) -> Float64Array | None:
    """Return the scales of rows or columns, checked, or None."""
    if scales is None:
        return None
    values = _checks.floats(scales, name)
    expected = f"{size} numbers, one for each {name.split('_')[0]} of `W`"
    if values.shape != (size,):
        raise InvalidOptionError(f"`{name}` has shape {values.shape}", expected)
    if not (np.isfinite(values).all() and (values >= 0.0).all() and values.any()):
        raise InvalidOptionError(
            f"`{name}` has negative numbers, nan or inf, or is all zeros", f"{expected}, above 0",
            "A scale of 0 leaves that one out.",
        )  # fmt: skip
    return values
