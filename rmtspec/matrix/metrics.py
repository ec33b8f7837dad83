"""Numbers about a weight matrix that other tools report: norms, ranks, tail, localization."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec._records import plain
from rmtspec._text import aligned
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.eigenvalues import blocks
from rmtspec.matrix.localization import Localization, localization
from rmtspec.matrix.power_law import fit_power_law
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.terms import Why

#: What is None, and no column, where no initial weights were given.
_OF_INIT = ("distance_to_init", "relative_distance_to_init")
_SIDES = ("left_participation", "right_participation")


@dataclass(frozen=True, slots=True, repr=False, eq=False, kw_only=True)
class Metrics:
    """Numbers about one matrix, under the names that WeightWatcher gives them where it has them.

    s are the singular values, p of them, and ``lambda = s^2`` (a `Spectrum` divides that by n).
    Logarithms are to base 10. What cannot be computed is nan, and `reason` says why.

    Attributes
    ----------
    norm, log_norm : float
        Squared Frobenius norm, ``sum(lambda)``, and its logarithm.
    frobenius_norm : float
        ``sqrt(norm)``.
    spectral_norm, log_spectral_norm : float
        Squared spectral norm, ``max(lambda)``, and its logarithm.
    sv_max : float
        The spectral norm itself, ``max(s)``.
    stable_rank : float
        ``norm / spectral_norm``.
    matrix_rank : int
        The numerical rank: singular values above rounding.
    entropy : float
        ``-sum(q log q) / log(matrix_rank)`` with ``q = lambda / norm``: 1 if all are equal.
    effective_rank : float
        ``exp(-sum(q log q))`` with ``q = s / sum(s)`` [1]_.
    effective_rank_noise : float
        The same number for noise of that size: s are then quantiles of the Marchenko-Pastur law.
    energy_beyond_edge : float
        Share of `norm` in eigenvalues above the threshold of the Marchenko-Pastur fit.
    num_spikes : int or nan
        How many these are, the "n_spikes" of a row.
    mp_softrank : float
        Upper edge of the fitted bulk divided by the largest eigenvalue [2]_.
    alpha, xmin, D, sigma : float
        Power law ``lambda^-alpha`` of the eigenvalues from `xmin` on, its Kolmogorov-Smirnov
        distance and the standard error of the exponent [3]_.
    num_pl_spikes : int or nan
        Number of eigenvalues in that tail.
    alpha_weighted : float
        ``alpha * log_spectral_norm``.
    log_alpha_norm : float
        Logarithm of ``sum(lambda^alpha)``.
    left_participation, right_participation : float
        ``1 / sum(v^4)`` of the leading singular vector on the side of the rows and of the columns:
        the number of entries it is spread over, a third of all for a random one.
    least_left_participation, least_right_participation : float
        The least among the eight leading vectors.
    left_localization, right_localization : float
        ``||v||_1 / ||v||_inf`` of the leading singular vectors.
    distance_to_init, relative_distance_to_init : float or None
        Frobenius norm of the difference from the initial weights, and that divided by theirs; None
        where none were asked for.
    reason : str
        Why numbers are nan; empty if none is.

    References
    ----------
    .. [1] O. Roy, M. Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO
       2007, definition 1.
    .. [2] C. H. Martin, M. W. Mahoney, Implicit self-regularization in deep neural networks, JMLR
       22 (2021).
    .. [3] A. Clauset, C. R. Shalizi, M. E. J. Newman, Power-law distributions in empirical data,
       SIAM Review 51 (2009).
    """

    norm: float
    log_norm: float
    frobenius_norm: float
    spectral_norm: float
    log_spectral_norm: float
    sv_max: float
    stable_rank: float
    matrix_rank: int
    entropy: float
    effective_rank: float
    effective_rank_noise: float
    energy_beyond_edge: float
    num_spikes: float
    mp_softrank: float
    alpha: float
    xmin: float
    D: float
    sigma: float
    num_pl_spikes: float
    alpha_weighted: float
    log_alpha_norm: float
    left_participation: float
    right_participation: float
    least_left_participation: float
    least_right_participation: float
    left_localization: float
    right_localization: float
    distance_to_init: float | None = None
    relative_distance_to_init: float | None = None
    reason: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Metrics":
        """Return the result that gave this `to_dict`."""
        known: dict[str, Any] = {}
        for name, value in values.items():
            known[name] = math.nan if value is None else value
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values (nan as None), without those not asked for."""
        left_out = [name for name in _OF_INIT if getattr(self, name) is None]
        names = [name for name in self.__slots__ if name not in left_out]
        return {name: plain(getattr(self, name)) for name in names}

    def __repr__(self) -> str:
        shown = [(name, getattr(self, name)) for name in self.__slots__]
        return aligned("Metrics", [pair for pair in shown if pair[1] not in (None, "")])


def metrics_of(
    spec: Spectrum,
    fit: BulkFit,
    array: NDArray[Any] | None = None,
    *,
    initial: NDArray[Any] | None = None,
    why: str = "",
) -> Metrics:
    """Return the metrics of a matrix from its spectrum, the plain fit of it and its entries.

    `initial` are the weights it had at first, of the same shape; `why` says why they are not
    known, where they were asked for.
    """
    squares = spec.n * spec.eigenvalues
    total, largest = float(squares.sum()), float(squares[-1])
    reasons: list[str] = []
    found: dict[str, Any] = _from_entries(array if largest > 0.0 else None)
    if largest == 0.0:
        reasons.append(Why.ZERO_MATRIX.words())
    elif array is None:
        reasons.append(Why.ENTRIES_UNKNOWN.words())
    found |= _ranks(spec, squares, total)
    if spec.numerical_rank == 1:
        reasons.append(Why.RANK_ONE.words())
    found |= _edge(spec, fit)
    reasons.append(fit.reason if largest > 0.0 else "")
    tail, reason = _tail(squares[spec.p - spec.numerical_rank :], largest)
    reasons.append(reason if largest > 0.0 else "")
    found |= tail
    if initial is not None and array is not None:
        found |= dict(zip(_OF_INIT, _distances(array, initial), strict=True))
    elif why:
        found |= dict.fromkeys(_OF_INIT, math.nan)
        reasons.append(why)
    return Metrics(
        norm=total, log_norm=_log10(total), frobenius_norm=math.sqrt(total),
        spectral_norm=largest, log_spectral_norm=_log10(largest), sv_max=math.sqrt(largest),
        stable_rank=stable_rank(spec), matrix_rank=spec.numerical_rank,
        reason="; ".join(filter(None, dict.fromkeys(reasons))), **found,
    )  # fmt: skip


def stable_rank(spec: Spectrum) -> float:
    """Return ||W||_F^2 / ||W||_2^2; nan for a matrix of zeros."""
    largest = float(spec.eigenvalues[-1])
    return float(spec.eigenvalues.sum()) / largest if largest else math.nan


def effective_rank(spec: Spectrum) -> float:
    """Return exp(H), where H is the entropy of the singular values as shares of their sum.

    .. [1] O. Roy, M. Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO
       (2007).
    """
    values = spec.singular_values
    return math.exp(_entropy(values)) if values[-1] > 0.0 else math.nan


def _log10(value: float) -> float:
    return math.log10(value) if value > 0.0 else math.nan


def _entropy(weights: Float64Array) -> float:
    """Return -sum(q log q) of weights divided by their sum."""
    shares = weights[weights > 0.0] / weights.sum()
    return float(-np.sum(shares * np.log(shares)))


def _ranks(spec: Spectrum, squares: Float64Array, total: float) -> dict[str, float]:
    if total == 0.0:
        return dict.fromkeys(("entropy", "effective_rank", "effective_rank_noise"), math.nan)
    rank = spec.numerical_rank
    return {
        "entropy": _entropy(squares) / math.log(rank) if rank > 1 else math.nan,
        "effective_rank": effective_rank(spec),
        "effective_rank_noise": _effective_rank_of_noise(spec.n, spec.p),
    }


@functools.lru_cache(maxsize=64)
def _effective_rank_of_noise(n: int, p: int) -> float:
    levels = (np.arange(p) + 0.5) / p
    return math.exp(_entropy(np.sqrt(MarchenkoPastur(p / n).ppf(levels))))


def _edge(spec: Spectrum, fit: BulkFit) -> dict[str, float]:
    if fit.reason:
        return dict.fromkeys(("energy_beyond_edge", "num_spikes", "mp_softrank"), math.nan)
    beyond = float(fit.spikes.sum()) / float(spec.eigenvalues.sum())
    softrank = fit.bulk_edge / float(spec.eigenvalues[-1])
    return {
        "energy_beyond_edge": beyond, "num_spikes": fit.n_spikes, "mp_softrank": softrank,
    }  # fmt: skip


def _tail(squares: Float64Array, largest: float) -> tuple[dict[str, float], str]:
    """Return the columns of the power law of the eigenvalues above rounding, and why not."""
    fit = fit_power_law(squares)
    with np.errstate(over="ignore"):
        powers = fit.alpha * np.log10(squares) if squares.size else np.array([math.nan])
        top = float(powers.max())
        log_sum = top + _log10(float(np.sum(10.0 ** (powers - top))))
    return {
        "alpha": fit.alpha, "xmin": fit.xmin, "D": fit.distance, "sigma": fit.error,
        "num_pl_spikes": fit.tail, "alpha_weighted": fit.alpha * _log10(largest),
        "log_alpha_norm": log_sum,
    }, fit.reason  # fmt: skip


def _from_entries(array: NDArray[Any] | None) -> dict[str, float]:
    """Return what the leading singular vectors tell; nan without entries."""
    if array is None:
        return dict.fromkeys((*Localization._fields, *map("least_{}".format, _SIDES)), math.nan)
    spread = localization(array)
    first = {name: float(values[0]) for name, values in spread._asdict().items()}
    return first | {f"least_{name}": float(getattr(spread, name).min()) for name in _SIDES}


def _distances(array: NDArray[Any], initial: NDArray[Any]) -> tuple[float, float]:
    """Return ||W - W0|| and ||W - W0|| / ||W0||, read in blocks."""
    distance = start_norm = 0.0
    for (_, now), (_, before) in zip(blocks(array), blocks(initial), strict=True):
        distance = math.hypot(distance, float(np.linalg.norm(now - before)))
        start_norm = math.hypot(start_norm, float(np.linalg.norm(before)))
        del now, before  # before the next ones are made
    return distance, distance / start_norm if start_norm else math.nan
