"""Fitting the noise of a matrix: a count of components that holds for any variance profile."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._kernels.bulk import scale_through_origin
from rmtspec._kernels.equalize import power_sums
from rmtspec.errors import InvalidOptionError
from rmtspec.laws.fit_statistic import FitStatisticNull
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.laws.tracy_widom import upper_quantile
from rmtspec.matrix.bema import BulkFit, bema, edge_width
from rmtspec.matrix.entries import Entries
from rmtspec.matrix.fit_test import FitTest, fit_test
from rmtspec.matrix.flip_test import ALPHA
from rmtspec.matrix.noise_fit import (
    LAW_LEVEL,
    MODELS,
    Bulk,
    NoiseFit,
    settled_without_test,
)
from rmtspec.matrix.screen import screen
from rmtspec.matrix.separation import HIGH, LEAST_BULK, LOW, Separation, Separator
from rmtspec.matrix.spectrum import Spectrum, spectrum
from rmtspec.matrix.thresholds import FlipThreshold, LawThreshold, Model
from rmtspec.matrix.window import bulk_window, statistic
from rmtspec.terms import Verdict, Why

#: Rows and columns of this many times the median variance, and as many deviations of the log
#: variances above it, were absorbed as variance.
_ABSORBED, _DEVIATIONS = 9.0, 4.0
_SKEWED = 0.5


def fit_noise(
    W: ArrayLike | Spectrum, model: str = "auto", beta: float = 0.1, rng: Any = 0
) -> NoiseFit:
    """Count the components of a matrix, whatever the variances of its noise, and judge the rest.

    Parameters
    ----------
    W : array_like of shape (rows, columns), or Spectrum
        Real. A Spectrum has no entries, so only the model "mp" can be used.
    model : {"auto", "mp", "equalized", "signflip"}
        See Notes.
    beta : float
        Probability that a matrix of pure noise shows any component, in (0, 1).
    rng : int or numpy.random.Generator
        Seed of the sign flips: the result is the same for the same seed.

    Returns
    -------
    NoiseFit

    Raises
    ------
    InvalidTypeError, InvalidValueError
        `W` is not a real matrix or has nan or inf, or an option is outside its range.

    Notes
    -----
    Three models of the noise, which is independent from entry to entry:

    - "mp": one variance; see `rmtspec.bema`.
    - "equalized": any variances. Rows and columns are scaled until all have unit mean square
      (Sinkhorn), after which the bulk ends where the Marchenko-Pastur law of variance 1 ends;
      nothing is fitted. Components are removed and the rest scaled again until no more are seen.
    - "signflip": the same, but the bulk ends where that of the rest ends with the signs of its
      entries flipped at random, for heavy tails and sparse matrices. It needs entries that are
      symmetric about 0.

    "auto" counts with "equalized"; if the law does not fit the bulk that is left, with "signflip".

    Correlation between entries is structure for all of them.

    Examples
    --------
    >>> import numpy as np
    >>> import rmtspec
    >>> generator = np.random.default_rng(0)
    >>> W = rmtspec.ensembles.spiked(400, 300, [3, 5, 20], rng=generator)
    >>> scaled = W * np.exp(generator.normal(size=(400, 1)))
    >>> rmtspec.bema(rmtspec.spectrum(scaled)).n_spikes > 3
    True
    >>> fit = rmtspec.fit_noise(scaled)
    >>> fit.n_components, str(fit.verdict)
    (3, 'noise-like bulk')
    """
    model, beta, seed = check_noise(model, beta, rng)
    if isinstance(W, Spectrum):
        if model not in ("auto", "mp"):
            raise InvalidOptionError(
                f"`model` is {model!r} and `W` a Spectrum",
                "the matrix, because this model needs its entries",
                "Pass the matrix, or model='mp'.",
            )
        return plain_noise(W, beta, seed, why="" if model == "mp" else Why.ENTRIES_UNKNOWN.words())
    array = _checks.matrix(W)
    return noise_of(array, model, beta, seed)


def check_noise(model: Any, beta: Any, rng: Any) -> tuple[str, float, int]:
    """Return the options of `fit_noise`, checked, `rng` as a seed."""
    model = _checks.choice(model, "model", MODELS)
    hint = "It is the probability of a false component on pure noise."
    beta = _checks.inside(beta, "beta", 0.0, 1.0, hint=hint)
    return model, beta, _checks.seed(rng, "rng")


def noise_of(array: NDArray[Any], model: str, beta: float, seed: int) -> NoiseFit:
    """Do what `fit_noise` does on a matrix, with checked options."""
    entries = None if model == "mp" else Entries(array)
    if entries is None or entries.p == 0:
        return plain_noise(spectrum(array), beta, seed)
    case = _Case(entries, beta, seed)
    if model != "auto":
        return case.fit(model)
    fit = case.fit("equalized")
    if fit.exact or not (fit.law_pvalue < LAW_LEVEL or fit.law is None):
        return fit
    why = Why.LAW_FAILS.words(pvalue=fit.law_pvalue) if fit.law is not None else fit.reason
    del fit  # which holds what is left of the matrix
    return case.fit("signflip", why)


class _Case:
    """One matrix with the options of its fits."""

    def __init__(self, entries: Entries, beta: float, seed: int) -> None:
        self._entries, self._beta, self._seed = entries, beta, seed
        self._separator = Separator(entries)

    def fit(self, model: str, why: str = "") -> NoiseFit:
        """Return the fit of the model "equalized" or "signflip"."""
        beta, seed = self._beta, self._seed
        threshold: Model = LawThreshold() if model == "equalized" else FlipThreshold(beta, seed)
        outcome = self._separator.separate(threshold, beta)
        spec, k = outcome.spectrum, outcome.n_components
        n, p = spec.n, spec.p
        law, distance, pvalue = None, math.nan, math.nan
        settled = settled_without_test(p, self._entries.typical, LEAST_BULK)
        bulk = Bulk(spec.eigenvalues, None, n, seed)
        if k is None:
            settled = settled or (Verdict.NO_BULK_LEFT, self._why_no_bulk(outcome))
        else:
            bulk = Bulk(spec.eigenvalues[: p - k], outcome.residual, n, seed)
            law = MarchenkoPastur((p - k) / (n - k), (n - k) / n)
            distance, pvalue = _compared(spec.eigenvalues, law, n - k, p - k)
        rows, columns = self._scales(outcome)
        undefined: Any = math.nan
        return NoiseFit(
            n_components=undefined if k is None else k, at_least=outcome.at_least,
            components_low=undefined if k is None else outcome.low,
            components_high=undefined if k is None else outcome.high,
            threshold=outcome.threshold / n, scales=(rows, columns),
            spectrum=spec, law=law, energy_share=outcome.energy_share, model=model,
            why_model=why, rounds=outcome.rounds,
            absorbed_rows=() if outcome.exact else _absorbed(rows),
            absorbed_columns=() if outcome.exact else _absorbed(columns), beta=beta, rng=seed,
            note="" if settled else _note(outcome),
            exact=outcome.exact, law_pvalue=pvalue, law_distance=distance, doubt="",
            settled=settled, bulk=bulk,
        )  # fmt: skip

    def _scales(self, outcome: Separation) -> tuple[Float64Array, Float64Array]:
        """Return the scales of the rows and columns of the matrix as given."""
        longer = self._entries.placed(outcome.scales.rows, longer=True)
        shorter = self._entries.placed(outcome.scales.columns, longer=False)
        return (shorter, longer) if self._entries.wide else (longer, shorter)

    def _why_no_bulk(self, outcome: Separation) -> str:
        if outcome.exact:
            return Why.ONLY_ROUNDING.words(count=self._separator.numerical_rank)
        p, least = self._entries.p, self._separator.least_bulk
        return Why.TOO_MANY_COMPONENTS.words(count=outcome.count, p=p, least=least)


def _compared(values: Float64Array, law: MarchenkoPastur, n: int, p: int) -> tuple[float, float]:
    """Return the fit statistic of the p lowest values, and its p-value, by their shape alone.

    The law is scaled to them by least squares, as its null law supposes; equalizing leaves the
    middle of a bulk of noise 0.3 % above the law.
    """
    window = bulk_window(p, ALPHA)
    if window.n_ranks == 0:
        return math.nan, math.nan
    own = window.of(values)
    scale = float(scale_through_origin(law.ppf(window.levels("midpoint")), own))
    if scale <= 0.0:
        return math.nan, math.nan
    scaled = MarchenkoPastur(law.ratio, law.variance * scale)
    distance = statistic(values, scaled, window)
    return distance, float(FitStatisticNull(n, p, ALPHA).sf(distance))


def plain_noise(
    spec: Spectrum,
    beta: float,
    seed: int = 0,
    *,
    why: str = "",
    fit: BulkFit | None = None,
    test: FitTest | None = None,
) -> NoiseFit:
    """Return the Marchenko-Pastur fit of a spectrum (made here, or given) as a NoiseFit.

    The verdict is "cannot tell" where the entries do not look like noise of one variance.
    """
    if fit is None:
        fit = bema(spec, beta=beta)
    if test is None:
        test = fit_test(spec, fit)
    doubt = screen(spec, fit)
    settled = settled_without_test(spec.p, spec.n, LEAST_BULK)
    if fit.reason:
        exact = 0 < spec.numerical_rank < spec.p
        words = Why.ONLY_ROUNDING.words(count=spec.numerical_rank) if exact else fit.reason
        settled = settled or (Verdict.NO_BULK_LEFT, words)
    elif doubt:
        settled = settled or (Verdict.CANNOT_TELL, doubt)
    total = float(spec.eigenvalues.sum())
    return NoiseFit(
        n_components=fit.n_spikes, at_least=fit.n_plain, components_low=_lower(spec, fit),
        components_high=_moved(spec, fit, HIGH), threshold=fit.threshold,
        scales=None, spectrum=spec, law=fit.law,
        energy_share=float(fit.spikes.sum()) / total if total else math.nan, model="mp",
        why_model=why, rounds=fit.iterations, absorbed_rows=(), absorbed_columns=(), beta=beta,
        rng=seed, note=fit.note, exact=False, law_pvalue=test.pvalue,
        law_distance=test.statistic, doubt=doubt, settled=settled,
        bulk=Bulk(spec.eigenvalues, None, spec.n, seed),
    )  # fmt: skip


def _lower(spec: Spectrum, fit: BulkFit) -> int:
    """Return the number of spikes at the level 0.01.

    Where spikes were removed it takes a fit of its own: noise among them stays above any threshold.
    """
    if not fit.n_removed or fit.beta <= LOW:
        return _moved(spec, fit, LOW)
    return min(fit.n_spikes, bema(spec, fit.alpha, LOW, quantiles=fit.quantiles).n_spikes)


def _moved(spec: Spectrum, fit: BulkFit, level: float) -> int:
    """Return the number of spikes of a fit with its threshold moved to another level."""
    if fit.law is None:
        return fit.n_spikes  # nan
    n, p = fit.n - fit.n_removed, fit.p - fit.n_removed
    margin = upper_quantile(level) * edge_width(n, p)
    threshold = fit.bulk_edge + fit.law.variance * margin
    return spec.p - int(spec.eigenvalues.searchsorted(threshold, side="right"))


def _absorbed(scales: Float64Array) -> tuple[int, ...]:
    """Return the places of scales far above the others."""
    live = scales > 0.0
    if scales.max() <= math.sqrt(_ABSORBED) * scales[live].min():
        return ()
    logs = 2.0 * np.log(scales, out=np.full(scales.shape, -math.inf), where=live)
    middle = np.median(logs[live])
    spread = 1.4826 * np.median(np.abs(logs[live] - middle))
    far = logs > middle + max(math.log(_ABSORBED), _DEVIATIONS * float(spread))
    return tuple(np.flatnonzero(far).tolist())


def _note(outcome: Separation) -> str:
    """Return what else to know about a fit."""
    notes = []
    if not outcome.settled:
        notes.append(f"the count still grew in round {outcome.rounds}")
    if outcome.residual is not None and _is_skewed(outcome.residual):
        notes.append(
            "the entries are skewed: the sign flips assume symmetric ones, and raise more false "
            "components (on exponential noise 0.25 at 288 x 32 and 0.5 at 2000 x 40, for 0.1)"
        )
    return "; ".join(notes)


def _is_skewed(residual: NDArray[np.float32]) -> bool:
    """Tell whether the sum of cubes is too large for symmetric entries, whatever their tails."""
    squares, cubes, sixths = power_sums(residual)
    skewness = abs(cubes / residual.size) / (squares / residual.size) ** 1.5
    return bool(skewness > _SKEWED and abs(cubes) > 4.0 * math.sqrt(sixths))
