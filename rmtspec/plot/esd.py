"""Plots of one matrix: its spectrum with the fitted law, the two cdfs, the singular values.

matplotlib is imported inside the functions, so importing this module costs nothing. The functions
draw and return the Axes: they never show, save or change a style.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidTypeError
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import check_fit
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.plot.axes import (
    BARS,
    EDGE,
    EIGENVALUE,
    LAW,
    SPIKES,
    THRESHOLD,
    axes_for,
    bin_edges,
    bulk_grid,
    count,
    default_view,
    far_from_zero,
    limits,
    say,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_esd(
    spectrum: Spectrum,
    fit: BulkFit | MarchenkoPastur | None = None,
    *,
    ax: "Axes | None" = None,
    bins: int | Sequence[float] | Float64Array | None = None,
    xlim: tuple[float, float] | None = None,
) -> "Axes":
    """Draw the eigenvalues as a histogram, with the law fitted to them.

    The bars are a density over all p eigenvalues, those outside the view included, so they keep
    their height when the view changes. A fit that left out r spikes describes p - r eigenvalues;
    its density is drawn times (p - r) / p.

    Parameters
    ----------
    spectrum : Spectrum
        From `rmtspec.spectrum`.
    fit : BulkFit or MarchenkoPastur, optional
        Its density, edges and threshold are drawn. A fit without numbers ("no bulk") adds its
        reason to the histogram.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.
    bins : int or array_like, optional
        Number of bars over the view, or their edges. Default: about 1.5 times the square root of
        the number of eigenvalues in view, from 10 to 100.
    xlim : (float, float), optional
        The view. Default: with a fit, from 0 (or a little below a bulk that lies far from 0) to a
        little beyond the threshold; without, all of the data.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `spectrum`, `fit` or `ax` of another type.
    InvalidValueError
        A fit of another matrix size, fewer than one bar, or a view that is not two increasing
        numbers.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> spec = rmtspec.spectrum(rmtspec.ensembles.spiked(400, 300, [3, 20], rng=0))
    >>> ax = rmtspec.plot.plot_esd(spec, rmtspec.bema(spec), ax=Figure().subplots())
    >>> ax.texts[0].get_text().splitlines()
    ['2 of 2 spikes beyond 4.36,', 'the largest at 404']
    """
    check_spectrum(spectrum, "spectrum", "analyze(W).plot()")
    if isinstance(fit, BulkFit):
        check_fit(spectrum, fit)
    elif fit is not None and not isinstance(fit, MarchenkoPastur):
        raise InvalidTypeError(
            f"`fit` is a {type(fit).__name__}; expected a BulkFit (from rmtspec.bema), a "
            "MarchenkoPastur, or None for the histogram alone."
        )
    law = fit.law if isinstance(fit, BulkFit) else fit
    low, high = default_view(spectrum, fit, law) if xlim is None else limits(xlim)
    edges = bin_edges(spectrum.eigenvalues, bins, low, high)
    ax = axes_for(ax)
    counts = np.histogram(spectrum.eigenvalues, edges)[0]
    heights = counts / (spectrum.p * np.diff(edges))
    ax.bar(
        edges[:-1],
        heights,
        np.diff(edges),
        align="edge",
        color=BARS,
        edgecolor="white",
        linewidth=0.4,
        label=f"eigenvalues (p = {spectrum.p})",
    )
    top = float(heights.max())
    if law is not None:
        share = (fit.p - fit.n_removed) / fit.p if isinstance(fit, BulkFit) else 1.0
        variance = fit.variance if isinstance(fit, BulkFit) else law.variance
        x = bulk_grid(law)
        name = f"Marchenko-Pastur, variance {variance:.4g}"
        ax.plot(x, share * law.pdf(x), color=LAW, linewidth=2.0, label=name)
        # At ratio 1 the density has a pole at 0: its mean over each bar sets the height.
        top = max(top, share * float((np.diff(law.cdf(edges)) / np.diff(edges)).max()))
        _mark(ax, law.lower_edge, "lower edge", color=EDGE, linestyle=":")
        _mark(ax, law.bulk_edge, "bulk edge", color=EDGE, linestyle="--")
    spikes = None
    if isinstance(fit, BulkFit) and fit.law is not None:
        _mark(ax, fit.threshold, "threshold", color=THRESHOLD, linestyle="-.")
        spikes = fit.spikes
        _spike_ticks(ax, spikes[(spikes >= low) & (spikes <= high)])
    say(ax, _beyond(spectrum, spikes, (low, high), fit))
    ax.set_xlim(low, high)
    # A bulk far from 0 fills the view: more room above it for the legend.
    room = 1.6 if law is not None and far_from_zero(law) else 1.25
    ax.set_ylim(0.0, room * top if top > 0.0 else 1.0)
    ax.set_xlabel(EIGENVALUE)
    ax.set_ylabel("density")
    ax.legend(loc="upper right", fontsize="small", framealpha=0.95)
    return ax


def _mark(ax: "Axes", x: float, name: str, **style: Any) -> None:
    ax.axvline(x, linewidth=1.3, label=f"{name} {x:.4g}", **style)


def _spike_ticks(ax: "Axes", spikes: Float64Array) -> None:
    if not spikes.size:
        return
    ax.plot(
        spikes,
        np.full(spikes.size, 0.025),
        linestyle="none",
        marker="v",
        markersize=6.0,
        color=SPIKES,
        transform=ax.get_xaxis_transform(),
        clip_on=False,
        label=f"spikes in view ({spikes.size})",
    )


def _beyond(
    spectrum: Spectrum,
    spikes: Float64Array | None,
    view: tuple[float, float],
    fit: BulkFit | MarchenkoPastur | None,
) -> str:
    """Say in words what the view leaves out, and why there is no law where there is none."""
    low, high = view
    lines = []
    if isinstance(fit, BulkFit) and fit.reason:
        lines.append(f"no fit: {fit.reason}")
    above = int(np.count_nonzero(spectrum.eigenvalues > high))
    below = int(np.count_nonzero(spectrum.eigenvalues < low))
    if above:
        what = count(above, "eigenvalue")
        if spikes is not None and np.count_nonzero(spikes > high) == above:
            what = f"{above} of {count(spikes.size, 'spike')}"
        largest = f"{spectrum.eigenvalues[-1]:.3g}"
        lines.append(f"{what} beyond {high:.3g},\nthe largest at {largest}")
    if below:
        lines.append(f"{count(below, 'eigenvalue')} below {low:.3g}")
    return "\n".join(lines)
