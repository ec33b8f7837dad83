"""Plots of one matrix: its spectrum with the fitted law, the two cdfs, the singular values.

matplotlib is imported inside the functions, so importing this module costs nothing. The functions
draw and return the Axes: they never show, save or change a style.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec._drawing import (
    axes_for,
    bin_edges,
    bulk_grid,
    count,
    default_view,
    far_from_zero,
    limits,
    say,
)
from rmtspec.errors import InvalidTypeError
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import FitTest, check_fit
from rmtspec.matrix.spectrum import Spectrum, check_spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Lines differ in dash as well as in colour; the colours are Paul Tol's "vibrant" set.
_BARS = "#b8c9d9"
_LAW = "#cc3311"
_EDGE = "#333333"
_THRESHOLD = "#0077bb"
_SPIKES = "#aa3377"
_EIGENVALUE = "eigenvalue $s^2 / n$"


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
        color=_BARS,
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
        ax.plot(x, share * law.pdf(x), color=_LAW, linewidth=2.0, label=name)
        # At ratio 1 the density has a pole at 0: its mean over each bar sets the height.
        top = max(top, share * float((np.diff(law.cdf(edges)) / np.diff(edges)).max()))
        _mark(ax, law.lower_edge, "lower edge", _EDGE, ":")
        _mark(ax, law.bulk_edge, "bulk edge", _EDGE, "--")
    spikes = None
    if isinstance(fit, BulkFit) and fit.law is not None:
        _mark(ax, fit.threshold, "threshold", _THRESHOLD, "-.")
        spikes = fit.spikes
        _spike_ticks(ax, spikes[(spikes >= low) & (spikes <= high)])
    say(ax, _beyond(spectrum, spikes, low, high, fit))
    ax.set_xlim(low, high)
    # A bulk far from 0 fills the view: more room above it for the legend.
    room = 1.6 if law is not None and far_from_zero(law) else 1.25
    ax.set_ylim(0.0, room * top if top > 0.0 else 1.0)
    ax.set_xlabel(_EIGENVALUE)
    ax.set_ylabel("density")
    ax.legend(loc="upper right", fontsize="small", framealpha=0.95)
    return ax


def plot_cdf_fit(
    spectrum: Spectrum, fit: BulkFit, *, test: FitTest | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw what the fit test compares: the empirical distribution of the bulk and the fitted law's.

    The empirical one belongs to the lowest p - r eigenvalues (r removed by the fit) and stands at
    the midpoints (k - 1/2) / (p - r). The ranks that are compared are shaded.

    Parameters
    ----------
    spectrum : Spectrum
        From `rmtspec.spectrum`.
    fit : BulkFit
        From `rmtspec.bema`. Without numbers ("no bulk") only the empirical distribution is drawn,
        with the reason.
    test : FitTest, optional
        From `rmtspec.fit_test`; its statistic, p-value and verdict head the legend.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `spectrum`, `fit`, `test` or `ax` of another type.
    InvalidValueError
        A fit of another matrix size.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> spec = rmtspec.spectrum(rmtspec.ensembles.wishart(300, 200, rng=0))
    >>> ax = rmtspec.plot.plot_cdf_fit(spec, rmtspec.bema(spec), ax=Figure().subplots())
    >>> ax.get_ylabel()
    'share of the bulk at or below'
    """
    check_spectrum(spectrum, "spectrum", "analyze(W).plot()")
    check_fit(spectrum, fit)
    if test is not None and not isinstance(test, FitTest):
        raise InvalidTypeError(
            f"`test` is a {type(test).__name__}; expected a FitTest (from rmtspec.fit_test) "
            "or None."
        )
    ax = axes_for(ax)
    size = spectrum.p - fit.n_removed
    values = spectrum.eigenvalues[:size]
    shares = (np.arange(1, size + 1) - 0.5) / size
    law = fit.law
    if law is None:
        say(ax, f"no fit: {fit.reason}")
    else:
        window = fit.window
        compared = window.of(values)
        gaps = np.abs(shares[window.first - 1 : window.last] - law.cdf(compared))
        k = int(np.argmax(gaps))
        ax.axvspan(
            compared[0],
            compared[-1],
            color="#eeeeee",
            label=f"compared: ranks {window.first} to {window.last} of {size}",
        )
        x = np.concatenate([[0.0], bulk_grid(law), [1.25 * law.bulk_edge]])
        ax.plot(x, law.cdf(x), color=_LAW, linewidth=2.0, label="Marchenko-Pastur")
    name = f"eigenvalues (lowest {size} of {spectrum.p})"
    ax.step(
        values, shares, where="mid", color=_THRESHOLD, linestyle="--", linewidth=1.3, label=name
    )
    if law is not None:
        x0, ends = compared[k], (shares[window.first - 1 + k], float(law.cdf(compared[k])))
        name = f"largest gap {gaps[k]:.4g}, at {x0:.4g}"
        ax.plot([x0, x0], ends, color="black", linewidth=1.5, marker="_", label=name)
        arrow = {"arrowstyle": "->", "color": "black"}
        where = (x0 + 0.06 * law.bulk_edge, ends[1] - 0.12)
        ax.annotate("largest gap", (x0, ends[1]), where, arrowprops=arrow, fontsize="small")
        span = law.bulk_edge - law.lower_edge
        start = law.lower_edge - 0.1 * span if far_from_zero(law) else 0.0
        ax.set_xlim(start, law.bulk_edge + 0.1 * span)
    ax.set_ylim(0.0, 1.02)
    ax.set_xlabel(_EIGENVALUE)
    ax.set_ylabel("share of the bulk at or below")
    ax.legend(loc="lower right", fontsize="small", title=_verdict(test), title_fontsize="small")
    return ax


def plot_scree(
    spectrum: Spectrum, fit: BulkFit | None = None, *, ax: "Axes | None" = None
) -> "Axes":
    """Draw the singular values, largest first, on a logarithmic scale.

    Parameters
    ----------
    spectrum : Spectrum
        From `rmtspec.spectrum`.
    fit : BulkFit, optional
        From `rmtspec.bema`: its threshold becomes a line, sqrt(n * threshold), and the spikes get
        another colour and marker.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `spectrum`, `fit` or `ax` of another type.
    InvalidValueError
        A fit of another matrix size.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> spec = rmtspec.spectrum(rmtspec.ensembles.spiked(400, 300, [3, 20], rng=0))
    >>> ax = rmtspec.plot.plot_scree(spec, rmtspec.bema(spec), ax=Figure().subplots())
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['spikes (2)', 'bulk (298)', 'threshold 37.35']
    """
    check_spectrum(spectrum, "spectrum", "analyze(W).plot()")
    if fit is not None:
        check_fit(spectrum, fit)
    ax = axes_for(ax)
    values = spectrum.singular_values[::-1]
    ranks = np.arange(1, values.size + 1)
    shown = values > 0.0  # a logarithm has no place for 0
    cut = fit.n_spikes if fit is not None and fit.law is not None else 0
    for name, part, colour, marker, size in (
        ("spikes", ranks <= cut, _SPIKES, "D", 4.0),
        ("bulk" if cut else "singular values", ranks > cut, _THRESHOLD, ".", 4.0),
    ):
        drawn = part & shown
        if drawn.any():
            ax.plot(
                ranks[drawn],
                values[drawn],
                linestyle="none",
                marker=marker,
                markersize=size,
                color=colour,
                label=f"{name} ({np.count_nonzero(drawn)})",
            )
    if fit is not None and fit.law is not None:
        level = float(np.sqrt(spectrum.n * fit.threshold))
        ax.axhline(level, color=_EDGE, linestyle="-.", label=f"threshold {level:.4g}")
    notes = [f"no fit: {fit.reason}"] if fit is not None and fit.reason else []
    if not shown.all():
        notes.append(f"{count(int((~shown).sum()), 'singular value')} of 0 not shown")
    say(ax, "\n".join(notes))
    if shown.any():
        ax.set_yscale("log")
        if values[0] < 10.0 * values[shown][-1]:  # too few powers of ten for tick labels
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
        ax.legend(loc="best", fontsize="small")
    ax.set_xlabel("rank, largest first")
    ax.set_ylabel("singular value $s$")
    return ax


def _mark(ax: "Axes", x: float, name: str, colour: str, dash: str) -> None:
    ax.axvline(x, color=colour, linestyle=dash, linewidth=1.3, label=f"{name} {x:.4g}")


def _spike_ticks(ax: "Axes", spikes: Float64Array) -> None:
    if not spikes.size:
        return
    ax.plot(
        spikes,
        np.full(spikes.size, 0.025),
        linestyle="none",
        marker="v",
        markersize=6.0,
        color=_SPIKES,
        transform=ax.get_xaxis_transform(),
        clip_on=False,
        label=f"spikes in view ({spikes.size})",
    )


def _beyond(
    spectrum: Spectrum,
    spikes: Float64Array | None,
    low: float,
    high: float,
    fit: BulkFit | MarchenkoPastur | None,
) -> str:
    """Say in words what the view leaves out, and why there is no law where there is none."""
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


def _verdict(test: FitTest | None) -> str | None:
    if test is None:
        return None
    if test.reason:
        return f"no test: {test.reason}"
    verdict = "accepted" if test.accepted else "rejected"
    return f"statistic {test.statistic:.4g}, p-value {test.pvalue:.3g}: {verdict}"
