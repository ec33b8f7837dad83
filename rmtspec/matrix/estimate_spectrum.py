"""A spectrum without its eigenvalues: distribution, noise edge and spikes of a huge matrix."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidValueError
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.laws.tracy_widom import upper_quantile
from rmtspec.matrix.bema import check_levels, edge_width
from rmtspec.matrix.block_lanczos import Gram, lanczos, ritz_values
from rmtspec.matrix.eigenvalues import EntryMoments, check_finite
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate, quadrature_cdf
from rmtspec.matrix.window import bulk_window

#: Smaller sides have all their eigenvalues in a moment.
SMALLEST = 256
#: From this smaller side on the products cost less than the eigenvalues: 4 n p probes (steps + 1)
#: operations by default, against n p^2 + 4/3 p^3.
FROM = 4096
#: Random vectors and steps by default.
PROBES, STEPS = 16, 50
#: Largest eigenvalues that are looked for, and steps whose vectors they are looked for among.
_LARGEST, _TOP_STEPS = 256, 20
#: Standard errors within which numbers are taken to agree, and that low and high counts allow for.
_AGREE, _ALLOWED = 3.0, 2.0
#: Error of the exact fit itself, relative to the variance, times the smaller side.
_OF_THE_FIT = 2.0
_POINTS = 4096
_ROUNDS, _LEVELS = 50, 200


def estimate_spectrum(
    W: ArrayLike,
    *,
    probes: int = PROBES,
    steps: int = STEPS,
    alpha: float = 0.2,
    beta: float = 0.1,
    rng: Any = 0,
) -> SpectrumEstimate:
    """Estimate distribution, noise edge and spikes of a matrix too large for its eigenvalues.

    Random vectors are multiplied by the Gram matrix, which is never formed: time
    ``4 n p probes (steps + 1)`` operations and memory of ``probes * steps`` vectors of length p,
    where `spectrum` takes ``n p^2 + 4/3 p^3`` and p^2. From a smaller side of about 4096 on that is
    less. Nothing is exact, nothing is tested; the errors are stated.

    Parameters
    ----------
    W : array_like of shape (rows, columns)
        Real, with a smaller side of at least 256; float64 is computed in float64, all else in
        float32.
    probes : int
        Random vectors, at least 4; errors fall with its square root.
    steps : int
        Lanczos steps, from 10 to 400; more resolve the distribution and the edge better.
    alpha, beta : float
        See `rmtspec.bema`.
    rng : int or Generator
        Seed of the random vectors.

    Returns
    -------
    SpectrumEstimate

    Raises
    ------
    InvalidTypeError
        `W` is no array of real numbers.
    InvalidValueError
        `W` does not have two dimensions, has a smaller side below 256 (call `spectrum`), or nan or
        inf; or an option is outside its range.

    Notes
    -----
    The distribution is that of stochastic Lanczos quadrature (Lin, Saad and Yang, SIAM Review 58,
    34, 2016; Ubaru, Chen and Saad, SIAM J. Matrix Anal. 38, 1075, 2017): each probe z gives nodes
    and weights whose distribution function is that of the eigenvalues weighted by the squares of
    z's components, averaged over probes. The spikes are the largest Ritz values in the span of the
    vectors of all probes, as in block Lanczos (Golub and Underwood, 1977). With k spikes, the
    variance is ``(tr(W^T W / n) - sum of spikes) / (p - k) * n / (n - k)``, as long as the
    quantiles of the estimated bulk agree. Its error is the error of these quantiles, since weak
    signals in the bulk are in the trace too. No more Ritz values than eigenvalues lie above any
    point (Cauchy), so that `n_spikes_low` allows for the error of the threshold alone.

    Examples
    --------
    >>> import rmtspec
    >>> W = rmtspec.ensembles.spiked(900, 600, [3, 5, 20], rng=0)
    >>> found = rmtspec.estimate_spectrum(W, beta=0.01)
    >>> found.n_spikes, bool(abs(found.variance - 1) < 3 * found.variance_error)
    (3, True)
    """
    started = time.perf_counter()
    array = _checks.matrix(W)
    probes = _checks.integer(probes, "probes", 4)
    steps = _checks.integer(steps, "steps", 10, 400)
    alpha, beta = check_levels(alpha, beta, "midpoint")
    seed = _checks.seed(rng, "rng")
    check_finite(array)
    tall = array.T if array.shape[0] < array.shape[1] else array
    rows, columns, moments, unit = _sums(tall)
    n, p, total = int(np.count_nonzero(rows)), int(np.count_nonzero(columns)), float(rows.sum())
    if p < SMALLEST or n < p:
        raise InvalidValueError(
            f"`W` has sides {max(n, p)} and {min(n, p)} without its zero rows and columns; "
            f"expected a smaller side of at least {SMALLEST}, that which is the smaller with them. "
            "Call rmtspec.spectrum, which is exact."
        )
    gram = Gram(tall, n, unit)
    start = np.random.default_rng(seed).choice([-1.0, 1.0], (len(columns), probes))
    start[columns == 0] = 0.0
    made = lanczos(gram, (start / math.sqrt(p)).astype(gram.dtype), steps)
    nodes, weights = _quadrature(made.diagonals, made.beside)
    values, residuals = ritz_values(gram, made.basis[:_TOP_STEPS], min(_LARGEST, p // 2))
    eps = np.finfo(np.float64 if gram.dtype == np.float64 else np.float32).eps
    rounding = float(eps) * float(values[0])
    case = _Case(nodes, weights, values, n=n, p=p, alpha=alpha, beta=beta)
    variance, error, source, k = case.fitted(total / n, moments.kurtosis)
    error = math.hypot(error, rounding)
    edge, factor = case.edges(k)
    threshold, allowed = variance * factor, _ALLOWED * error * factor
    scale = unit**2
    return SpectrumEstimate(
        n=n, p=p, shape=(array.shape[0], array.shape[1]), dtype=str(array.dtype),
        variance=variance * scale, variance_error=error * scale, source=source,
        bulk_edge=variance * edge * scale, bulk_edge_error=error * edge * scale,
        threshold=threshold * scale, trace=total / n * scale, moments=moments,
        n_spikes=int(np.count_nonzero(values > threshold)),
        n_spikes_low=int(np.count_nonzero(values > threshold + allowed)),
        n_spikes_high=int(np.count_nonzero(values + residuals > threshold - allowed)),
        largest=values * scale, residuals=residuals * scale, nodes=nodes * scale, weights=weights,
        alpha=alpha, beta=beta, rng=seed, seconds=time.perf_counter() - started,
    )  # fmt: skip


def memory_of_estimate(p: int) -> int:
    """Return the bytes that an estimate takes at most, besides the matrix, for a smaller side."""
    return 8 * p * PROBES * (STEPS + 1 + 4 * _TOP_STEPS)


def _sums(tall: NDArray[Any]) -> tuple[Float64Array, Float64Array, EntryMoments, float]:
    """Return sums of squares of rows and columns in a unit, the moments, and the unit.

    The unit is a power of two near the largest entry.
    """
    largest = max(float(np.abs(block).max()) for block in Gram(tall, 1, 1.0).blocks())
    if largest == 0.0:
        return np.zeros(len(tall)), np.zeros(tall.shape[1]), EntryMoments(0.0, 0.0, 3.0), 1.0
    unit = math.ldexp(1.0, math.frexp(largest)[1])
    rows, columns, fourths, start = np.empty(len(tall)), np.zeros(tall.shape[1]), 0.0, 0
    for block in Gram(tall, 1, unit).blocks():
        squares = np.square(block, dtype=np.float64)
        rows[start : start + len(block)] = squares.sum(axis=1)
        columns += squares.sum(axis=0)
        fourths += float(np.vdot(squares, squares))
        start += len(block)
    square, n, p = float(rows.sum()) ** 2, np.count_nonzero(rows), np.count_nonzero(columns)
    moments = EntryMoments(
        float(rows @ rows) * n / square - 1.0, float(columns @ columns) * p / square - 1.0,
        float(fourths * n * p / square),
    )  # fmt: skip
    return rows, columns, moments, unit


def _quadrature(diagonals: Float64Array, beside: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return nodes and weights of each probe, of shape (probes, steps)."""
    from scipy.linalg import eigh_tridiagonal

    found = [
        eigh_tridiagonal(a, b, check_finite=False) for a, b in zip(diagonals, beside, strict=True)
    ]
    return np.array([values for values, _ in found]), np.array([v[0] ** 2 for _, v in found])


@dataclass(frozen=True, slots=True)
class _Case:
    """What the probes say of a matrix, from which its noise is fitted."""

    nodes: Float64Array
    weights: Float64Array
    values: Float64Array
    n: int
    p: int
    alpha: float
    beta: float

    def edges(self, k: int) -> tuple[float, float]:
        """Return edge and threshold of a bulk of variance 1 without k spikes."""
        n, p = self.n - k, self.p - k
        edge = (1.0 + math.sqrt(p / n)) ** 2
        margin = upper_quantile(self.beta) * edge_width(n, p)
        return edge * n / self.n, (edge + margin) * n / self.n

    def fitted(self, trace: float, kurtosis: float) -> tuple[float, float, str, int]:
        """Return the variance of the noise, its standard error, its source, and the spikes."""

        def by_trace(k: int) -> float:
            rest = trace - float(self.values[:k].sum())
            return rest / (self.p - k) * self.n / (self.n - k)

        variance, k = self._settled(by_trace)
        exact = math.sqrt(max(kurtosis - 1.0, 0.0) / (self.n * self.p))
        own = variance * math.hypot(exact, _OF_THE_FIT / self.p)
        seen, error = self._by_quantiles(k)
        if k < len(self.values) and abs(variance - seen) <= _AGREE * math.hypot(error, own):
            # The trace holds weak signals too: how many, the quantiles tell to within their error.
            return variance, math.hypot(own, error), "trace", k
        seen, k = self._settled(lambda k: self._by_quantiles(k)[0])
        error = math.hypot(self._by_quantiles(k)[1], seen * _OF_THE_FIT / self.p)
        return seen, error, "quantiles", k

    def _settled(self, variance_of: Callable[[int], float]) -> tuple[float, int]:
        """Return the variance without the spikes above its own threshold, and their number."""
        k = 0
        for _ in range(_ROUNDS):
            variance = variance_of(k)
            count = int(np.count_nonzero(self.values > variance * self.edges(k)[1]))
            if count == k:
                break
            k = count
        return variance_of(k), k

    def _by_quantiles(self, k: int) -> tuple[float, float]:
        """Return the variance that fits the quantiles of the bulk without k spikes, and its error.

        The error is that of the jackknife over probes, which a few probes may underestimate, but no
        less than it is for random vectors under the law.
        """
        n, p = self.n - k, self.p - k
        low, high = float(self.nodes.min()), float(self.values[min(k, len(self.values) - 1)])
        grid = np.linspace(low, high, _POINTS)
        each = np.array(
            [quadrature_cdf(grid, *one) for one in zip(self.nodes, self.weights, strict=True)]
        )
        levels = bulk_window(p, self.alpha).levels("midpoint")
        unit = MarchenkoPastur(p / n).ppf(levels)
        shares = levels * (p / self.p)

        def variance(found: Float64Array) -> float:
            quantiles = np.interp(shares, found, grid)
            return float(unit @ quantiles / (unit @ unit)) * self.n / n

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
