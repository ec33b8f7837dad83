"""Singular values by rank, with spikes and bulk distinguished."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import FitTest, check_fit
from rmtspec.matrix.noise_fit import NoiseFit
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.plot import axes
from rmtspec.plot.judged import judged
from rmtspec.plot.legends import check_legend, put_legend
from rmtspec.plot.look import look_of
from rmtspec.plot.words import count, said_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_scree(
    spectrum: Spectrum,
    fit: BulkFit | None = None,
    *,
    test: FitTest | None = None,
    noise: NoiseFit | None = None,
    ax: "Axes | None" = None,
    legend: str | None = "inside",
) -> "Axes":
    """Draw the singular values, largest first, both axes logarithmic.

    Parameters
    ----------
    spectrum : Spectrum
        From `rmtspec.spectrum`.
    fit : BulkFit, optional
        From `rmtspec.bema`. Its threshold is drawn as a line at sqrt(n * threshold), and the spikes
        have another colour and marker.
    test, noise : FitTest, NoiseFit, optional
        Verdicts, written above the legend as `plot_esd` does; the default test of `fit` if None.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.
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
        The fit is of another matrix size, or `legend` is unknown.

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
    legend = check_legend(legend)
    test = judged(spectrum, fit, test, noise)
    ax = axes.axes_for(ax)
    look = look_of(ax)
    values = spectrum.singular_values[::-1]
    ranks = np.arange(1, values.size + 1)
    shown = values > 0.0  # 0 has no logarithm
    cut = fit.n_spikes if fit is not None and fit.law is not None else 0
    for name, part, colour, marker in (
        ("spikes", ranks <= cut, look.spikes, "D"),
        ("bulk" if cut else "singular values", ranks > cut, look.threshold, "."),
    ):
        drawn = part & shown
        if drawn.any():
            style: dict[str, Any] = {"linestyle": "none", "marker": marker, "markersize": 4.0}
            label = f"{name} ({np.count_nonzero(drawn)})"
            ax.plot(ranks[drawn], values[drawn], color=colour, label=label, **style)
    if fit is not None and fit.law is not None:
        level = float(np.sqrt(spectrum.n * fit.threshold))
        ax.axhline(level, color=look.soft, linestyle="-.", label=f"threshold {level:.4g}")
    if not shown.all():
        words = f"{count(int((~shown).sum()), 'singular value')} of 0 not shown"
        axes.remark(ax, look, words, (0.98, 0.9))
    if shown.any():
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        if values[0] < 10.0 * values[shown][-1]:  # too few powers of ten to label
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
    ax.set_xlabel("rank, largest first", color=look.ink)
    ax.set_ylabel("singular value $s$", color=look.ink)
    put_legend(ax, look, legend, said=said_of(fit, test, noise), loc="best")
    return ax
