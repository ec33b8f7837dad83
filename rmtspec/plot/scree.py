"""Singular values by rank, with spikes and bulk distinguished."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import check_fit
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.plot import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_scree(
    spectrum: Spectrum, fit: BulkFit | None = None, *, ax: "Axes | None" = None
) -> "Axes":
    """Draw the singular values, largest first, on a logarithmic scale.

    Parameters
    ----------
    spectrum : Spectrum
        From `rmtspec.spectrum`.
    fit : BulkFit, optional
        From `rmtspec.bema`. Its threshold is drawn as a line at sqrt(n * threshold), and the spikes
        have another colour and marker.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `spectrum`, `fit` or `ax` is of the wrong type.
    InvalidValueError
        The fit is of another matrix size.

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
    ax = axes.axes_for(ax)
    values = spectrum.singular_values[::-1]
    ranks = np.arange(1, values.size + 1)
    shown = values > 0.0  # 0 has no logarithm
    cut = fit.n_spikes if fit is not None and fit.law is not None else 0
    for name, part, colour, marker in (
        ("spikes", ranks <= cut, axes.SPIKES, "D"),
        ("bulk" if cut else "singular values", ranks > cut, axes.THRESHOLD, "."),
    ):
        drawn = part & shown
        if drawn.any():
            style: dict[str, Any] = {"linestyle": "none", "marker": marker, "markersize": 4.0}
            label = f"{name} ({np.count_nonzero(drawn)})"
            ax.plot(ranks[drawn], values[drawn], color=colour, label=label, **style)
    if fit is not None and fit.law is not None:
        level = float(np.sqrt(spectrum.n * fit.threshold))
        ax.axhline(level, color=axes.EDGE, linestyle="-.", label=f"threshold {level:.4g}")
    notes = [f"no fit: {fit.reason}"] if fit is not None and fit.reason else []
    if not shown.all():
        notes.append(f"{axes.count(int((~shown).sum()), 'singular value')} of 0 not shown")
    axes.say(ax, "\n".join(notes))
    if shown.any():
        ax.set_yscale("log")
        if values[0] < 10.0 * values[shown][-1]:  # too few powers of ten to label
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
        ax.legend(loc="best", fontsize="small")
    ax.set(xlabel="rank, largest first", ylabel="singular value $s$")
    return ax
