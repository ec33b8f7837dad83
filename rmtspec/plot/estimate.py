"""An estimated spectrum as a histogram with its errors, and the law of its noise."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec.errors import InvalidTypeError
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate
from rmtspec.plot import axes
from rmtspec.plot.broken_axis import break_axis, is_far
from rmtspec.plot.legends import check_legend, is_small, put_legend
from rmtspec.plot.look import look_of
from rmtspec.plot.words import Said

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Bars over the bulk; a probe of 50 steps resolves no more.
_BARS = 40


def plot_estimate(
    estimate: SpectrumEstimate, *, ax: "Axes | None" = None, legend: str | None = "inside"
) -> "Axes":
    """Draw an estimated spectrum: its density with errors, the law of its noise, the spikes.

    The bars are a density over all p eigenvalues, each with a line of one standard error up and
    down. The law is that of the estimated variance, for the eigenvalues below the threshold; its
    upper edge is a band two standard errors wide on each side. Nothing was tested, and the legend
    says so.

    Parameters
    ----------
    estimate : SpectrumEstimate
        From `rmtspec.estimate_spectrum`.
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
        `legend` is unknown.

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
    legend = check_legend(legend)
    ax = axes.axes_for(ax)
    look, small, law = look_of(ax), is_small(ax), estimate.law
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
    wide = 2.0 * estimate.bulk_edge_error
    name = "edge" if small else f"edge {edge:.4g} ± {estimate.bulk_edge_error:.2g}"
    ax.axvspan(edge - wide, edge + wide, color=look.law, alpha=0.18, linewidth=0.0, label=name)
    dots: dict[str, Any] = {"color": look.threshold, "linestyle": "-.", "linewidth": 1.4}
    ax.axvline(threshold, label=f"threshold {threshold:.4g}", **dots)
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
    said = Said(("an estimate: nothing was tested",), "unsure")
    put_legend(ax, look, legend, said=said, loc="upper right")
    return ax
