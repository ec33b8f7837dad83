"""What random probes say of the eigenvalues of a matrix, and the fit of its noise to that."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.laws.tracy_widom import upper_quantile
from rmtspec.matrix.bema import edge_width
from rmtspec.matrix.window import bulk_window

#: Standard errors within which numbers are taken to agree, and that least and most allow for.
_AGREE, ALLOWED = 3.0, 2.0
#: Error of the exact fit itself, relative to the variance, times the smaller side.
_OF_THE_FIT = 2.0
_POINTS = 4096
_ROUNDS, _LEVELS = 50, 200


@dataclass(frozen=True, slots=True)
class Probes:
    """Nodes and weights of random vectors, and the largest eigenvalues.

    Attributes
    ----------
    nodes, weights : ndarray of shape (probes, steps)
        The quadrature of each probe; its weights sum to 1.
    values : ndarray of shape (k,)
        The largest eigenvalues found, descending.
    n_removed : int
        How many of these were known when the probes were drawn, which are orthogonal to them: the
        nodes are those of the other eigenvalues.
    n, p : int
        Larger and smaller side of the matrix.
    """

    nodes: Float64Array
    weights: Float64Array
    values: Float64Array
    n_removed: int
    n: int
    p: int

    def shares(self, x: Float64Array) -> Float64Array:
        """Return the share of eigenvalues at or below points, by each probe.

        Half of a node's weight lies on each side of it.
        """
        rest = [
            np.interp(x, nodes, np.cumsum(weights) - weights / 2.0, left=0.0, right=1.0)
            for nodes, weights in zip(self.nodes, self.weights, strict=True)
        ]
        known = np.searchsorted(self.values[: self.n_removed][::-1], x, side="right") / self.p
        shares: Float64Array = (1.0 - self.n_removed / self.p) * np.array(rest) + known
        return np.where(np.isnan(x), np.nan, shares)

    def quantiles(self, levels: Float64Array) -> Float64Array:
        """Return the quantiles of the distribution at some levels."""
        grid = np.unique(np.concatenate([self.nodes.ravel(), self.values[: self.n_removed]]))
        quantiles: Float64Array = np.interp(levels, self.shares(grid).mean(axis=0), grid)
        return quantiles

    def above(self, x: float) -> int:
        """Return the number of eigenvalues above a point: those found, if no more are there."""
        found = int(np.count_nonzero(self.values > x))
        if not self.misses(x):
            return found
        return max(found, round(self.p * (1.0 - float(self.shares(np.array([x])).mean()))))

    def misses(self, x: float) -> bool:
        """Tell whether more eigenvalues lie above a point than were found."""
        found = int(np.count_nonzero(self.values > x))
        return found == len(self.values) or found < self.bounds(x)[0]

    def bounds(self, x: float) -> tuple[int, int]:
        """Return the least and the most eigenvalues above a point that the distribution allows.

        The first m - 1 weights are no more, and the first m + 1 no less, than a probe's share of
        the eigenvalues up to x, if m of its nodes are (Chebyshev, Markov and Stieltjes).
        """
        sums = np.pad(np.cumsum(self.weights, axis=1), ((0, 0), (1, 0)))
        below, last = (self.nodes <= x).sum(axis=1), sums.shape[1] - 1
        each = np.arange(len(sums))
        known = int(np.count_nonzero(self.values[: self.n_removed] > x))
        found = []
        for index, sign in ((np.minimum(below + 1, last), -1.0), (np.maximum(below - 1, 0), 1.0)):
            shares = 1.0 - sums[each, index]
            error = float(shares.std(ddof=1)) / math.sqrt(len(shares))
            share = float(shares.mean()) + sign * ALLOWED * error
            found.append(known + (self.p - self.n_removed) * share)
        return max(0, math.floor(found[0])), min(self.p, math.ceil(found[1]))

    def counts(
        self, threshold: float, allowed: float, residuals: Float64Array
    ) -> tuple[int, int, int]:
        """Return the number of eigenvalues above the threshold, the least and the most of them.

        The least and the most allow for the error of the threshold, and for the residuals.
        """
        low = int(np.count_nonzero(self.values > threshold + allowed))
        high = int(np.count_nonzero(self.values + residuals > threshold - allowed))
        if high == len(self.values) or self.misses(threshold):
            low = max(low, self.bounds(threshold + allowed)[0])
            high = max(high, self.bounds(threshold - allowed)[1])
        return min(max(self.above(threshold), low), high), low, high


@dataclass(frozen=True, slots=True)
class ProbedNoise:
    """The noise that fits what probes say, at the levels `alpha` and `beta` of `rmtspec.bema`."""

    probes: Probes
    alpha: float
    beta: float

    def edges(self, k: int) -> tuple[float, float]:
        """Return edge and threshold of a bulk of variance 1 without k spikes."""
        n, p = self.probes.n - k, self.probes.p - k
        edge = (1.0 + math.sqrt(p / n)) ** 2
        margin = upper_quantile(self.beta) * edge_width(n, p)
        return edge * n / self.probes.n, (edge + margin) * n / self.probes.n

    def fitted(self, trace: float, kurtosis: float) -> tuple[float, float, str, int]:
        """Return the variance of the noise, its standard error, its source, and the spikes."""
        of, values = self.probes, self.probes.values

        def by_trace(k: int) -> float:
            k = min(k, len(values))  # with more spikes than these the quantiles decide
            rest = trace - float(values[:k].sum())
            return rest / (of.p - k) * of.n / (of.n - k)

        variance, k = self._settled(by_trace)
        exact = math.sqrt(max(kurtosis - 1.0, 0.0) / (of.n * of.p))
        own = variance * math.hypot(exact, _OF_THE_FIT / of.p)
        seen, error = self._by_quantiles(k)
        known = not of.misses(variance * self.edges(k)[1])
        if known and abs(variance - seen) <= _AGREE * math.hypot(error, own):
            # The trace holds weak signals too: how many, the quantiles tell to within their error.
            return variance, math.hypot(own, error), "trace", k
        seen, k = self._settled(lambda k: self._by_quantiles(k)[0])
        error = math.hypot(self._by_quantiles(k)[1], seen * _OF_THE_FIT / of.p)
        threshold = seen * self.edges(k)[1]
        if of.misses(threshold):  # how many are left out is not known either
            ends = (min(count, of.p // 2) for count in of.bounds(threshold))
            low, high = (self._by_quantiles(count)[0] for count in ends)
            error = math.hypot(error, (low - high) / 2.0)
        return seen, error, "quantiles", k

    def _settled(self, variance_of: Callable[[int], float]) -> tuple[float, int]:
        """Return the variance without the spikes above its own threshold, and their number."""
        k = 0
        for _ in range(_ROUNDS):
            variance = variance_of(k)
            count = min(self.probes.above(variance * self.edges(k)[1]), self.probes.p // 2)
            if count == k:
                break
            k = count
        return variance_of(k), k

    def _by_quantiles(self, k: int) -> tuple[float, float]:
        """Return the variance that fits the quantiles of the bulk without k spikes, and its error.

        The error is that of the jackknife over probes, which a few probes may underestimate, but no
        less than it is for random vectors under the law.
        """
        of, values = self.probes, self.probes.values
        n, p = of.n - k, of.p - k
        low, high = float(of.nodes.min()), float(values[min(k, len(values) - 1)])
        if k >= len(values):  # these lie far above the bulk
            high = float(of.quantiles(np.array([1.0 - k / of.p]))[0])
        grid = np.linspace(low, high, _POINTS)
        each = of.shares(grid)
        levels = bulk_window(p, self.alpha).levels("midpoint")
        unit = MarchenkoPastur(p / n).ppf(levels)
        shares = levels * (p / of.p)

        def variance(found: Float64Array) -> float:
            quantiles = np.interp(shares, found, grid)
            return float(unit @ quantiles / (unit @ unit)) * of.n / n

        total, count = each.sum(axis=0), len(each)
        left_out = np.array([variance((total - one) / (count - 1)) for one in each])
        spread = float(np.square(left_out - left_out.mean()).sum())
        found = variance(total / count)
        least = found * math.sqrt(2.0 / (p * count)) * _slope_error(p / n, self.alpha)
        return found, max(math.sqrt((count - 1) / count * spread), least)


def _slope_error(ratio: float, alpha: float) -> float:
    """Return the standard deviation of the fitted variance, in units of sqrt(2 / p) for one probe.

    The squared components of a random vector make the shares below the quantiles q(u) of the law a
    Brownian bridge B(u) times sqrt(2 / p); the quantiles move by -B(u) / f(q(u)), and the slope
    through the origin by their mean with weights q(u), over that of q(u)^2.
    """
    levels = alpha + (1.0 - 2.0 * alpha) * (np.arange(_LEVELS) + 0.5) / _LEVELS
    law = MarchenkoPastur(ratio)
    quantiles = law.ppf(levels)
    moves = quantiles / law.pdf(quantiles) / float(quantiles @ quantiles)
    bridge = np.minimum.outer(levels, levels) - np.outer(levels, levels)
    return math.sqrt(float(moves @ bridge @ moves))
