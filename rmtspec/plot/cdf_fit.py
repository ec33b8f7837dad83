"""Distribution functions of the eigenvalues and of the fitted law, with the largest gap marked."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import FitTest, check_fit
from rmtspec.matrix.noise_fit import NoiseFit
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.plot import axes
from rmtspec.plot.judged import judged
from rmtspec.plot.legends import check_legend, font_size, is_small, put_legend
from rmtspec.plot.look import Look, look_of
from rmtspec.plot.words import said_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_cdf_fit(
    spectrum: Spectrum,
    fit: BulkFit,
    *,
    test: FitTest | None = None,
    noise: NoiseFit | None = None,
    ax: "Axes | None" = None,
    legend: str | None = "inside",
) -> "Axes":
    """Draw the distribution functions that the fit test compares, of the bulk and the fitted law.

    That of the bulk is taken at the midpoints (k - 1/2) / (p - r) of the lowest p - r eigenvalues,
    where r is the number removed by the fit. The ranks compared are shaded.

    Parameters
    ----------
    spectrum : Spectrum
        From `rmtspec.spectrum`.
    fit : BulkFit
        From `rmtspec.bema`. If it has no numbers ("no bulk"), only the empirical distribution is
        drawn, with the reason.
    test : FitTest, optional
        From `rmtspec.fit_test`, whose default is used if None; its p-value and verdict become the
        title of the legend, and the law of a refused fit is grey and dashed.
    noise : NoiseFit, optional
        From `rmtspec.fit_noise`: its verdict and reason are written above that of the test.
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
    >>> spec = rmtspec.spectrum(rmtspec.ensembles.wishart(300, 200, rng=0))
    >>> ax = rmtspec.plot.plot_cdf_fit(spec, rmtspec.bema(spec), ax=Figure().subplots())
    >>> ax.get_ylabel()
    'share of the bulk at or below'
    """
    check_spectrum(spectrum, "spectrum", "analyze(W).plot()")
    check_fit(spectrum, fit)
    legend = check_legend(legend)
    test = judged(spectrum, fit, test, noise)
    ax = axes.axes_for(ax)
    look, small = look_of(ax), is_small(ax)
    size = spectrum.p - fit.n_removed
    values = spectrum.eigenvalues[:size]
    shares = (np.arange(1, size + 1) - 0.5) / size
    law = fit.law
    if law is not None:
        compared = fit.window.of(values)
        name = f"compared: ranks {fit.window.first} to {fit.window.last} of {size}"
        name = "compared" if small else name
        ax.axvspan(compared[0], compared[-1], color=look.soft, alpha=0.13, lw=0.0, label=name)
        style: dict[str, Any] = {"color": look.law, "label": "Marchenko-Pastur"}
        if test is not None and not test.accepted:
            dashed = {"linestyle": (0, (4, 2)), "label": "Marchenko-Pastur: refused"}
            style = {"color": look.refused, **dashed}
        x = np.concatenate([[0.0], axes.bulk_grid(law), [1.25 * law.bulk_edge]])
        ax.plot(x, law.cdf(x), linewidth=2.0, **style)
    name = "eigenvalues" + ("" if small else f" (lowest {size} of {spectrum.p})")
    style = {"color": look.threshold, "linestyle": (0, (1.5, 1)), "linewidth": 1.5}
    ax.step(values, shares, where="mid", label=name, **style)
    if law is not None:
        span = law.bulk_edge - law.lower_edge
        start = law.lower_edge - 0.1 * span if axes.far_from_zero(law) else 0.0
        ax.set_xlim(start, law.bulk_edge + 0.1 * span)
        _draw_gap(ax, look, compared, fit=fit, shares=shares)
    ax.set_ylim(0.0, 1.02)
    ax.set_xlabel(axes.EIGENVALUE, color=look.ink)
    words = "share of the bulk" if small else "share of the bulk at or below"
    ax.set_ylabel(words, color=look.ink)
    put_legend(ax, look, legend, said=said_of(fit, test, noise), loc="lower right")
    return ax


def _draw_gap(
    ax: "Axes", look: Look, compared: Float64Array, *, fit: BulkFit, shares: Float64Array
) -> None:
    """Mark the largest gap between the two distribution functions."""
    expected = fit.law.cdf(compared) if fit.law is not None else compared
    seen = shares[fit.window.first - 1 : fit.window.last]
    k = int(np.argmax(np.abs(seen - expected)))
    x, ends = compared[k], (float(seen[k]), float(expected[k]))
    name = f"largest gap {abs(ends[0] - ends[1]):.4g}, at {x:.4g}"
    ax.plot([x, x], ends, color=look.ink, linewidth=2.0, marker="_", label=name)
    if is_small(ax):
        return
    arrow = {"arrowstyle": "->", "color": look.ink}
    place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "arrowprops": arrow}
    left = x > np.mean(ax.get_xlim())  # there is no room to its right
    offset, place["ha"] = ((-24, -18), "right") if left else ((24, -18), "left")
    words = "largest gap"
    ax.annotate(words, (x, min(ends)), offset, fontsize=font_size(ax), color=look.ink, **place)
