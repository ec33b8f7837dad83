"""BEMA: variance of the noise, edges of the bulk, threshold and spikes, by matching the bulk."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._kernels.bulk import scale_through_origin
from rmtspec._records import plain
from rmtspec._text import Readable, aligned, counted
from rmtspec.laws.fit_statistic import null_law
from rmtspec.laws.marchenko_pastur import VARIANCES, MarchenkoPastur
from rmtspec.laws.tracy_widom import upper_quantile
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.matrix.window import Window, bulk_window, statistic
from rmtspec.terms import Why

#: A refined fit is accepted when its statistic is at most this far above the null's 99 % point.
#: Planted signals of strength 3 to 10 (where the noise ends at 2), up to 70 % of full rank, stay
#: below the point itself in nearly every draw; the remainder of real convolution weights exceeds it
#: by 20 % or more. The allowance is for strong signals, which bend a large bulk slightly.
_BENT = 0.003
#: The refinement must leave at least this many eigenvalues: the law fits any smaller number.
_LEAST_BULK = 16
_MAX_ITERATIONS = 100


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BulkFit(Readable):
    """Result of BEMA: the law of the noise, its edges, and the eigenvalues beyond it.

    Everything is in the units of the spectrum, s^2 / n. If nothing could be fitted, the numbers
    (including `n_spikes`) are nan, `law` is None, and `reason` says why.

    Attributes
    ----------
    variance : float
        Variance of the noise entries of the matrix.
    lower_edge, bulk_edge : float
        Edges of the fitted bulk, those of the limit law (the paper's eq. 6).
    threshold : float
        `bulk_edge` plus the Tracy-Widom margin at `beta`; an eigenvalue above it is a spike.
    n_spikes : int
        Number of eigenvalues above the threshold; nan if nothing could be fitted.
    spikes : ndarray of shape (n_spikes,)
        The eigenvalues above the threshold, ascending.
    law : MarchenkoPastur or None
        Law of the lowest ``p - n_removed`` eigenvalues: with r = `n_removed`, its ratio is
        (p - r) / (n - r) and its variance ``variance * (n - r) / n``.
    n_removed : int
        Number of spikes removed before the last fit; 0 for a plain fit.
    n_plain : int
        Number of spikes of the plain fit; nan if nothing could be fitted.
    n, p : int
        Larger and smaller side of the matrix.
    alpha, beta : float
        The share of the spectrum left out at each end, and the level of the threshold.
    quantiles : str
        "midpoint" or "paper".
    refinement : str
        "plain": one fit to all eigenvalues (on request, or because there were no spikes).
        "refined": the spikes were removed and the rest fitted again until their number no longer
        changed. "refused": the rest did not follow the law (its statistic was more than 0.003
        above the 99 % point of noise) or was too small to judge, fewer than 16 eigenvalues; the
        numbers are those of the plain fit.
    iterations : int
        Number of fits made.
    note : str
        What went wrong in the refinement, in words; empty if nothing did.
    reason : str
        Why there are no numbers ("no bulk"); empty if there are.
    """

    variance: float
    lower_edge: float
    bulk_edge: float
    threshold: float
    n_spikes: int
    spikes: Float64Array
    law: MarchenkoPastur | None
    n_removed: int
    n_plain: int
    n: int
    p: int
    alpha: float
    beta: float
    quantiles: str
    refinement: str
    iterations: int
    note: str
    reason: str

    @property
    def window(self) -> Window:
        """Ranks of the eigenvalues matched with the law."""
        return bulk_window(self.p - self.n_removed, self.alpha)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values (nan as None)."""
        names = [name for name in self.__slots__ if name != "law"]
        return {name: plain(getattr(self, name)) for name in names}

    def __repr__(self) -> str:
        if self.reason:
            return aligned("BulkFit", [("reason", self.reason), ("n, p", f"{self.n}, {self.p}")])
        removed = (
            f", {counted(self.n_removed, 'spike')} removed in {counted(self.iterations, 'fit')}"
        )
        how = self.refinement + (removed if self.refinement == "refined" else "")
        pairs: list[tuple[str, object]] = [
            ("variance", self.variance),
            ("bulk", f"{self.lower_edge:.6g} to {self.bulk_edge:.6g}"),
            ("threshold", self.threshold),
            ("spikes", f"{self.n_spikes} of {self.p}"),
            ("fit", how),
            ("options", f"alpha {self.alpha:g}, beta {self.beta:g}, {self.quantiles} quantiles"),
        ]
        if self.note:
            pairs.append(("note", self.note))
        return aligned("BulkFit", pairs)


def bema(
    spec: Spectrum,
    alpha: float = 0.2,
    beta: float = 0.1,
    *,
    quantiles: str = "midpoint",
    refine: bool = True,
) -> BulkFit:
    """Fit the Marchenko-Pastur law to the bulk of a spectrum and find what lies beyond it.

    Bulk eigenvalue matching analysis [1]_ for a matrix with independent noise of one variance.
    Let l_k be the k-th smallest eigenvalue and q_k the quantile of the law of unit variance at its
    rank. The variance is ``sum(q l) / sum(q^2)`` over alpha p <= k <= (1 - alpha) p, and the
    threshold is ``variance * ((1 + sqrt g)^2 + t n^(-2/3) g^(-1/6) (1 + sqrt g)^(4/3))``, where
    g = p / n and t is the 1 - beta quantile of the Tracy-Widom law (beta = 1). This is the
    rectangular form of the paper's section 3.3; at g = 1 the two agree.

    Parameters
    ----------
    spec : Spectrum
        From `spectrum`, or made from eigenvalues.
    alpha : float
        Share of the spectrum left out at each end, in (0, 1/2).
    beta : float
        Probability that a matrix of pure noise shows any spike, in (0, 1).
    quantiles : {"midpoint", "paper"}
        The level paired with l_k: (k - 1/2) / p, or k / p as in the paper, which biases the
        variance upwards (by 0.2 % at p = 784, 1.8 % at p = 100).
    refine : bool
        Remove the r spikes found, fit the remaining p - r values with the law of an
        (n - r) x (p - r) matrix, and repeat until r no longer changes. Many spikes push the plain
        edge up (by 15 % for a signal of 10 % of full rank). The refined fit is kept only if the
        bulk then follows the law; see `BulkFit.refinement`.

    Returns
    -------
    BulkFit

    Raises
    ------
    InvalidTypeError
        `spec` is not a Spectrum.
    InvalidValueError
        An option is outside its range.

    References
    ----------
    .. [1] Z. T. Ke, Y. Ma, X. Lin, Estimation of the number of spiked eigenvalues in a covariance
       matrix by bulk eigenvalue matching analysis, JASA (2021).

    Examples
    --------
    >>> import rmtspec
    >>> W = rmtspec.ensembles.spiked(400, 300, strengths=[3, 20], rng=0)
    >>> rmtspec.bema(rmtspec.spectrum(W)).n_spikes
    2
    """
    check_spectrum(spec)
    alpha, beta = check_levels(alpha, beta, quantiles)

    margin = upper_quantile(beta)
    fit = partial(_fit, spec, alpha=alpha, beta=beta, margin=margin, quantiles=quantiles)
    plain_fit = fit(0)
    if plain_fit is None:
        return _nothing(spec, alpha, beta, quantiles)
    if not refine or not plain_fit.n_spikes:
        return plain_fit
    refined, iterations, note = _refine(fit, plain_fit)
    if refined is not None and _follows_law(spec, refined):
        return replace(
            refined, refinement="refined", iterations=iterations, note=note,
            n_plain=plain_fit.n_spikes,
        )  # fmt: skip
    note = note or "without its spikes the bulk does not follow the law"
    return replace(plain_fit, refinement="refused", iterations=iterations, note=note)


def edge_width(n: int, p: int) -> float:
    """Return the scale of the Tracy-Widom law of the largest s^2 / n of noise of unit variance."""
    ratio = p / n
    return float(n ** (-2 / 3) * ratio ** (-1 / 6) * (1.0 + math.sqrt(ratio)) ** (4 / 3))


def check_levels(alpha: Any, beta: Any, quantiles: Any) -> tuple[float, float]:
    """Return `alpha` and `beta` as floats, or raise if an option of `bema` is wrong."""
    _checks.choice(quantiles, "quantiles", ("midpoint", "paper"))
    hint = "It is the share of the spectrum left out at each end; 0.2 suits most matrices."
    alpha = _checks.inside(alpha, "alpha", 0.0, 0.5, hint=hint)
    hint = "It is the probability of a false spike on pure noise; the paper uses 0.1."
    return alpha, _checks.inside(beta, "beta", 0.0, 1.0, hint=hint)


def _fit(
    spec: Spectrum, n_removed: int, *, alpha: float, beta: float, margin: float, quantiles: str
) -> BulkFit | None:
    """Fit the lowest p - n_removed eigenvalues; return None if no bulk is left to fit."""
    n, p = spec.n - n_removed, spec.p - n_removed
    window = bulk_window(p, alpha)
    rounding_only = spec.p - spec.numerical_rank
    if window.n_ranks == 0 or window.first <= rounding_only:
        return None
    ratio = p / n
    unit = _unit_quantiles(ratio, window, quantiles)
    scale = float(scale_through_origin(unit, window.of(spec.eigenvalues)))
    if scale <= max(spec.rounding_variance, VARIANCES[0]):  # squares below that lose their digits
        return None
    threshold = scale * ((1.0 + math.sqrt(ratio)) ** 2 + margin * edge_width(n, p))
    n_spikes = spec.p - int(spec.eigenvalues.searchsorted(threshold, side="right"))
    law = MarchenkoPastur(ratio, scale)
    return BulkFit(
        variance=scale * spec.n / n,  # the bulk's own eigenvalues would be s^2 / (n - n_removed)
        lower_edge=law.lower_edge, bulk_edge=law.bulk_edge, threshold=threshold,
        n_spikes=n_spikes, spikes=spec.eigenvalues[spec.p - n_spikes :], law=law,
        n_removed=n_removed, n_plain=n_spikes, n=spec.n, p=spec.p, alpha=alpha, beta=beta,
        quantiles=quantiles, refinement="plain", iterations=1, note="", reason="",
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _unit_quantiles(ratio: float, window: Window, quantiles: str) -> Float64Array:
    """Return the quantiles of the law of unit variance that are paired with the eigenvalues."""
    unit: Float64Array = MarchenkoPastur(ratio).ppf(window.levels(quantiles))
    unit.setflags(write=False)
    return unit


def _refine(
    fit: Callable[[int], BulkFit | None], start: BulkFit
) -> tuple[BulkFit | None, int, str]:
    """Remove spikes and fit again until their number no longer changes: (fit, fits made, note)."""
    seen: dict[int, BulkFit] = {0: start}
    last, p = start, start.p
    while last.n_spikes not in seen and len(seen) <= _MAX_ITERATIONS:
        following = fit(last.n_spikes) if p - last.n_spikes >= _LEAST_BULK else None
        if following is None:
            return None, len(seen), f"removing {last.n_spikes} of {p} would leave no bulk to fit"
        last = seen[following.n_removed] = following
    if last.n_spikes == last.n_removed:
        return last, len(seen), ""
    if last.n_spikes not in seen:
        return None, len(seen), f"the number of spikes still moved after {len(seen)} fits"
    cycle = list(seen)[list(seen).index(last.n_spikes) :]
    note = f"the number of spikes cycled between {min(cycle)} and {max(cycle)}"
    return seen[max(cycle)], len(seen), note


def _follows_law(spec: Spectrum, fit: BulkFit) -> bool:
    """Tell whether the bulk follows the law well enough for a refined fit to be accepted."""
    window = fit.window
    gap = statistic(spec.eigenvalues, fit.law, window)  # type: ignore[arg-type]  # it has a law
    return gap <= _most_bent(fit.n - fit.n_removed, window.size, fit.alpha, fit.quantiles)


@functools.lru_cache(maxsize=256)
def _most_bent(n: int, p: int, alpha: float, quantiles: str) -> float:
    """Return the largest statistic of a refined fit that is accepted."""
    return float(null_law(n, p, alpha, quantiles).isf(0.01)) + _BENT


def _nothing(spec: Spectrum, alpha: float, beta: float, quantiles: str) -> BulkFit:
    nan = math.nan
    return BulkFit(
        variance=nan, lower_edge=nan, bulk_edge=nan, threshold=nan,
        n_spikes=nan, n_plain=nan,  # type: ignore[arg-type]  # an undefined number is nan
        spikes=np.empty(0), law=None, n_removed=0,
        n=spec.n, p=spec.p, alpha=alpha, beta=beta, quantiles=quantiles,
        refinement="plain", iterations=0,
        note=f"{spec.numerical_rank} of {spec.p} eigenvalues stand above rounding",
        reason=Why.NO_BULK.words(),
    )  # fmt: skip
