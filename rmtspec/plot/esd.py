"""The eigenvalues of a matrix as a histogram (their ESD), with the law fitted to them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidTypeError
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import FitTest, check_fit
from rmtspec.matrix.noise_fit import NoiseFit
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.plot import axes
from rmtspec.plot.broken_axis import break_axis
from rmtspec.plot.judged import judged
from rmtspec.plot.legends import check_legend, headroom, is_small, put_legend, verdict_lines
from rmtspec.plot.look import Look, look_of
from rmtspec.plot.words import Said, count, said_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Of so few eigenvalues each is marked.
_FEW = 40


def plot_esd(
    spectrum: Spectrum,
    fit: BulkFit | MarchenkoPastur | None = None,
    *,
    test: FitTest | None = None,
    noise: NoiseFit | None = None,
    ax: "Axes | None" = None,
    bins: int | Sequence[float] | Float64Array | None = None,
    xlim: tuple[float, float] | None = None,
    legend: str | None = "inside",
) -> "Axes":
    """Draw the eigenvalues as a histogram, with the law fitted to them and the verdict on it.

    The bars are a density over all p eigenvalues, including those outside the view, so their height
    does not depend on the view. A fit that left out r spikes describes p - r eigenvalues; its
    density is multiplied by (p - r) / p. Where the fit is refused, the law is grey and dashed, and
    the legend says so. Each spike is a mark at the foot: those far beyond the bulk stand on a
    logarithmic continuation of the axis, which is shaded.

    Parameters
    ----------
    spectrum : Spectrum
        From `rmtspec.spectrum`.
    fit : BulkFit or MarchenkoPastur, optional
        Its density, edges and threshold are drawn. If it has no numbers ("no bulk"), its reason is
        added to the histogram.
    test : FitTest, optional
        From `rmtspec.fit_test`, whose default is used for a BulkFit if None.
    noise : NoiseFit, optional
        From `rmtspec.fit_noise`: its verdict and reason are written above that of the test.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.
    bins : int or array_like, optional
        Number of bars in the view, or their edges. The default is about 1.5 times the square root
        of the number of eigenvalues in view, from 10 to 100.
    xlim : (float, float), optional
        The view, linear; what lies outside is said in words. The default shows all spikes.
    legend : {"inside", "outside"} or None
        Where the legend is; the verdict is written into the picture even without one.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `spectrum`, `fit`, `test`, `noise` or `ax` is of the wrong type.
    InvalidValueError
        The fit is of another matrix size, there is fewer than one bar, the view is not two
        increasing numbers, or `legend` is unknown.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> spec = rmtspec.spectrum(rmtspec.ensembles.spiked(400, 300, [3, 20], rng=0))
    >>> ax = rmtspec.plot.plot_esd(spec, rmtspec.bema(spec), ax=Figure().subplots())
    >>> ax.get_legend().get_title().get_text()
    'fit accepted: p-value 0.978'
    >>> [text.get_text() for text in ax.get_legend().get_texts()][3]
    'spikes (2), the largest 404.5'
    """
    check_spectrum(spectrum, "spectrum", "analyze(W).plot()")
    if isinstance(fit, BulkFit):
        check_fit(spectrum, fit)
    elif fit is not None and not isinstance(fit, MarchenkoPastur):
        raise InvalidTypeError(
            f"`fit` is a {type(fit).__name__}; expected a BulkFit (from rmtspec.bema), a "
            "MarchenkoPastur, or None for the histogram alone."
        )
    legend = check_legend(legend)
    bulk = fit if isinstance(fit, BulkFit) else None
    test = judged(spectrum, bulk, test, noise)
    law = fit.law if isinstance(fit, BulkFit) else fit
    view = axes.default_view(spectrum, fit, law) if xlim is None else axes.limits(xlim)
    edges = axes.bin_edges(spectrum.eigenvalues, bins, *view)
    ax = axes.axes_for(ax)
    look, said = look_of(ax), said_of(bulk, test, noise)
    largest = float(spectrum.eigenvalues[-1])
    if xlim is None and largest > view[1]:
        break_axis(ax, look, view, largest=largest)
    else:
        ax.set_xlim(view)
    heights = np.histogram(spectrum.eigenvalues, edges)[0] / (spectrum.p * np.diff(edges))
    style: dict[str, Any] = {"color": look.bars, "edgecolor": look.paper, "linewidth": 0.4}
    name = f"eigenvalues (p = {spectrum.p})"
    ax.bar(edges[:-1], heights, np.diff(edges), align="edge", label=name, **style)
    if law is not None:
        share = 1.0 if bulk is None else (bulk.p - bulk.n_removed) / bulk.p
        variance = law.variance if bulk is None else bulk.variance
        refused = test is not None and not test.accepted
        _draw_law(ax, look, (law, share), variance=variance, refused=refused)
        # At ratio 1 the density has a pole at 0: its mean over each bar sets the height.
        heights = np.maximum(heights, share * np.diff(law.cdf(edges)) / np.diff(edges))
    _draw_spikes(ax, look, spectrum, fit=bulk, view=view)
    axes.remark(ax, look, _outside(ax, spectrum, bulk))
    ax.set_xlabel(axes.EIGENVALUE, color=look.ink)
    ax.set_ylabel("density", color=look.ink)
    _set_height(ax, edges, heights, said=said, legend=legend)
    put_legend(ax, look, legend, said=said, loc="upper right")
    return ax


def _draw_law(
    ax: "Axes",
    look: Look,
    scaled: tuple[MarchenkoPastur, float],
    *,
    variance: float,
    refused: bool,
) -> None:
    """Draw the density of a law times a share, and its edges."""
    law, share = scaled
    x = axes.bulk_grid(law)
    name = "Marchenko-Pastur" + ("" if is_small(ax) else f", variance {variance:.4g}")
    style: dict[str, Any] = {"color": look.law, "linestyle": "-", "label": name}
    if refused:
        dashed = {"linestyle": (0, (4, 2)), "label": f"{name}: refused"}
        style = {"color": look.refused, **dashed}
    ax.plot(x, share * law.pdf(x), linewidth=2.0, **style)
    edge: dict[str, Any] = {"color": look.soft, "linestyle": ":", "linewidth": 1.3}
    ax.axvline(law.lower_edge, **edge)
    name = f"edges {law.lower_edge:.4g} and {law.bulk_edge:.4g}"
    ax.axvline(law.bulk_edge, label="_edges" if is_small(ax) else name, **edge)


def _draw_spikes(
    ax: "Axes",
    look: Look,
    spectrum: Spectrum,
    *,
    fit: BulkFit | None,
    view: tuple[float, float],
) -> None:
    """Draw the threshold, and at the foot a mark for each spike, or for each of a few values."""
    foot: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 11.0}
    foot |= {"transform": ax.get_xaxis_transform(), "markeredgewidth": 1.3, "zorder": 3.0}
    values = spectrum.eigenvalues[spectrum.p - spectrum.numerical_rank :]
    spikes = values[:0]
    if fit is not None and fit.law is not None:
        dots: dict[str, Any] = {"color": look.threshold, "linestyle": "-.", "linewidth": 1.4}
        ax.axvline(fit.threshold, label=f"threshold {fit.threshold:.4g}", **dots)
        spikes = fit.spikes
    low, high = ax.get_xlim()
    rest = values[: values.size - spikes.size]
    if values.size > _FEW:
        rest = rest[rest > view[1]]
    rest = rest[(rest >= low) & (rest <= high)]
    if rest.size:
        name = f"eigenvalues beyond the bars ({rest.size})"
        name = "_each" if rest[-1] <= view[1] else name
        ax.plot(rest, np.full(rest.size, 0.03), color=look.soft, label=name, **foot)
    shown = spikes[(spikes >= low) & (spikes <= high)]
    if shown.size:
        name = f"spikes ({spikes.size}), the largest {spikes[-1]:.4g}"
        if shown.size < spikes.size:
            name = f"spikes in view ({shown.size} of {spikes.size})"
        ax.plot(shown, np.full(shown.size, 0.03), color=look.spikes, label=name, **foot)


def _outside(ax: "Axes", spectrum: Spectrum, fit: BulkFit | None) -> str:
    """Describe the eigenvalues outside the view."""
    low, high = ax.get_xlim()
    values, lines = spectrum.eigenvalues, []
    above = int(np.count_nonzero(values > high))
    below = int(np.count_nonzero(values < low))
    if above:
        what = count(above, "eigenvalue")
        if fit is not None and fit.law is not None and np.sum(fit.spikes > high) == above:
            what = f"{above} of {count(fit.spikes.size, 'spike')}"
        lines.append(f"{what} beyond {high:.3g},\nthe largest at {values[-1]:.3g}")
    if below:
        lines.append(f"{count(below, 'eigenvalue')} below {low:.3g}")
    return "\n".join(lines)


def _set_height(
    ax: "Axes", edges: Float64Array, heights: Float64Array, *, said: Said, legend: str | None
) -> None:
    """Set the scale of the densities so that they stay below the words at the upper right."""
    names = ax.get_legend_handles_labels()[1] if legend == "inside" else []
    lines = verdict_lines(ax, said, legend) if legend != "outside" else []
    longest = max(map(len, [*names, *lines]), default=0)
    width, height = headroom(ax, len(names) + len(lines), characters=longest)
    place = ax.xaxis.get_transform().transform
    low, high = place(np.array(ax.get_xlim()))
    right = (place(edges[1:]) - low) / (high - low) > 1.0 - width
    top, beside = float(heights.max()), float(heights[right].max(initial=0.0))
    most = max(1.08 * top, min(beside / (0.97 - height), 3.0 * top))
    ax.set_ylim(0.0, most if top > 0.0 else 1.0)
