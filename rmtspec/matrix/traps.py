"""Correlation traps: spikes that single huge entries make, seen by shuffling the entries."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._records import plain
from rmtspec._text import Readable, aligned
from rmtspec.matrix.bema import BulkFit, bema
from rmtspec.matrix.eigenvalues import check_finite
from rmtspec.matrix.spectrum import spectrum

_SHOWN = 5  # entries in the repr


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Traps(Readable):
    """Result of `correlation_traps`: the spikes that a matrix keeps when its entries are shuffled.

    Attributes
    ----------
    n_traps : int
        Number of spikes that more than half of the shuffled matrices have; nan if their bulk could
        not be fitted (`reason` says why).
    counts : tuple of int
        Number of spikes of each shuffled matrix.
    thresholds : tuple of float
        Threshold of each, in the units of its spectrum, s^2 / n.
    limit : float
        Distance from the mean at which an entry alone makes a spike, about
        ``(n p)^(1/4)`` standard deviations.
    rows, columns : ndarray of shape (n_entries,)
        Places in `W` of the entries beyond the limit, the largest first.
    sizes : ndarray of shape (n_entries,)
        The entries at these places.
    level : float
        Probability that Gaussian noise has `n_traps` above 0.
    draws : int
        Number of shuffled matrices.
    reason : str
        Why there is no count; empty if there is one.
    """

    n_traps: int
    counts: tuple[int, ...]
    thresholds: tuple[float, ...]
    limit: float
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    sizes: Float64Array
    level: float
    draws: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values (nan as None)."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}

    def __repr__(self) -> str:
        if self.reason:
            return aligned("Traps", [("reason", self.reason)])
        shown = zip(self.rows[:_SHOWN], self.columns, self.sizes, strict=False)
        named = ", ".join(f"[{i}, {j}] {size:.4g}" for i, j, size in shown)
        more = f" and {self.sizes.size - _SHOWN} more" if self.sizes.size > _SHOWN else ""
        pairs: list[tuple[str, object]] = [
            ("traps", self.n_traps),
            ("per shuffle", ", ".join(map(str, self.counts))),
            ("lone entry", f"makes a spike beyond {self.limit:.4g} from the mean"),
            ("entries", (named or "none") + more),
            ("level", self.level),
        ]
        return aligned("Traps", pairs)


def correlation_traps(W: ArrayLike, beta: float = 0.1, draws: int = 5, rng: Any = 0) -> Traps:
    """Count the spikes that single huge entries make, by shuffling the entries of the matrix.

    Shuffling destroys every structure but the sizes of the entries, so that a spike of the shuffled
    matrix is due to these: an entry more than about (n p)^(1/4) standard deviations from the mean
    is a spike by itself. WeightWatcher calls them correlation traps [1]_. The mean is taken off
    first, since a constant is one large component that shuffling keeps, and so are zero rows and
    columns.

    Each of the shuffled matrices is fitted by `bema`. A trap must show in k = draws // 2 + 1 of
    them, and the threshold of each is that of the level q at which k of `draws` independent
    matrices exceed it with probability `beta`. On Gaussian noise the result therefore has the level
    `beta`: .08 at beta .1, 0 of 300 at .01, measured at 300 x 200. Heavy tails are what it looks
    for: noise of Student's t has traps in .84 of such matrices with 5 degrees, in all with 3. Often
    many large entries make them together (an entry beyond the limit in .31 and in all), and then
    no entry is listed.

    Parameters
    ----------
    W : array_like of shape (rows, columns)
        Real matrix.
    beta : float
        Probability that Gaussian noise shows a trap, in (0, 1).
    draws : int
        Number of shuffled matrices, at least 1. Each costs one spectrum.
    rng : int or numpy.random.Generator
        Seed; the same gives the same result.

    Returns
    -------
    Traps

    Raises
    ------
    InvalidTypeError, InvalidValueError
        `W` is not a real, finite matrix, or an option is outside its range.

    References
    ----------
    .. [1] C. H. Martin, M. W. Mahoney, Implicit self-regularization in deep neural networks, JMLR
       (2021); the count is that of the option ``randomize`` of the package weightwatcher.

    Examples
    --------
    >>> import rmtspec
    >>> W = rmtspec.ensembles.wishart(300, 200, rng=0)
    >>> W[7, 11] = 40.0
    >>> rmtspec.correlation_traps(W)
    Traps
      traps        1
      per shuffle  1, 1, 1, 2, 2
      lone entry   makes a spike beyond 15.62 from the mean
      entries      [7, 11] 40
      level        0.1
    """
    array = _checks.matrix(W)
    beta = _checks.inside(beta, "beta", 0.0, 1.0, hint="It is the probability of a false trap.")
    draws = _checks.integer(draws, "draws", 1, hint="Pass the number of shuffled matrices.")
    generator = _checks.generator(rng)
    check_finite(array)
    rows = np.flatnonzero((array != 0).any(axis=1))
    columns = np.flatnonzero((array != 0).any(axis=0))
    kept = array[np.ix_(rows, columns)].astype(np.float64)
    if kept.size:
        kept -= kept.mean()
    fits = _shuffled_fits(kept, beta, draws, generator)
    reason = next((fit.reason for fit in fits if fit.reason), "")
    if reason:
        nowhere = np.empty(0, dtype=np.intp)
        return Traps(
            n_traps=math.nan,  # type: ignore[arg-type]  # an undefined number is nan
            counts=(), thresholds=(), limit=math.nan, rows=nowhere, columns=nowhere,
            sizes=np.empty(0), level=beta, draws=draws, reason=reason,
        )  # fmt: skip
    counts = tuple(fit.n_spikes for fit in fits)
    limit = float(np.median([_lone_entry(fit) for fit in fits]))
    i, j = np.nonzero(np.abs(kept) > limit)
    order = np.argsort(-np.abs(kept[i, j]), kind="stable")
    i, j = rows[i[order]], columns[j[order]]
    return Traps(
        n_traps=sorted(counts, reverse=True)[draws // 2],
        counts=counts, thresholds=tuple(fit.threshold for fit in fits), limit=limit,
        rows=i, columns=j, sizes=array[i, j].astype(np.float64), level=beta, draws=draws,
        reason="",
    )  # fmt: skip


def _shuffled_fits(
    kept: Float64Array, beta: float, draws: int, generator: np.random.Generator
) -> list[BulkFit]:
    """Return the fits of the shuffled matrices, at the level that gives `beta` in all."""
    from scipy.special import betaincinv

    if not kept.size or not kept.any():
        return [bema(spectrum(np.zeros((2, 2))))]
    least = draws // 2 + 1
    level = float(betaincinv(least, draws - least + 1, beta))
    flat = kept.reshape(-1)
    shuffled = (generator.permutation(flat).reshape(kept.shape) for _ in range(draws))
    return [bema(spectrum(matrix), beta=level) for matrix in shuffled]


def _lone_entry(fit: BulkFit) -> float:
    """Return the size of an entry whose eigenvalue (1 + u)(g + u) / u, in variances, is threshold.

    u is its square over n variances, and g the ratio.
    """
    ratio = fit.p / fit.n
    excess = max(fit.threshold / fit.variance - 1.0 - ratio, 2.0 * math.sqrt(ratio))
    u = 0.5 * (excess + math.sqrt(max(excess * excess - 4.0 * ratio, 0.0)))
    return math.sqrt(u * fit.n * fit.variance)
