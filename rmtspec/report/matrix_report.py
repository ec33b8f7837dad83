"""Analysis of one matrix: spectrum, fit, test and rank in one call and one report."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from rmtspec._records import plain
from rmtspec._text import aligned
from rmtspec.errors import InvalidTypeError
from rmtspec.matrix.bema import BulkFit, bema
from rmtspec.matrix.eigenvalues import Eigensolver
from rmtspec.matrix.fit_test import FitTest, fit_test
from rmtspec.matrix.rank import RankDecision, choose_rank
from rmtspec.matrix.spectrum import Spectrum, spectrum
from rmtspec.terms import Kind, Why

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Below this smaller side the laws of large matrices say little.
RELIABLE_FROM = 16
_FITS = {"plain": "plain fit", "refined": "refined fit", "refused": "plain fit, refining refused"}


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class MatrixReport:
    """Everything about one matrix.

    Attributes
    ----------
    name : str
        Of the matrix.
    kind : str
        A `rmtspec.terms.Kind`, or the caller's own word.
    spectrum : Spectrum
    fit : BulkFit
    test : FitTest
    rank : RankDecision
    reliable : bool
        False where the smaller side is below 16.
    reason : str
        Why numbers are missing, are unreliable, or no split would be made; empty when none applies.
    seconds : float
        Wall time of the analysis.
    """

    name: str
    kind: str
    spectrum: Spectrum
    fit: BulkFit
    test: FitTest
    rank: RankDecision
    reliable: bool
    reason: str
    seconds: float

    @property
    def parameters_before(self) -> int:
        """Entries of the matrix."""
        return self.spectrum.shape[0] * self.spectrum.shape[1]

    @property
    def parameters_after(self) -> int:
        """Entries of the two factors at the chosen rank, or of the matrix where that saves none."""
        if not self.rank.saves:
            return self.parameters_before
        return self.rank.rank * sum(self.spectrum.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return one flat JSON-ready row (nan as None), the row of a `Report`."""
        spec, fit, test, rank = self.spectrum, self.fit, self.test, self.rank
        row = {
            "name": self.name,
            "kind": self.kind,
            "rows": spec.shape[0],
            "columns": spec.shape[1],
            "dtype": spec.dtype,
            "n": spec.n,
            "p": spec.p,
            "ratio": spec.ratio,
            "method": spec.method,
            "numerical_rank": spec.numerical_rank,
            "variance": fit.variance,
            "lower_edge": fit.lower_edge,
            "bulk_edge": fit.bulk_edge,
            "threshold": fit.threshold,
            "n_spikes": fit.n_spikes,
            "n_removed": fit.n_removed,
            "refinement": fit.refinement,
            "largest_eigenvalue": float(spec.eigenvalues[-1]),
            "fit_statistic": test.statistic,
            "fit_pvalue": test.pvalue,
            "accepted": test.accepted,
            "rank": rank.rank,
            "rule": rank.rule,
            "keep": rank.keep,
            "break_even": rank.break_even,
            "saves": rank.saves,
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "reliable": self.reliable,
            "reason": self.reason,
            "note": fit.note,
            "seconds": self.seconds,
        }
        return {key: plain(value) for key, value in row.items()}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the spectrum with the fitted law: see `rmtspec.plot.plot_esd`."""
        from rmtspec.plot.esd import plot_esd

        axes = plot_esd(self.spectrum, self.fit, ax=ax)
        axes.set_title(self.name)
        return axes

    def __repr__(self) -> str:
        spec, fit, test, rank = self.spectrum, self.fit, self.test, self.rank
        pairs: list[tuple[str, object]] = [
            ("matrix", f"{spec.shape[0]} x {spec.shape[1]} {spec.dtype}, ratio {spec.ratio:.6g}")
        ]
        if not fit.reason:
            verdict = "accepted" if test.accepted else "rejected"
            pairs += [
                ("noise variance", fit.variance),
                ("bulk", f"{fit.lower_edge:.6g} to {fit.bulk_edge:.6g}"),
                ("threshold", fit.threshold),
                ("spikes", f"{fit.n_spikes} of {spec.p} ({_FITS[fit.refinement]})"),
                ("fit", f"{verdict}, statistic {test.statistic:.4g}, p-value {test.pvalue:.3g}"),
            ]
        if rank.rank or not fit.reason:
            pairs.append(("rank", f"{rank.rank} (a split saves below {rank.break_even:.1f})"))
            before, after = self.parameters_before, self.parameters_after
            share = f"{after:,} of {before:,} ({after / before:.1%})"
            pairs.append(("parameters", share if rank.saves else f"{before:,}, nothing saved"))
        if self.reason:
            pairs.append(("reason", self.reason))
        if fit.note:
            pairs.append(("note", fit.note))
        return aligned(f"MatrixReport {self.name}", pairs)


def analyze(
    W: ArrayLike | Spectrum,
    *,
    name: str = "W",
    kind: str = Kind.MATRIX,
    method: str = "auto",
    precision: str = "float64",
    eigensolver: Eigensolver | None = None,
    alpha: float = 0.2,
    beta: float = 0.1,
    quantiles: str = "midpoint",
    refine: bool = True,
    cutoff: float | None = None,
    level: float = 0.05,
    rule: str = "bema",
    bulk_keep: float = 0.0,
    keep: float | None = None,
    min_rank: int = 0,
) -> MatrixReport:
    """Analyse one matrix: where its noise ends, what is signal, whether to believe it.

    Calls `spectrum`, `bema`, `fit_test` and `choose_rank`, which describe the options.

    Parameters
    ----------
    W : array_like of shape (rows, columns), or Spectrum
        The matrix, or a spectrum one already has.
    name, kind : str
        Shown in the report.
    method, precision, eigensolver
        Of `spectrum`.
    alpha, beta, quantiles, refine
        Of `bema`.
    cutoff, level
        Of `fit_test`.
    rule, bulk_keep, keep, min_rank
        Of `choose_rank`.

    Returns
    -------
    MatrixReport

    Raises
    ------
    RmtspecError
        What the four functions raise.

    Examples
    --------
    >>> import rmtspec
    >>> W = rmtspec.ensembles.spiked(1000, 784, [3, 5, 20], rng=0)
    >>> report = rmtspec.analyze(W, name="planted", beta=0.01)
    >>> report.fit.n_spikes, report.test.accepted, report.rank.saves
    (3, True, True)
    """
    if not isinstance(name, str) or not isinstance(kind, str):
        raise InvalidTypeError(f"`name` is {name!r} and `kind` {kind!r}; expected text.")
    start = time.perf_counter()
    if isinstance(W, Spectrum):
        spec = W
    else:
        spec = spectrum(W, method, precision=precision, eigensolver=eigensolver)
    fit = bema(spec, alpha, beta, quantiles=quantiles, refine=refine)
    test = fit_test(spec, fit, cutoff=cutoff, level=level)
    rank = choose_rank(spec, fit, rule=rule, bulk_keep=bulk_keep, keep=keep, min_rank=min_rank)
    reliable = spec.p >= RELIABLE_FROM
    small = "" if reliable else Why.UNRELIABLE.words(p=spec.p, least=RELIABLE_FROM)
    reason = "; ".join(filter(None, dict.fromkeys((fit.reason, small, rank.reason))))
    seconds = time.perf_counter() - start
    return MatrixReport(name, kind, spec, fit, test, rank, reliable, reason, seconds)
