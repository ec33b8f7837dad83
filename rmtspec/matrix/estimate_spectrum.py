"""A spectrum without its eigenvalues: distribution, noise edge and spikes of a huge matrix."""

import math
import time
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.bema import check_levels
from rmtspec.matrix.block_lanczos import Gram, lanczos, ritz_values
from rmtspec.matrix.eigenvalues import EntryMoments, check_finite, check_range
from rmtspec.matrix.probes import ALLOWED, ProbedNoise, Probes
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate

#: Smaller sides have all their eigenvalues in a moment.
SMALLEST = 256
#: From this smaller side on the products cost less than the eigenvalues: 4 n p probes (steps + 1)
#: operations by default, against n p^2 + 4/3 p^3.
FROM = 4096
#: Random vectors and steps by default.
PROBES, STEPS = 16, 50
#: Steps whose vectors the largest eigenvalues are looked for among, the largest share of these
#: dimensions that is kept, and the most in all.
_TOP_STEPS, _KEPT, _LARGEST = 20, 0.8, 1024
#: Rounds of probes: where many spikes hide the bulk from them, these are left out in the next.
_ROUNDS = 5


class TooSmallError(InvalidValueError):
    """Without its zero rows and columns a matrix is too small for an estimate."""


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
    less. More than about 50 spikes take two to five times as long. Nothing is exact, nothing is
    tested; the errors are stated.

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
    z's components, averaged over probes. Many spikes would take all nodes, so that probes are then
    drawn again, orthogonal to the vectors of the spikes found (deflation). The spikes are the
    largest Ritz values in the span of the vectors of all probes, as in block Lanczos (Golub and
    Underwood, 1977). With k spikes, the variance is ``(tr(W^T W / n) - sum of spikes) / (p - k) * n
    / (n - k)``, as long as the quantiles of the estimated bulk agree. Its error is the error of
    these quantiles, since weak signals in the bulk are in the trace too. No more Ritz values than
    eigenvalues lie above any point (Cauchy), so that `n_spikes_low` allows for the error of the
    threshold alone.

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
    wide = array.shape[0] < array.shape[1]
    tall = array.T if wide else array
    if array.dtype.itemsize >= 8:
        check_range(tall, wide)
    rows, columns, moments, unit = _sums(tall)
    n, p, total = int(np.count_nonzero(rows)), int(np.count_nonzero(columns)), float(rows.sum())
    if p < SMALLEST or n < p:
        raise TooSmallError(
            f"`W` has sides {max(n, p)} and {min(n, p)} without its zero rows and columns; "
            f"expected a smaller side of at least {SMALLEST}, that which is the smaller with them. "
            "Call rmtspec.spectrum, which is exact."
        )
    gram = Gram(tall, n, unit)
    start = np.random.default_rng(seed).choice([-1.0, 1.0], (len(columns), probes))
    start[columns == 0] = 0.0
    start = (start / math.sqrt(p)).astype(gram.dtype)
    eps = float(np.finfo(np.float64 if gram.dtype == np.float64 else np.float32).eps)
    known, before = start[:, :0], math.inf
    for left in reversed(range(_ROUNDS)):
        made = lanczos(gram, start, steps, known)
        nodes, weights = _quadrature(made.diagonals, made.beside)
        most = min(_LARGEST, p // 4, int(_KEPT * probes * _TOP_STEPS) + known.shape[1])
        del made.basis[_TOP_STEPS:]
        values, residuals, vectors = ritz_values(gram, [known, *made.basis], most)
        del made
        found = Probes(nodes, weights, values, n_removed=known.shape[1], n=n, p=p)
        noise = ProbedNoise(found, alpha, beta)
        variance, error, source, k = noise.fitted(total / n, moments.kurtosis)
        rounding = eps * float(values[0])
        variance = max(variance, rounding)  # noise below it cannot be told from it
        edge, factor = noise.edges(k)
        threshold = variance * factor
        above = int(np.count_nonzero(values > threshold))
        few = above - known.shape[1] <= steps // 5 and not found.misses(threshold)
        moved = abs(variance - before)
        if source == "trace" or (few and known.shape[1] == 0):
            break
        if (few or above == known.shape[1]) and moved <= ALLOWED * error:
            break
        if not left:  # not settled
            error = math.hypot(error, min(moved, variance))
        known, before = vectors[:, :above], variance
    error = math.hypot(error, rounding)
    allowed = ALLOWED * error * factor
    count, low, high = found.counts(threshold, allowed, residuals)
    scale = unit**2
    return SpectrumEstimate(
        n=n, p=p, shape=(array.shape[0], array.shape[1]), dtype=str(array.dtype),
        variance=variance * scale, variance_error=error * scale, source=source,
        bulk_edge=variance * edge * scale, bulk_edge_error=error * edge * scale,
        threshold=threshold * scale, trace=total / n * scale, moments=moments,
        n_spikes=count, n_spikes_low=low, n_spikes_high=high,
        largest=values * scale, residuals=residuals * scale, nodes=nodes * scale, weights=weights,
        n_removed=found.n_removed,
        alpha=alpha, beta=beta, rng=seed, seconds=time.perf_counter() - started,
    )  # fmt: skip


def memory_of_estimate(p: int) -> int:
    """Return the bytes that an estimate takes at most, besides the matrix, for a smaller side.

    They are those of numbers of 4 bytes with as many spikes as are looked for; without spikes it is
    a third. The vectors among which these are looked for are there five times.
    """
    return 4 * p * 5 * (min(_LARGEST, p // 4) + PROBES * _TOP_STEPS)


def _sums(tall: NDArray[Any]) -> tuple[Float64Array, Float64Array, EntryMoments, float]:
    """Return sums of squares of rows and columns in a unit, the moments, and the unit.

    The unit is a power of two near the largest entry; 1 where squares are safe without it.
    """
    largest = max(float(np.abs(block).max()) for block in Gram(tall, 1, 1.0).blocks())
    if largest == 0.0:
        return np.zeros(len(tall)), np.zeros(tall.shape[1]), EntryMoments(0.0, 0.0, 3.0), 1.0
    unit = 1.0 if 2.0**-20 < largest < 2.0**20 else math.ldexp(1.0, math.frexp(largest)[1])
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
    nodes = np.array([values for values, _ in found])
    return np.maximum(nodes, 0.0), np.array([v[0] ** 2 for _, v in found])  # below is rounding
