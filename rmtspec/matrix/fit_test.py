"""Fit test: whether the bulk follows the Marchenko-Pastur law that BEMA fitted to it."""

import math
from dataclasses import dataclass
from typing import Any

from rmtspec import _checks
from rmtspec._records import plain
from rmtspec._text import Readable, aligned
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.laws.fit_statistic import null_law
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.matrix.window import statistic


@dataclass(frozen=True, slots=True, repr=False)
class FitTest(Readable):
    """Result of the fit test.

    Attributes
    ----------
    statistic : float
        Largest distance over the bulk between the empirical distribution function (at midpoints)
        and that of the fitted law; nan if there was no fit.
    pvalue : float
        Probability that a matrix of pure noise of this size gives a statistic at least as large.
    accepted : bool
        With a `cutoff`, statistic <= cutoff; without, pvalue >= level. False if there was no fit.
    cutoff : float or None
        The paper's gamma, or None.
    level : float
        Level of the test without a cutoff.
    n_compared : int
        Number of eigenvalues compared.
    reason : str
        Why there is no statistic ("no bulk"); empty if there is one.
    """

    statistic: float
    pvalue: float
    accepted: bool
    cutoff: float | None
    level: float
    n_compared: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values (nan as None)."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}

    def __repr__(self) -> str:
        if self.reason:
            return aligned("FitTest", [("accepted", self.accepted), ("reason", self.reason)])
        by_pvalue = self.cutoff is None
        rule = f"pvalue >= {self.level:g}" if by_pvalue else f"statistic <= {self.cutoff:g}"
        pairs: list[tuple[str, object]] = [
            ("statistic", self.statistic),
            ("pvalue", self.pvalue),
            ("accepted", f"{'yes' if self.accepted else 'no'} ({rule})"),
            ("compared", f"{self.n_compared} eigenvalues"),
        ]
        return aligned("FitTest", pairs)


def fit_test(
    spec: Spectrum, fit: BulkFit, *, cutoff: float | None = None, level: float = 0.05
) -> FitTest:
    """Test whether the bulk follows the fitted law (the paper, section 4.3).

    The statistic compares the two distribution functions at the eigenvalues that BEMA matched, so
    spikes do not count. Its p-value comes from simulated noise matrices of the same size, ratio and
    alpha (`rmtspec.laws.fit_statistic.FitStatisticNull`); with `cutoff`, the paper's rule decides.

    Parameters
    ----------
    spec : Spectrum
        The fitted spectrum.
    fit : BulkFit
        From `bema` on that spectrum.
    cutoff : float, optional
        The paper's gamma, in (0, 1): accept if statistic <= cutoff, whatever the p-value. The
        paper uses 0.01 to 0.15; a noise matrix of 784 x 1000 stays below 0.004.
    level : float
        In (0, 1). Without a cutoff, accept if pvalue >= level.

    Returns
    -------
    FitTest

    Raises
    ------
    InvalidTypeError
        `spec` is not a Spectrum, or `fit` is not a BulkFit.
    InvalidValueError
        The fit is of another matrix size, or an option is outside its range.

    Examples
    --------
    >>> import rmtspec
    >>> spec = rmtspec.spectrum(rmtspec.ensembles.wishart(300, 200, rng=0))
    >>> rmtspec.fit_test(spec, rmtspec.bema(spec)).accepted
    True
    """
    check_fit(spec, fit)
    cutoff, level = check_decision(cutoff, level)
    s = pvalue = math.nan
    n_compared = 0
    if fit.law is not None:
        window = fit.window
        n_compared = window.n_ranks
        s = statistic(spec.eigenvalues, fit.law, window)
        null = null_law(fit.n - fit.n_removed, window.size, fit.alpha, fit.quantiles)
        pvalue = float(null.sf(s))
    return FitTest(
        statistic=s, pvalue=pvalue, accepted=pvalue >= level if cutoff is None else s <= cutoff,
        cutoff=cutoff, level=level, n_compared=n_compared, reason=fit.reason,
    )  # fmt: skip


def check_decision(cutoff: Any, level: Any) -> tuple[float | None, float]:
    """Return `cutoff` and `level` as floats, or raise if an option of `fit_test` is wrong."""
    level = _checks.inside(level, "level", 0.0, 1.0, hint="0.05 is usual.")
    return None if cutoff is None else _checks.cutoff(cutoff, "cutoff"), level


def check_fit(spec: Spectrum, fit: object) -> None:
    """Raise unless `fit` is a BulkFit of the Spectrum `spec`."""
    check_spectrum(spec)
    if not isinstance(fit, BulkFit):
        raise InvalidTypeError(
            f"`fit` is a {type(fit).__name__}; expected a BulkFit. Call rmtspec.bema(spec)."
        )
    if (spec.n, spec.p) != (fit.n, fit.p):
        raise InvalidValueError(
            f"`fit` is of a spectrum with n, p = {fit.n}, {fit.p}, and `spec` has {spec.n}, "
            f"{spec.p}; expected the fit of this spectrum. Call rmtspec.bema(spec)."
        )
