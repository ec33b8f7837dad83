"""The analysis of one matrix: spectrum, fit, test and rank in one call and one report."""

import base64
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._files.writing import PathLike
from rmtspec._records import plain, versions
from rmtspec._text import Readable, aligned
from rmtspec.errors import InvalidOptionError, InvalidTypeError
from rmtspec.matrix.bema import BulkFit, bema
from rmtspec.matrix.components import Components, components
from rmtspec.matrix.eigenvalues import Eigensolver
from rmtspec.matrix.fit_test import FitTest, fit_test
from rmtspec.matrix.lower_edge import LowerEnd, below_bulk
from rmtspec.matrix.metrics import Metrics, metrics_of
from rmtspec.matrix.noise import noise_of, plain_noise
from rmtspec.matrix.noise_fit import NoiseFit
from rmtspec.matrix.noise_variance import NoiseVariance, noise_variance
from rmtspec.matrix.rank import RankDecision, decide
from rmtspec.matrix.rounding_level import RoundingLevel
from rmtspec.matrix.spectrum import Spectrum, spectrum
from rmtspec.plot.axes import png
from rmtspec.report.figures import matrix_figure
from rmtspec.report.initial import initial_of
from rmtspec.report.metric_columns import metric_columns
from rmtspec.report.options import AnalysisOptions, check_metrics
from rmtspec.terms import Kind, Why

#: If the smaller side is below this, the laws of large matrices say little.
RELIABLE_FROM = 16
_FITS = {"plain": "plain fit", "refined": "refined fit", "refused": "plain fit, refining refused"}


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class MatrixReport(Readable):
    """The results for one matrix.

    Attributes
    ----------
    name : str
        Name of the matrix.
    kind : str
        A `rmtspec.terms.Kind`, or the caller's own word.
    spectrum : Spectrum
    fit : BulkFit
    test : FitTest
    rank : RankDecision
    noise : NoiseFit
        The components by the noise model that was asked for, and the verdict on the bulk.
    noise_variance : NoiseVariance or None
        Variance of the noise and edge of the bulk with intervals; None for the model "mp".
    lower_end : LowerEnd
        The eigenvalues smaller than the noise makes them: those of ``noise.spectrum``, which with a
        model other than "mp" is that of the equalized matrix. Its threshold, "lower_threshold" in a
        row, is in the same units, and "lower_edge" of the row in those of `spectrum`.
    reliable : bool
        False if the smaller side is below 16.
    reason : str
        Why numbers are missing or unreliable, or why no split would be made; empty if none of
        these applies.
    seconds : float
        Wall time of the analysis.
    rounding : RoundingLevel or None
        How far up the rounding of a quantised file reaches; None for any other matrix.
    metrics : Metrics or None
        Numbers that other tools report, more columns of a row; None unless they were asked for.
    """

    name: str
    kind: str
    spectrum: Spectrum
    fit: BulkFit
    test: FitTest
    rank: RankDecision
    noise: NoiseFit
    noise_variance: NoiseVariance | None
    lower_end: LowerEnd
    reliable: bool
    reason: str
    seconds: float
    rounding: RoundingLevel | None = None
    metrics: Metrics | None = None

    @property
    def components(self) -> Components | None:
        """Strengths of the components, and how true their singular vectors are; None without any.

        With a model other than "mp" they are those of the equalized matrix.
        """
        count = self.noise.n_components
        if math.isnan(count) or not count:
            return None
        return components(self.noise.spectrum, int(count))

    @property
    def parameters_before(self) -> int:
        """Entries of the matrix."""
        return self.spectrum.shape[0] * self.spectrum.shape[1]

    @property
    def parameters_after(self) -> int:
        """Entries of the two factors at the chosen rank, or of the matrix if that saves nothing."""
        if not self.rank.saves:
            return self.parameters_before
        return self.rank.rank * sum(self.spectrum.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return one flat JSON-ready row (nan as None), the row of a `Report`."""
        row = {column: plain(value(self)) for column, value in COLUMNS.items()}
        return row if self.metrics is None else row | metric_columns(self.metrics)

    def to_html(self, path: PathLike | None = None) -> str:
        """Return one self-contained HTML page on the matrix; write it to `path` if given."""
        from rmtspec.report.report import Report

        alone = Report([self.to_dict()], [], {}, versions=versions(), matrices={self.name: self})
        return alone.to_html(path)

    def plot(self, ax: Any = None, *, kind: str = "esd", legend: str | None = "inside") -> Any:
        """Draw the matrix, with the verdicts of fit test and noise model in the picture.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw, three of them for "all"; a new pyplot figure if None.
        kind : {"esd", "cdf", "scree", "all"}
            The spectrum with the fitted law (`rmtspec.plot.plot_esd`), the distribution functions
            (`plot_cdf_fit`), the singular values by rank (`plot_scree`), or these side by side.
        legend : {"inside", "outside"} or None
            Where the legend is; the verdict is written into the picture even without one.

        Returns
        -------
        matplotlib.axes.Axes
            Three of them for "all".

        Raises
        ------
        InvalidTypeError
            `ax` is of the wrong type.
        InvalidValueError
            `kind` or `legend` is unknown.
        """
        return matrix_figure(self, kind, ax, legend)

    def _repr_html_(self) -> str:
        """Return the table, and the picture of `plot` below it."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 3.6), layout="constrained")
        self.plot(ax=figure.subplots())
        content = base64.b64encode(png(figure)).decode("ascii")
        picture = f'<img alt="its spectrum" width="600" src="data:image/png;base64,{content}">'
        return Readable._repr_html_(self) + picture

    def __repr__(self) -> str:
        spec, fit, test, rank = self.spectrum, self.fit, self.test, self.rank
        pairs: list[tuple[str, object]] = [
            ("matrix", f"{spec.shape[0]} x {spec.shape[1]} {spec.dtype}, ratio {spec.ratio:.6g}")
        ]
        if spec.numerical_rank < spec.p:
            exact = "" if rank.rule == "exact" else "; rule='exact' keeps it whole"
            pairs.append(("numerical rank", f"{spec.numerical_rank} of {spec.p}{exact}"))
        if not fit.reason:
            verdict = "accepted" if test.accepted else "rejected"
            pairs += [
                ("noise variance", fit.variance),
                ("bulk", f"{fit.lower_edge:.6g} to {fit.bulk_edge:.6g}"),
                ("threshold", fit.threshold),
                ("spikes", f"{fit.n_spikes} of {spec.p} ({_FITS[fit.refinement]})"),
                ("fit", f"{verdict}, statistic {test.statistic:.4g}, p-value {test.pvalue:.3g}"),
            ]
        noise = self.noise
        span = f"{noise.components_low} to {noise.components_high}, at least {noise.at_least}"
        if not math.isnan(noise.n_components):
            safe = "" if noise.count_is_safe else "; not safe"
            pairs.append(("components", f"{noise.n_components} ({noise.model}, {span}{safe})"))
        pairs.append(("verdict", f"{noise.verdict}: {noise.reason}"))
        if noise.remarks:
            pairs.append(("remarks", noise.remarks))
        if self.rounding is not None:
            level = self.rounding
            words = f"{level.n_below} of {spec.p} singular values within it"
            pairs.append(("rounding", f"{level.method}, up to {level.edge:.6g}: {words}"))
        if self.lower_end.n_below > 0:
            pairs.append(("below the bulk", f"{self.lower_end.n_below} values smaller than noise"))
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


#: The columns of a report in order, and their values.
COLUMNS: dict[str, Callable[[MatrixReport], Any]] = {
    "name": lambda m: m.name,
    "kind": lambda m: m.kind,
    "rows": lambda m: m.spectrum.shape[0],
    "columns": lambda m: m.spectrum.shape[1],
    "dtype": lambda m: m.spectrum.dtype,
    "n": lambda m: m.spectrum.n,
    "p": lambda m: m.spectrum.p,
    "ratio": lambda m: m.spectrum.ratio,
    "method": lambda m: m.spectrum.method,
    "numerical_rank": lambda m: m.spectrum.numerical_rank,
    "variance": lambda m: m.fit.variance,
    "lower_edge": lambda m: m.fit.lower_edge,
    "bulk_edge": lambda m: m.fit.bulk_edge,
    "threshold": lambda m: m.fit.threshold,
    "n_spikes": lambda m: m.fit.n_spikes,
    "n_removed": lambda m: m.fit.n_removed,
    "refinement": lambda m: m.fit.refinement,
    "largest_eigenvalue": lambda m: float(m.spectrum.eigenvalues[-1]),
    "fit_statistic": lambda m: m.test.statistic,
    "fit_pvalue": lambda m: m.test.pvalue,
    "accepted": lambda m: m.test.accepted,
    "noise_model": lambda m: m.noise.model,
    "n_components": lambda m: m.noise.n_components,
    "at_least": lambda m: m.noise.at_least,
    "components_low": lambda m: m.noise.components_low,
    "components_high": lambda m: m.noise.components_high,
    "count_is_safe": lambda m: m.noise.count_is_safe,
    "verdict": lambda m: m.noise.verdict,
    "verdict_reason": lambda m: m.noise.reason,
    "noise_remarks": lambda m: m.noise.remarks,
    "bulk_pvalue": lambda m: m.noise.bulk_pvalue,
    "bulk_ks": lambda m: m.noise.bulk_ks,
    "energy_share": lambda m: m.noise.energy_share,
    "noise_variance": lambda m: m.noise_variance and m.noise_variance.variance,
    "noise_variance_low": lambda m: m.noise_variance and m.noise_variance.low,
    "noise_variance_high": lambda m: m.noise_variance and m.noise_variance.high,
    "lower_threshold": lambda m: m.lower_end.threshold,
    "n_below": lambda m: m.lower_end.n_below,
    "quantised": lambda m: m.rounding and m.rounding.method,
    "rounding_variance": lambda m: m.rounding and m.rounding.variance,
    "rounding_edge": lambda m: m.rounding and m.rounding.edge,
    "n_below_rounding": lambda m: m.rounding and m.rounding.n_below,
    "rank": lambda m: m.rank.rank,
    "rule": lambda m: m.rank.rule,
    "keep": lambda m: m.rank.keep,
    "break_even": lambda m: m.rank.break_even,
    "saves": lambda m: m.rank.saves,
    "parameters_before": lambda m: m.parameters_before,
    "parameters_after": lambda m: m.parameters_after,
    "reliable": lambda m: m.reliable,
    "reason": lambda m: m.reason,
    "note": lambda m: m.fit.note,
    "seconds": lambda m: m.seconds,
}


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
    noise: str = "auto",
    rng: Any = 0,
    rule: str | None = None,
    bulk_keep: float = 0.0,
    keep: float | None = None,
    min_rank: int = 0,
    metrics: bool = False,
    init: Any = None,
) -> MatrixReport:
    """Analyse one matrix: where its noise ends, what is signal, and whether to believe it.

    Calls `spectrum`, `bema`, `fit_test` and `choose_rank`, which describe their options.

    Parameters
    ----------
    W : array_like of shape (rows, columns), or Spectrum
        The matrix, or its spectrum if that is known. An array of NumPy, of torch (of any device
        and float type, with or without gradient), JAX or CuPy, or a sparse matrix of SciPy; one
        with masked entries is refused.
    name, kind : str
        Shown in the report.
    method, precision, eigensolver
        See `spectrum`.
    alpha, beta, quantiles, refine
        See `bema`.
    cutoff, level
        See `fit_test`.
    noise, rng
        The `model` and the seed of `fit_noise`. A Spectrum has no entries: "mp" is used.
    rule, bulk_keep, keep, min_rank
        See `choose_rank`.
    metrics : bool
        Also compute what other tools report, norms, ranks, the power law of the tail and more:
        see `Metrics`. Needs the package `powerlaw` (extra "metrics").
    init : array_like of shape (rows, columns), optional
        With `metrics`, the weights that the matrix had before training; for `analyze_many` and
        others on many matrices, a mapping of these by name or the path of their file or folder.

    Returns
    -------
    MatrixReport

    Raises
    ------
    RmtspecError
        Any error of the four functions.
    MissingDependencyError
        `metrics` without the package that it needs; raised before any work.

    Examples
    --------
    >>> import rmtspec
    >>> W = rmtspec.ensembles.spiked(1000, 784, [3, 5, 20], rng=0)
    >>> report = rmtspec.analyze(W, name="planted", beta=0.01)
    >>> report.fit.n_spikes, report.test.accepted, report.rank.saves
    (3, True, True)
    """
    options = AnalysisOptions(
        kind=kind, method=method, precision=precision, eigensolver=eigensolver, alpha=alpha,
        beta=beta, quantiles=quantiles, refine=refine, cutoff=cutoff, level=level, noise=noise,
        rng=_checks.seed(rng, "rng"), rule=rule, bulk_keep=bulk_keep, keep=keep, min_rank=min_rank,
        metrics=metrics,
    )  # fmt: skip
    check_metrics(metrics, init)
    if options.estimates:
        raise InvalidOptionError(
            f"`method` is {method!r}, which gives no spectrum to report on",
            "'auto', 'gram' or 'svd'",
            "For an estimate call rmtspec.estimate_spectrum(W); analyze_many takes this method.",
        )
    return report_on(W, name, kind, options, initial=init)


def report_on(
    W: ArrayLike | Spectrum,
    name: str,
    kind: str,
    options: AnalysisOptions,
    *,
    known: tuple[NoiseFit, NoiseVariance | None] | None = None,
    initial: Any = None,
    spec: Spectrum | None = None,
    spent: float = 0.0,
) -> MatrixReport:
    """Do what `analyze` does, with checked options; `known` is what needs the entries, if given.

    `initial` is the matrix at first, a callable that returns it, or the reason why it is not known.
    `spec` is the spectrum if it is known, and `spent` the seconds that were spent on it.
    """
    if not isinstance(name, str):
        raise InvalidTypeError(f"`name` is {name!r}; expected text.")
    start = time.perf_counter() - spent
    o = options
    if isinstance(W, Spectrum):
        spec = W
    else:
        W = _checks.matrix(W)  # once: a tensor of a device, or a sparse matrix, is copied
        if spec is None:
            spec = spectrum(W, o.route, precision=o.precision, eigensolver=o.eigensolver)
    fit = bema(spec, o.alpha, o.beta, quantiles=o.quantiles, refine=o.refine)
    test = fit_test(spec, fit, cutoff=o.cutoff, level=o.level)
    noise, variance = known or _noise(W, fit, test, o, spec=spec)
    if o.rule == "noise":
        rank = dataclasses.replace(decide(spec, spec, noise, o.of_rank), n_spikes=fit.n_spikes)
    else:
        rank = decide(spec, spec, fit, o.of_rank)
    metrics = _metrics(W, spec, fit, initial) if o.metrics else None
    reliable = spec.p >= RELIABLE_FROM
    small = "" if reliable else Why.UNRELIABLE.words(p=spec.p, least=RELIABLE_FROM)
    return MatrixReport(
        name=name, kind=kind, spectrum=spec, fit=fit, test=test, rank=rank, noise=noise,
        noise_variance=variance, lower_end=_lower_end(spec, fit, noise, o.beta),
        reliable=reliable,
        reason="; ".join(filter(None, dict.fromkeys((fit.reason, small, rank.reason)))),
        seconds=time.perf_counter() - start, metrics=metrics,
    )  # fmt: skip


def _noise(
    W: ArrayLike | Spectrum, fit: BulkFit, test: FitTest, o: AnalysisOptions, *, spec: Spectrum
) -> tuple[NoiseFit, NoiseVariance | None]:
    """Return the fit of the noise by the model of the options, tested, and its variance."""
    if o.noise == "mp" or isinstance(W, Spectrum):
        why = "" if o.noise == "mp" else Why.ENTRIES_UNKNOWN.words()
        return plain_noise(spec, o.beta, o.rng, why=why, fit=fit, test=test), None
    array = np.asarray(W)
    noise = noise_of(array, o.noise, o.beta, o.rng)
    noise.bulk_pvalue  # noqa: B018  made now, so that the entries need not be kept
    if math.isnan(noise.n_components):
        return noise, None
    variance = noise_variance(
        array, int(noise.n_components), row_scales=noise.row_scales,
        column_scales=noise.column_scales,
    )  # fmt: skip
    return noise, variance


def _metrics(W: ArrayLike | Spectrum, spec: Spectrum, fit: BulkFit, initial: Any) -> Metrics:
    """Return the metrics of the entries, or of the spectrum where only that is known."""
    array = None if isinstance(W, Spectrum) else np.asarray(W)
    before, why = initial_of(initial, array)
    return metrics_of(spec, fit, array, initial=before, why=why)


def _lower_end(spec: Spectrum, fit: BulkFit, noise: NoiseFit, beta: float) -> LowerEnd:
    """Return the lower end of the spectrum that the noise model fitted."""
    if noise.model == "mp" or noise.law is None:
        return below_bulk(spec, fit, beta)
    return below_bulk(noise.spectrum, noise.law, beta, n_components=int(noise.n_components))
