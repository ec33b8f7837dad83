"""An estimated spectrum as a histogram with its errors, and the law of its noise."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec import _checks
from rmtspec.errors import InvalidTypeError
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate
from rmtspec.plot import axes
from rmtspec.plot.broken_axis import break_axis, is_far
from rmtspec.plot.legends import check_legend, is_small, put_legend
from rmtspec.plot.look import Look, look_of
from rmtspec.plot.words import Said

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Residual of a value of the bulk, in units of it, up to which its rank is about right.
_SURE = 0.05
#: Bars over the bulk; a probe of 50 steps resolves no more.
_BARS = 40


def plot_estimate(
    estimate: SpectrumEstimate,
    *,
    kind: str = "esd",
    ax: "Axes | None" = None,
    legend: str | None = "inside",
) -> "Axes":
    """Draw an estimated spectrum: its density with errors, the law of its noise, the spikes.

    The bars are a density over all p eigenvalues, each with a line of one standard error up and
    down. The law is that of the estimated variance, for the eigenvalues below the threshold; its
    upper edge is a band two standard errors wide on each side. Nothing was tested, and the legend
    says so.

    Parameters
    ----------
    estimate : SpectrumEstimate
        From `rmtspec.estimate_spectrum`, or of `Report.estimates`.
    kind : {"esd", "cdf", "scree"}
        The density; the share of all eigenvalues at or below each point, with a band of two
        standard errors, and the law of the bulk; or the largest singular values by rank, each with
        its residual, and the threshold.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.
    legend : {"inside", "outside"} or None
        Where the legend is; that this is an estimate is written into the picture even without one.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `estimate` or `ax` is of the wrong type.
    InvalidValueError
        `kind` or `legend` is unknown.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> W = rmtspec.ensembles.spiked(900, 600, [3, 20], rng=0)
    >>> found = rmtspec.estimate_spectrum(W, beta=0.01)
    >>> ax = rmtspec.plot.plot_estimate(found, ax=Figure().subplots())
    >>> ax.get_legend().get_title().get_text()
    'an estimate: nothing was tested'
    """
    if not isinstance(estimate, SpectrumEstimate):
        raise InvalidTypeError(
            f"`estimate` is a {type(estimate).__name__}; expected a SpectrumEstimate. Make one "
            "with rmtspec.estimate_spectrum(W); for a Spectrum call rmtspec.plot.plot_esd."
        )
    legend, kind = check_legend(legend), _checks.choice(kind, "kind", tuple(_KINDS))
    ax = axes.axes_for(ax)
    look = look_of(ax)
    place = _KINDS[kind](ax, look, estimate)
    put_legend(
        ax, look, legend, said=Said(("an estimate: nothing was tested",), "unsure"), loc=place
    )
    return ax


def _density(ax: "Axes", look: Look, estimate: SpectrumEstimate) -> str:
    """Draw the histogram, its law and the spikes; return where the legend is to be."""
    small, law = is_small(ax), estimate.law
    edge, threshold = law.bulk_edge, estimate.threshold
    start = law.lower_edge - 0.25 * (edge - law.lower_edge) if axes.far_from_zero(law) else 0.0
    end, largest = threshold + 0.25 * (threshold - start), float(estimate.largest[0])
    if largest > end and not is_far(start, end, largest):
        end = largest + 0.03 * (largest - start)
    if largest > end:
        break_axis(ax, look, (start, end), largest=largest)
    else:
        ax.set_xlim(start, end)
    edges = np.linspace(start, end, _BARS + 1)
    heights, errors = estimate.density(edges)
    bars: dict[str, Any] = {"color": look.bars, "edgecolor": look.paper, "linewidth": 0.4}
    name = "estimated density" + ("" if small else f" (p = {estimate.p})")
    error = {"ecolor": look.soft, "elinewidth": 1.0}
    ax.bar(edges[:-1], heights, np.diff(edges), yerr=errors, align="edge", label=name,
           error_kw=error, **bars)  # fmt: skip
    x, share = axes.bulk_grid(law), (estimate.p - estimate.n_spikes) / estimate.p
    name = "Marchenko-Pastur" + ("" if small else f", variance {estimate.variance:.4g}")
    ax.plot(x, share * law.pdf(x), color=look.law, linewidth=2.0, label=name)
    _draw_edge(ax, look, estimate)
    ax.axvline(threshold, label=f"threshold {threshold:.4g}", **_dots(look))
    spikes = estimate.spikes
    if spikes.size:
        foot: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 11.0}
        foot |= {"transform": ax.get_xaxis_transform(), "markeredgewidth": 1.3, "zorder": 3.0}
        span = f"{estimate.n_spikes_low} to {estimate.n_spikes_high}"
        name = f"spikes ({spikes.size})" if small else f"spikes ({spikes.size}, from {span})"
        ax.plot(spikes, np.full(spikes.size, 0.03), color=look.spikes, label=name, **foot)
    tops = np.maximum(heights + errors, share * np.diff(law.cdf(edges)) / np.diff(edges))
    ax.set_ylim(0.0, 1.3 * float(tops.max()))
    ax.set_xlabel(axes.EIGENVALUE, color=look.ink)
    ax.set_ylabel("density", color=look.ink)
    return "upper right"


def _distribution(ax: "Axes", look: Look, estimate: SpectrumEstimate) -> str:
    """Draw the shares of all eigenvalues at or below each point, with the law of the bulk."""
    small, law = is_small(ax), estimate.law
    span = law.bulk_edge - law.lower_edge
    start = law.lower_edge - 0.1 * span if axes.far_from_zero(law) else 0.0
    x = np.linspace(start, law.bulk_edge + 0.25 * span, 400)
    share, error = estimate.cdf(x), 2.0 * estimate.cdf_error(x)
    _draw_edge(ax, look, estimate)
    points = np.concatenate([[start], axes.bulk_grid(law), [x[-1]]])
    bulk = (estimate.p - estimate.n_spikes) / estimate.p
    ax.plot(points, bulk * law.cdf(points), color=look.law, linewidth=2.0, label="Marchenko-Pastur")
    band: dict[str, Any] = {"color": look.soft, "alpha": 0.3, "linewidth": 0.0}
    name = "two standard errors" if small else "two standard errors on each side"
    ax.fill_between(x, share - error, np.minimum(share + error, 1.0), label=name, **band)
    style: dict[str, Any] = {"color": look.threshold, "linestyle": (0, (1.5, 1)), "linewidth": 1.5}
    name = "estimated share" + ("" if small else f" (of {estimate.p})")
    ax.plot(x, share, label=name, **style)
    ax.set_xlim(start, x[-1])
    ax.set_ylim(0.0, 1.02)
    ax.set_xlabel(axes.EIGENVALUE, color=look.ink)
    words = "share of eigenvalues" if small else "share of eigenvalues at or below"
    ax.set_ylabel(words, color=look.ink)
    return "lower right"


def _scree(ax: "Axes", look: Look, estimate: SpectrumEstimate) -> str:
    """Draw the largest singular values found by rank; no others are known one by one."""
    largest, n, cut = estimate.largest, estimate.n, estimate.n_spikes
    values, ranks = np.sqrt(n * largest), np.arange(1, largest.size + 1)
    ends = np.sqrt(
        n * np.maximum(largest[:, None] + estimate.residuals[:, None] * [-1.0, 1.0], 0.0)
    )
    style: dict[str, Any] = {"linestyle": "none", "markersize": 4.0, "elinewidth": 1.0}
    for name, part, colour, marker in (
        ("spikes", ranks <= cut, look.spikes, "D"),
        ("largest of the bulk" if cut else "largest found", ranks > cut, look.threshold, "."),
    ):
        drawn = part & ((ranks <= cut) | (estimate.residuals < _SURE * largest))
        if drawn.any():
            error = np.abs(ends[drawn].T - values[drawn])
            found = str(np.count_nonzero(drawn))
            label = f"{name} ({found})" if cut <= largest.size else f"{name} ({found} of {cut})"
            ax.errorbar(ranks[drawn], values[drawn], error, color=colour, marker=marker,
                        label=label, ecolor=look.soft, **style)  # fmt: skip
    level = float(np.sqrt(n * estimate.threshold))
    ax.axhline(level, label=f"threshold {level:.4g}", **_dots(look))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    if values[0] < 10.0 * min(level, values[-1]):  # too few powers of ten to label
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
    ax.set_xlabel("rank, largest first", color=look.ink)
    ax.set_ylabel("singular value $s$", color=look.ink)
    return "best"


def _draw_edge(ax: "Axes", look: Look, estimate: SpectrumEstimate) -> None:
    """Draw the upper edge of the bulk as a band of two standard errors on each side."""
    edge, wide = estimate.law.bulk_edge, 2.0 * estimate.bulk_edge_error
    name = "edge" if is_small(ax) else f"edge {edge:.4g} ± {estimate.bulk_edge_error:.2g}"
    ax.axvspan(edge - wide, edge + wide, color=look.law, alpha=0.18, linewidth=0.0, label=name)


def _dots(look: Look) -> dict[str, Any]:
    return {"color": look.threshold, "linestyle": "-.", "linewidth": 1.4}


_KINDS: dict[str, Any] = {"esd": _density, "cdf": _distribution, "scree": _scree}
