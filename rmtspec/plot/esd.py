"""The eigenvalues of a matrix as a histogram (their ESD), with the law fitted to them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidTypeError
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import check_fit
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.plot import axes

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

    The bars are a density over all p eigenvalues, including those outside the view, so their height
    does not depend on the view. A fit that left out r spikes describes p - r eigenvalues; its
    density is multiplied by (p - r) / p.

    Parameters
    ----------
    spectrum : Spectrum
        From `rmtspec.spectrum`.
    fit : BulkFit or MarchenkoPastur, optional
        Its density, edges and threshold are drawn. If it has no numbers ("no bulk"), its reason is
        added to the histogram.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.
    bins : int or array_like, optional
        Number of bars in the view, or their edges. The default is about 1.5 times the square root
        of the number of eigenvalues in view, from 10 to 100.
    xlim : (float, float), optional
        The view. The default with a fit is from 0 (or just below a bulk that lies far from 0) to
        just beyond the threshold; without a fit, all the data.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `spectrum`, `fit` or `ax` is of the wrong type.
    InvalidValueError
        The fit is of another matrix size, there is fewer than one bar, or the view is not two
        increasing numbers.

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
    low, high = axes.default_view(spectrum, fit, law) if xlim is None else axes.limits(xlim)
    edges = axes.bin_edges(spectrum.eigenvalues, bins, low, high)
    ax = axes.axes_for(ax)
    counts = np.histogram(spectrum.eigenvalues, edges)[0]
    heights = counts / (spectrum.p * np.diff(edges))
    style: dict[str, Any] = {"color": axes.BARS, "edgecolor": "white", "linewidth": 0.4}
    name = f"eigenvalues (p = {spectrum.p})"
    ax.bar(edges[:-1], heights, np.diff(edges), align="edge", label=name, **style)
    top = float(heights.max())
    if law is not None:
        share = (fit.p - fit.n_removed) / fit.p if isinstance(fit, BulkFit) else 1.0
        variance = fit.variance if isinstance(fit, BulkFit) else law.variance
        x = axes.bulk_grid(law)
        name = f"Marchenko-Pastur, variance {variance:.4g}"
        ax.plot(x, share * law.pdf(x), color=axes.LAW, linewidth=2.0, label=name)
        # At ratio 1 the density has a pole at 0: its mean over each bar sets the height.
        top = max(top, share * float((np.diff(law.cdf(edges)) / np.diff(edges)).max()))
        _mark(ax, law.lower_edge, "lower edge", color=axes.EDGE, linestyle=":")
        _mark(ax, law.bulk_edge, "bulk edge", color=axes.EDGE, linestyle="--")
    spikes = None
    if isinstance(fit, BulkFit) and fit.law is not None:
        _mark(ax, fit.threshold, "threshold", color=axes.THRESHOLD, linestyle="-.")
        spikes = fit.spikes
        in_view = spikes[(spikes >= low) & (spikes <= high)]
        if in_view.size:
            style = {"linestyle": "none", "marker": "v", "markersize": 6.0, "color": axes.SPIKES}
            style |= {"transform": ax.get_xaxis_transform(), "clip_on": False}
            name = f"spikes in view ({in_view.size})"
            ax.plot(in_view, np.full(in_view.size, 0.025), label=name, **style)
    axes.say(ax, _beyond(spectrum, spikes, (low, high), fit))
    # A bulk far from 0 fills the view and leaves no room for the legend beside it.
    room = 1.6 if law is not None and axes.far_from_zero(law) else 1.25
    ax.set(xlim=(low, high), ylim=(0.0, room * top if top > 0.0 else 1.0))
    ax.set(xlabel=axes.EIGENVALUE, ylabel="density")
    ax.legend(loc="upper right", fontsize="small", framealpha=0.95)
    return ax


def _mark(ax: "Axes", x: float, name: str, **style: Any) -> None:
    ax.axvline(x, linewidth=1.3, label=f"{name} {x:.4g}", **style)


def _beyond(
    spectrum: Spectrum,
    spikes: Float64Array | None,
    view: tuple[float, float],
    fit: BulkFit | MarchenkoPastur | None,
) -> str:
    """Describe the eigenvalues outside the view, and say why there is no law if there is none."""
    low, high = view
    lines = []
    if isinstance(fit, BulkFit) and fit.reason:
        lines.append(f"no fit: {fit.reason}")
    above = int(np.count_nonzero(spectrum.eigenvalues > high))
    below = int(np.count_nonzero(spectrum.eigenvalues < low))
    if above:
        outside = axes.count(above, "eigenvalue")
        if spikes is not None and np.count_nonzero(spikes > high) == above:
            outside = f"{above} of {axes.count(spikes.size, 'spike')}"
        lines.append(f"{outside} beyond {high:.3g},\nthe largest at {spectrum.eigenvalues[-1]:.3g}")
    if below:
        lines.append(f"{axes.count(below, 'eigenvalue')} below {low:.3g}")
    return "\n".join(lines)
