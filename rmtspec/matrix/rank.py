"""Rank: how many singular values to keep, and whether a split at that rank saves parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec.errors import InvalidOptionError, InvalidTypeError
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.noise_fit import NoiseFit
from rmtspec.matrix.rank_decision import RankDecision as RankDecision
from rmtspec.matrix.rules.fits import Fits, fits_for
from rmtspec.matrix.rules.options import ALL_RULES as ALL_RULES
from rmtspec.matrix.rules.options import ENTRY_RULES, check_owner, shares_of
from rmtspec.matrix.rules.options import RULES as RULES
from rmtspec.matrix.rules.options import check_shares as check_shares
from rmtspec.matrix.rules.options import refuse_bulk_keep as refuse_bulk_keep
from rmtspec.matrix.rules.resampling import bcv_rank, parallel_rank
from rmtspec.matrix.rules.shares import energy_rank, part_of
from rmtspec.matrix.rules.thresholds import RANK_BOUND, gavish_donoho, screenot
from rmtspec.matrix.spectrum import Spectrum, spectrum
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate
from rmtspec.terms import Why

_NAN: Any = math.nan
#: The options that belong to one rule.
_OWNERS = {"rank": "fixed", "noise_variance": "gavish-donoho", "rank_bound": "screenot"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOptions:
    """The options of `choose_rank`, which describes them; a wrong one raises here."""

    rule: str
    bulk_keep: float = 0.0
    keep: float | None = None
    min_rank: int = 0
    rank: int | None = None
    noise_variance: float | None = None
    rank_bound: int | None = None
    beta: float | None = None
    rng: Any = 0

    def __post_init__(self) -> None:
        _checks.choice(self.rule, "rule", ALL_RULES)
        shares_of(self.rule, self.bulk_keep, self.keep)
        for name, owner in _OWNERS.items():
            check_owner(name, getattr(self, name), self.rule, owner)
        if self.rule == "fixed" and self.rank is None:
            problem = "`rule` is 'fixed' and `rank` is not given"
            raise InvalidOptionError(problem, "a whole number from 0 to the smaller side")
        if self.noise_variance is not None:
            hint = "It is the variance of the noise entries; leave it out to have it estimated."
            _checks.positive(self.noise_variance, "noise_variance", hint)
        object.__setattr__(self, "rng", _checks.seed(self.rng, "rng"))
        if self.beta is not None:
            hint = "It is the probability of a false spike; the paper uses 0.1."
            _checks.inside(self.beta, "beta", 0.0, 1.0, hint=hint)

    @property
    def level(self) -> float:
        """Level of the fit that is made here, and of "parallel"."""
        return 0.1 if self.beta is None else float(self.beta)


@dataclass(frozen=True, slots=True)
class _Case:
    """What a rule is given: the matrix (or its spectrum again), the fits, the options."""

    W: Any
    spec: Spectrum
    fits: Fits
    options: RankOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What a rule says: the rank, why it is 0, and the numbers of `RankDecision` that it used."""

    rank: int
    none: str = Why.NO_SIGNAL.words()
    threshold: float = math.nan
    noise_variance: float = math.nan
    rank_bound: int = _NAN


def choose_rank(
    W: ArrayLike | Spectrum,
    fit: BulkFit | NoiseFit | None = None,
    *,
    rule: str | None = None,
    bulk_keep: float = 0.0,
    keep: float | None = None,
    min_rank: int = 0,
    rank: int | None = None,
    noise_variance: float | None = None,
    rank_bound: int | None = None,
    beta: float | None = None,
    rng: Any = 0,
) -> RankDecision:
    """Choose how many singular values to keep (the paper, sections 4.2 and 4.4).

    =============== ================================================================ ============
    rule            keeps                                                            needs
    =============== ================================================================ ============
    "bema"          the r spikes and the largest ``floor(bulk_keep (p - r))`` of     a fit
                    the rest; right for independent noise of one variance
    "noise"         the same with the components that `fit_noise` counts; right      a NoiseFit,
                    for independent noise of any variances                           or entries
    "gavish-donoho" what lies above the threshold of least squared error for white
                    noise, of known or unknown variance
    "screenot"      the same for noise whose spectrum has an edge, of any shape      a rank bound
    "parallel"      what exceeds the singular values of the matrix with each column  entries
                    shuffled
    "bcv"           the rank that predicts left-out blocks of entries best           entries
    "energy"        the fewest largest with a share ``keep`` of the sum of all       `keep`
                    squares
    "fraction"      the largest ``floor(keep p)``, but at least one                  `keep`
    "exact"         all but rounding: the numerical rank
    "fixed"         the number given                                                 `rank`
    =============== ================================================================ ============

    All but "bema" and "noise" are there for comparison (`compare_rules` makes a table of them), and
    decide even if there is no fit ("no bulk"). p does not count zero rows and columns. Sources:
    "gavish-donoho" [1]_, "screenot" [2]_, "parallel" [3]_, "bcv" [4]_.

    The thresholds of least error lie above the edge of the noise: they leave out weak components
    that are there, and are no test of whether there are any. "parallel" has its level for noise of
    one variance in each column; under unequal variances of rows and columns its level is 0.98 at a
    nominal 0.10 (share of pure noise matrices, 300 x 200, with a false component). "energy" and
    "fraction" count noise and signal alike.

    Parameters
    ----------
    W : array_like of shape (rows, columns), or Spectrum
        The matrix, or its spectrum, which is enough for all rules but "noise" without a fit,
        "parallel" and "bcv".
    fit : BulkFit or NoiseFit, optional
        From `bema` or `fit_noise` on that matrix; made here if None: by `fit_noise` for the rule
        "noise", else by `bema`.
    rule : str, optional
        One of the table. By default "noise" if `fit` is a NoiseFit of a model other than "mp", else
        "bema".
    bulk_keep : float
        In [0, 1], for the rules "bema" and "noise". 0 removes the whole bulk; 0.45 reproduces the
        paper's layer sizes (its text says that 45 % is removed; its numbers and its code keep
        45 %).
    keep : float, optional
        In (0, 1], required by the rules "energy" and "fraction": the share that they keep.
    min_rank : int
        Never choose a smaller rank; from 0 to p.
    rank : int, optional
        From 0 to p, required by the rule "fixed".
    noise_variance : float, optional
        For the rule "gavish-donoho": the variance of the noise entries, if it is known. By default
        the median singular value gives it, which is right while the signal is of low rank.
    rank_bound : int, optional
        For the rule "screenot": a bound on the rank of the signal, with 2 rank_bound + 1 < p. By
        default a quarter of p.
    beta : float, optional
        In (0, 1), 0.1 by default: the level of the fit that is made here, and of "parallel".
    rng : None, int, or numpy.random.Generator
        For the rules "noise", "parallel" and "bcv"; the default gives the same rank each time.

    Returns
    -------
    RankDecision
        Its rank is 0, with the reason, if "bema" or "noise" has no fit, or nothing was found and
        none of the bulk is to be kept.

    Raises
    ------
    InvalidTypeError
        `W` is not a matrix, `fit` is of another type, or an option is not a number.
    InvalidValueError
        The fit is of another matrix size, the rule is unknown or needs the entries, or an option is
        outside its range, missing, or belongs to another rule.

    References
    ----------
    .. [1] M. Gavish, D. L. Donoho, The optimal hard threshold for singular values is 4 / sqrt(3),
       IEEE Transactions on Information Theory 60 (2014).
    .. [2] D. L. Donoho, M. Gavish, E. Romanov, ScreeNOT: exact MSE-optimal singular value
       thresholding in correlated noise, Annals of Statistics 51 (2023).
    .. [3] A. Buja, N. Eyuboglu, Remarks on parallel analysis, Multivariate Behavioral Research 27
       (1992).
    .. [4] A. B. Owen, P. O. Perry, Bi-cross-validation of the SVD and the nonnegative matrix
       factorization, Annals of Applied Statistics 3 (2009).

    Examples
    --------
    >>> import rmtspec
    >>> spec = rmtspec.spectrum(rmtspec.ensembles.spiked(1000, 784, [5, 10, 20], rng=0))
    >>> fit = rmtspec.bema(spec, beta=0.01)
    >>> rmtspec.choose_rank(spec, fit).rank
    3
    >>> rmtspec.choose_rank(spec, fit, bulk_keep=0.45).rank
    354
    >>> rmtspec.choose_rank(spec, fit, rule="energy", keep=0.9).rank
    370
    >>> rmtspec.choose_rank(spec, rule="fraction", keep=0.25).rank
    196
    >>> rmtspec.choose_rank(spec, rule="gavish-donoho").rank
    3
    """
    if rule is None:
        rule = "noise" if isinstance(fit, NoiseFit) and fit.model != "mp" else "bema"
    options = RankOptions(
        rule=rule, bulk_keep=bulk_keep, keep=keep, min_rank=min_rank, rank=rank,
        noise_variance=noise_variance, rank_bound=rank_bound, beta=beta, rng=rng,
    )  # fmt: skip
    return decide(W, None, fit, options)


def decide(
    W: ArrayLike | Spectrum, spec: Spectrum | None, fit: object, options: RankOptions
) -> RankDecision:
    """Do what `choose_rank` does, with checked options and the spectrum of `W` if it is known."""
    o = options
    if o.beta is not None and fit is not None and o.rule != "parallel":
        raise InvalidOptionError(
            f"`beta` is {o.beta!r} and `fit` is given, which has its own level", "one of them",
            "Leave out `beta`, or make the fit with it.",
        )  # fmt: skip
    _check_entries(W, fit, o.rule)
    if spec is None:
        spec = W if isinstance(W, Spectrum) else spectrum(W)
    min_rank = _checks.integer(o.min_rank, "min_rank", 0, spec.p)
    fits = fits_for(W, spec, fit, rule=o.rule, beta=o.level, rng=o.rng)
    choice = _CHOICES[o.rule](_Case(W, spec, fits, o))
    return _decision(choice, spec.shape, o, min_rank=min_rank, counts=fits)


def decide_estimated(estimate: SpectrumEstimate, options: RankOptions) -> RankDecision:
    """Return what `decide` does by the rules "bema" and "noise", from an estimate."""
    k, bulk_keep = estimate.n_spikes, float(options.bulk_keep)
    min_rank = _checks.integer(options.min_rank, "min_rank", 0, estimate.p)
    choice = _Choice(rank=k + part_of(estimate.p - k, bulk_keep), threshold=estimate.threshold)
    return _decision(choice, estimate.shape, options, min_rank=min_rank, counts=_Counts(k, k))


class _Counts(NamedTuple):
    """Spikes and components that were counted."""

    n_spikes: int
    n_components: int


def _decision(
    choice: _Choice, shape: tuple[int, int], options: RankOptions, *, min_rank: int,
    counts: Fits | _Counts,
) -> RankDecision:  # fmt: skip
    """Return the decision for a matrix of this shape."""
    o, (rows, columns) = options, shape
    rank = max(min_rank, choice.rank)
    break_even = rows * columns / (rows + columns)
    saves = 1 <= rank < break_even
    reason = "" if saves else Why.SAVES_NOTHING.words(rank=rank, break_even=break_even)
    bulk_keep, keep = shares_of(o.rule, o.bulk_keep, o.keep)
    return RankDecision(
        rank=rank, rule=o.rule, break_even=break_even, saves=saves, n_spikes=counts.n_spikes,
        bulk_keep=bulk_keep, keep=keep, min_rank=min_rank, reason=reason if rank else choice.none,
        n_components=counts.n_components, threshold=choice.threshold,
        noise_variance=choice.noise_variance, rank_bound=choice.rank_bound,
    )  # fmt: skip


def _bema(case: _Case) -> _Choice:
    bulk = case.fits.bulk
    if bulk is None:
        return _noise(case)
    if bulk.reason:
        return _Choice(rank=0, none=bulk.reason)
    return _counted(case, bulk.n_spikes, bulk.threshold)


def _noise(case: _Case) -> _Choice:
    noise = case.fits.noise
    if noise is None or math.isnan(noise.n_components):
        return _Choice(rank=0, none=Why.NO_BULK.words() if noise is None else noise.reason)
    # A threshold on another spectrum than that of the matrix, unless the model is "mp".
    return _counted(case, noise.n_components, noise.threshold if noise.model == "mp" else math.nan)


def _counted(case: _Case, count: int, threshold: float) -> _Choice:
    """Return a count with its share of the bulk."""
    rank = count + part_of(case.spec.p - count, float(case.options.bulk_keep))
    return _Choice(rank=rank, threshold=threshold)


def _gavish_donoho(case: _Case) -> _Choice:
    threshold, variance = gavish_donoho(case.spec, case.options.noise_variance)
    rank = _beyond(case.spec, threshold)
    return _Choice(rank=rank, threshold=threshold, noise_variance=variance)


def _screenot(case: _Case) -> _Choice:
    most = max(0, (case.spec.p - 2) // 2)  # 2 rank_bound + 1 < p
    bound = case.options.rank_bound
    if bound is None:
        bound = min(most, part_of(case.spec.p, RANK_BOUND))
    hint = "The noise beyond it is made up from as many values below it."
    bound = _checks.integer(bound, "rank_bound", 0, most, hint=hint)
    threshold = screenot(case.spec, bound)
    return _Choice(rank=_beyond(case.spec, threshold), threshold=threshold, rank_bound=bound)


def _fixed(case: _Case) -> _Choice:
    return _Choice(rank=_checks.integer(case.options.rank, "rank", 0, case.spec.p))


def _energy(case: _Case) -> _Choice:
    return _Choice(rank=energy_rank(case.spec, float(case.options.keep or 0.0)))


def _fraction(case: _Case) -> _Choice:
    return _Choice(rank=max(1, part_of(case.spec.p, float(case.options.keep or 0.0))))


def _parallel(case: _Case) -> _Choice:
    return _Choice(rank=parallel_rank(case.W, case.spec, case.options.level, case.options.rng))


def _beyond(spec: Spectrum, threshold: float) -> int:
    """Return how many eigenvalues exceed a threshold and the rounding."""
    above = spec.p - int(spec.eigenvalues.searchsorted(threshold, side="right"))
    return min(above, spec.numerical_rank)


_CHOICES: dict[str, Callable[[_Case], _Choice]] = {
    "bema": _bema,
    "noise": _noise,
    "gavish-donoho": _gavish_donoho,
    "screenot": _screenot,
    "parallel": _parallel,
    "bcv": lambda c: _Choice(rank=bcv_rank(c.W, c.options.rng)),
    "energy": _energy,
    "fraction": _fraction,
    "exact": lambda c: _Choice(rank=c.spec.numerical_rank),
    "fixed": _fixed,
}


def _check_entries(W: Any, fit: Any, rule: str) -> None:
    """Raise if a rule needs the entries and has only a spectrum."""
    counted = rule == "noise" and isinstance(fit, NoiseFit)
    if isinstance(W, Spectrum) and rule in ENTRY_RULES and not counted:
        other = ", or `fit` from rmtspec.fit_noise(W)" if rule == "noise" else ""
        raise InvalidTypeError(
            f"`W` is a Spectrum, and rule {rule!r} needs the entries of the matrix; expected the "
            f"matrix{other}. The rules {', '.join(r for r in ALL_RULES if r not in ENTRY_RULES)} "
            "do with a spectrum."
        )
