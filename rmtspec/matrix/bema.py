"""BEMA: variance of the noise, edges of the bulk, threshold and spikes, by matching the bulk."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._kernels.bulk import scale_through_origin
from rmtspec._records import plain
from rmtspec._text import aligned
from rmtspec.laws.fit_statistic import FitStatisticNull
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.laws.tracy_widom import TracyWidom
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.matrix.window import Window, bulk_window, statistic
from rmtspec.terms import Why

#: A refined fit is believed when its statistic is at most this far above the null's 99 % point.
#: Planted signals of strength 3-10 (in units where the noise ends at 2), up to 70 % of full rank,
#: stay below the point itself in nearly every draw; what is left of real convolution weights is
#: 20 % beyond it and more. The allowance is for strong signals, which bend a large bulk a little.
_BENT = 0.003
#: The refinement must leave this many eigenvalues: the law fits fewer whatever they are.
_LEAST_BULK = 16
_MAX_ITERATIONS = 100


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BulkFit:
    """What BEMA found: the noise's law, where it ends, and what lies beyond.

    Everything is in the units of the spectrum, s^2 / n. Where nothing could be fitted, the numbers
    (`n_spikes` too) are nan, `law` is None and `reason` says why.

    Attributes
    ----------
    variance : float
        Of the noise entries of the matrix.
    lower_edge, bulk_edge : float
        Ends of the fitted bulk, the edges of the limit law (the paper's eq. 6).
    threshold : float
        `bulk_edge` plus the Tracy-Widom margin at `beta`; what is above it is a spike.
    n_spikes : int
        How many eigenvalues are above the threshold; nan when nothing could be fitted.
    spikes : ndarray of shape (n_spikes,)
        The eigenvalues above the threshold, ascending.
    law : MarchenkoPastur or None
        Law of the lowest ``p - n_removed`` eigenvalues: ratio (p - r) / (n - r), variance
        ``variance * (n - r) / n``, r being `n_removed`.
    n_removed : int
        Spikes taken out of the matrix before the last fit: 0 for a plain fit.
    n, p : int
        Sides of the matrix.
    alpha, beta : float
        The share of the spectrum left out on each side, and the level of the threshold.
    quantiles : str
        "midpoint" or "paper".
    refinement : str
        "plain": one fit to all eigenvalues (asked for, or there were no spikes to remove).
        "refined": spikes removed and the rest fitted again until their number stood still.
        "refused": that was tried, and what was left did not follow the law (its statistic was more
        than 0.003 above the 99 % point of noise) or was too little to judge, below 16 eigenvalues;
        the numbers are those of the plain fit.
    iterations : int
        Fits made.
    note : str
        What the refinement ran into, for a reader; empty when nothing.
    reason : str
        Why there are no numbers ("no bulk"); empty when there are.
    """

    variance: float
    lower_edge: float
    bulk_edge: float
    threshold: float
    n_spikes: int
    spikes: Float64Array
    law: MarchenkoPastur | None
    n_removed: int
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
        """Ranks of the eigenvalues that were matched with the law."""
        return bulk_window(self.p - self.n_removed, self.alpha)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values (nan as None)."""
        names = [name for name in self.__slots__ if name != "law"]
        return {name: plain(getattr(self, name)) for name in names}

    def __repr__(self) -> str:
        if self.reason:
            return aligned("BulkFit", [("reason", self.reason), ("n, p", f"{self.n}, {self.p}")])
        how = self.refinement
        if self.refinement == "refined":
            how += f", {self.n_removed} spikes removed in {self.iterations} fits"
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


class _Step(NamedTuple):
    """One fit to the lowest p - n_removed eigenvalues."""

    n_removed: int
    variance: float
    law: MarchenkoPastur
    threshold: float
    n_spikes: int


def bema(
    spec: Spectrum,
    alpha: float = 0.2,
    beta: float = 0.1,
    *,
    quantiles: str = "midpoint",
    refine: bool = True,
) -> BulkFit:
    """Fit the Marchenko-Pastur law to the bulk of a spectrum and find what lies beyond it.

    Bulk eigenvalue matching analysis [1]_ for a matrix with independent noise of one variance:
    with q_k the quantile of the law of unit variance at the rank of the k-th smallest eigenvalue
    l_k, the variance is ``sum(q l) / sum(q^2)`` over alpha p <= k <= (1 - alpha) p, and the
    threshold is ``variance * ((1 + sqrt g)^2 + t n^(-2/3) g^(-1/6) (1 + sqrt g)^(4/3))``, with
    g = p / n and t the 1 - beta quantile of the Tracy-Widom law (beta = 1). This is the paper's
    section 3.3 in its rectangular form; at g = 1 the two agree.

    Parameters
    ----------
    spec : Spectrum
        From `spectrum`, or from eigenvalues.
    alpha : float
        Share of the spectrum left out on each side, in (0, 1/2).
    beta : float
        Chance that a matrix of pure noise shows any spike, in (0, 1).
    quantiles : {"midpoint", "paper"}
        The level paired with l_k: (k - 1/2) / p, or k / p as in the paper, which biases the
        variance upwards (0.2 % at p = 784, 1.8 % at p = 100).
    refine : bool
        Remove the r spikes found, fit the remaining p - r values with the law of an
        (n - r) x (p - r) matrix, and repeat until r stands still. Many spikes push the plain
        edge up (by 15 % at a signal of 10 % of full rank). The refined answer is
        kept only where the bulk then follows the law; see `BulkFit.refinement`.

    Returns
    -------
    BulkFit

    Raises
    ------
    InvalidTypeError
        `spec` is no Spectrum.
    InvalidValueError
        An option outside its range.

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

    def fit(n_removed: int) -> _Step | None:
        return _fit(spec, n_removed, alpha=alpha, margin=margin, quantiles=quantiles)

    margin = TracyWidom(1).isf(beta)
    plain_step = fit(0)
    if plain_step is None:
        return _nothing(spec, alpha, beta, quantiles)
    chosen, refinement, iterations, note = plain_step, "plain", 1, ""
    if refine and plain_step.n_spikes:
        refined, iterations, note = _refine(fit, plain_step, spec.p)
        if refined is not None and _follows_law(spec, refined, alpha, quantiles):
            chosen, refinement = refined, "refined"
        else:
            refinement = "refused"
            note = note or "without its spikes the bulk does not follow the law"
    return BulkFit(
        variance=chosen.variance,
        lower_edge=chosen.law.lower_edge,
        bulk_edge=chosen.law.bulk_edge,
        threshold=chosen.threshold,
        n_spikes=chosen.n_spikes,
        spikes=spec.eigenvalues[spec.p - chosen.n_spikes :],
        law=chosen.law,
        n_removed=chosen.n_removed,
        n=spec.n,
        p=spec.p,
        alpha=alpha,
        beta=beta,
        quantiles=quantiles,
        refinement=refinement,
        iterations=iterations,
        note=note,
        reason="",
    )


_ALPHA_HINT = "It is the share of the spectrum left out on each side; 0.2 serves most matrices."
_BETA_HINT = "It is the chance of a false spike on pure noise; 0.1 is the paper's."


def check_levels(alpha: Any, beta: Any, quantiles: Any) -> tuple[float, float]:
    """Return `alpha` and `beta` as floats, or raise for a wrong option of `bema`."""
    _checks.choice(quantiles, "quantiles", ("midpoint", "paper"))
    return (
        _checks.inside(alpha, "alpha", 0.0, 0.5, hint=_ALPHA_HINT),
        _checks.inside(beta, "beta", 0.0, 1.0, hint=_BETA_HINT),
    )


def _fit(
    spec: Spectrum, n_removed: int, *, alpha: float, margin: float, quantiles: str
) -> _Step | None:
    """Fit the lowest p - n_removed eigenvalues; None where no bulk is left to fit."""
    n, p = spec.n - n_removed, spec.p - n_removed
    window = bulk_window(p, alpha)
    rounding_only = spec.p - spec.numerical_rank
    if window.n_ranks == 0 or window.first <= rounding_only:
        return None
    ratio = p / n
    unit = MarchenkoPastur(ratio).ppf(window.levels(quantiles))
    scale = float(scale_through_origin(unit, window.of(spec.eigenvalues)))
    if scale <= spec.rounding_variance:
        return None
    root = math.sqrt(ratio)
    width = n ** (-2 / 3) * ratio ** (-1 / 6) * (1.0 + root) ** (4 / 3)
    threshold = scale * ((1.0 + root) ** 2 + margin * width)
    n_spikes = spec.p - int(np.searchsorted(spec.eigenvalues, threshold, side="right"))
    return _Step(
        n_removed=n_removed,
        variance=scale * spec.n / n,  # eigenvalues are s^2 / n, those of the bulk's law s^2 / (n-r)
        law=MarchenkoPastur(ratio, scale),
        threshold=threshold,
        n_spikes=n_spikes,
    )


def _refine(fit: Any, start: _Step, p: int) -> tuple[_Step | None, int, str]:
    """Remove spikes and fit again until their number stands still: (step, fits made, note)."""
    seen: dict[int, _Step] = {0: start}
    step = start
    while step.n_spikes not in seen and len(seen) <= _MAX_ITERATIONS:
        following = fit(step.n_spikes) if p - step.n_spikes >= _LEAST_BULK else None
        if following is None:
            return None, len(seen), f"removing {step.n_spikes} of {p} would leave no bulk to fit"
        step = following
        seen[step.n_removed] = step
    if step.n_spikes == step.n_removed:
        return step, len(seen), ""
    if step.n_spikes not in seen:
        return None, len(seen), f"the number of spikes still moved after {len(seen)} fits"
    cycle = list(seen)[list(seen).index(step.n_spikes) :]
    largest = seen[max(cycle)]
    return largest, len(seen), f"the number of spikes cycled between {min(cycle)} and {max(cycle)}"


def _follows_law(spec: Spectrum, step: _Step, alpha: float, quantiles: str) -> bool:
    """Tell whether what is left follows the law well enough for the refined fit to be believed."""
    n, p = spec.n - step.n_removed, spec.p - step.n_removed
    null = FitStatisticNull(n, p, alpha, quantiles)
    found = statistic(spec.eigenvalues, step.law, bulk_window(p, alpha))
    return found <= float(null.isf(0.01)) + _BENT


def _nothing(spec: Spectrum, alpha: float, beta: float, quantiles: str) -> BulkFit:
    nan = math.nan
    return BulkFit(
        variance=nan,
        lower_edge=nan,
        bulk_edge=nan,
        threshold=nan,
        n_spikes=nan,  # type: ignore[arg-type]  # what cannot be computed is nan, never a number
        spikes=np.empty(0),
        law=None,
        n_removed=0,
        n=spec.n,
        p=spec.p,
        alpha=alpha,
        beta=beta,
        quantiles=quantiles,
        refinement="plain",
        iterations=0,
        note=f"{spec.numerical_rank} of {spec.p} eigenvalues stand above rounding",
        reason=Why.NO_BULK.words(),
    )
