"""The piecewise Chebyshev series of the Tracy-Widom laws: log of either tail, and its inverse.

Each piece lies between consecutive `EDGES`. Its series is that of log F to the left of `CENTRE` and
of log(1 - F) to the right, in the variable that goes from -1 to 1 over the piece. Everything is in
t, which for beta = 4 is sqrt(2) s. Arrays are 1-D.
"""

import bisect
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev

from rmtspec._checks import Float64Array
from rmtspec.laws import _tracy_widom_expansions as expansions

#: Made by benchmarks/tables/make_tracy_widom.py: per beta, the series padded with zeros, and the
#: mean and variance in s.
TABLE = Path(__file__).with_name("_tracy_widom_table.npz")
BETAS = (1, 2, 4)
EDGES = (-27.0, -14.0, -7.0, -2.0, 3.0, 12.0, 40.0, 110.0)
CENTRE = -2.0
_PIECES = len(EDGES) - 1
_LEFT_OF_CENTRE = float(np.nextafter(CENTRE, -np.inf))
# Spacing of the initial values of `inverse`: linear interpolation between them is accurate to 5e-4,
# which three Newton steps reduce to below rounding (1e-7, 1e-14, 1e-28).
_SPACING = 1 / 16
_NEWTON_STEPS = 3


class TailSeries:
    """The pieces of one law, from left to right, and their slopes."""

    def __init__(self, beta: int) -> None:
        self.beta = beta
        self.scale = float(np.sqrt(2.0)) if beta == 4 else 1.0
        law = BETAS.index(beta)
        with np.load(TABLE, allow_pickle=False) as stored:
            self.mean, self.variance = float(stored["means"][law]), float(stored["variances"][law])
            rows = [np.trim_zeros(row, "b") for row in stored["coefficients"][law]]
        self.values = tuple(tuple(row.tolist()) for row in rows)
        self.slopes = tuple(
            tuple((chebyshev.chebder(row) * (2 / (high - low))).tolist())
            for row, (low, high) in zip(rows, pairwise(EDGES), strict=True)
        )
        centre = EDGES.index(CENTRE)
        self.centre_cdf = float(np.exp(_sum(self.values[centre - 1], 1.0)))
        self.centre_sf = float(np.exp(_sum(self.values[centre], -1.0)))

    def log_tail(self, t: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return log F left of the centre or log(1 - F) right of it, and the slopes."""
        if t.size == 1:
            value, slope = self._piece(bisect.bisect_right(EDGES, t.item()), t.item())
            return np.array([value]), np.array([slope])
        piece = np.searchsorted(EDGES, t, side="right")
        value, slope = np.empty_like(t), np.empty_like(t)
        for k in np.flatnonzero(np.bincount(piece, minlength=_PIECES + 2)):
            inside = piece == k
            value[inside], slope[inside] = self._piece(int(k), t[inside])
        return value, slope

    def inverse(self, log_tail: Float64Array, *, left: bool) -> Float64Array:
        """Return the `t` on one side of the centre where the log of the tail has this value."""
        if not log_tail.size:
            return log_tail
        knots, values = self._starts_left if left else self._starts_right
        t = np.interp(log_tail, values, knots)
        for _ in range(_NEWTON_STEPS):
            value, slope = self.log_tail(t)
            t = t - (value - log_tail) / slope
            t = np.minimum(t, _LEFT_OF_CENTRE) if left else np.maximum(t, CENTRE)
        return t

    def _piece(self, k: int, t: Any) -> tuple[Any, Any]:
        """Return the log of the tail and its slope in piece `k`; first and last are outside it."""
        if k == 0:
            return expansions.log_cdf(np.asarray(t), self.beta)
        if k > _PIECES:  # nan comes here too, and stays nan
            return expansions.log_sf(np.asarray(t), self.beta)
        low, high = EDGES[k - 1], EDGES[k]
        u = (2 * t - (low + high)) / (high - low)
        return _sum(self.values[k - 1], u), _sum(self.slopes[k - 1], u)

    @cached_property
    def _starts_left(self) -> tuple[Float64Array, Float64Array]:
        knots = np.append(np.arange(EDGES[0], CENTRE, _SPACING), _LEFT_OF_CENTRE)
        return knots, self.log_tail(knots)[0]

    @cached_property
    def _starts_right(self) -> tuple[Float64Array, Float64Array]:
        knots = np.arange(EDGES[-1] - _SPACING, CENTRE - _SPACING / 2, -_SPACING)
        return knots, self.log_tail(knots)[0]


@lru_cache
def tail_series(beta: int) -> TailSeries:
    """Return the series of one law, loaded on first use."""
    return TailSeries(beta)


def _sum(coefficients: tuple[float, ...], u: Any) -> Any:
    """Return the Chebyshev series at `u`, by Clenshaw; a plain float stays one, for speed."""
    one: Any = 0.0
    two: Any = 0.0
    twice = 2 * u
    for coefficient in coefficients[:0:-1]:
        one, two = coefficient + twice * one - two, one
    return coefficients[0] + u * one - two
