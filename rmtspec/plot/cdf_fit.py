"""Distribution functions of the eigenvalues and of the fitted law, with the largest gap marked."""

from typing import TYPE_CHECKING

import numpy as np

from rmtspec.errors import InvalidTypeError
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import FitTest, check_fit
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.plot import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_cdf_fit(
    spectrum: Spectrum, fit: BulkFit, *, test: FitTest | None = None, ax: "Axes | None" = None
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
        From `rmtspec.fit_test`; its statistic, p-value and verdict become the title of the legend.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `spectrum`, `fit`, `test` or `ax` is of the wrong type.
    InvalidValueError
        The fit is of another matrix size.

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
    ax = axes.axes_for(ax)
    size = spectrum.p - fit.n_removed
    values = spectrum.eigenvalues[:size]
    shares = (np.arange(1, size + 1) - 0.5) / size
    law = fit.law
    if law is None:
        axes.say(ax, f"no fit: {fit.reason}")
    else:
        window = fit.window
        compared = window.of(values)
        gaps = np.abs(shares[window.first - 1 : window.last] - law.cdf(compared))
        k = int(np.argmax(gaps))
        name = f"compared: ranks {window.first} to {window.last} of {size}"
        ax.axvspan(compared[0], compared[-1], color="#eeeeee", label=name)
        x = np.concatenate([[0.0], axes.bulk_grid(law), [1.25 * law.bulk_edge]])
        ax.plot(x, law.cdf(x), color=axes.LAW, linewidth=2.0, label="Marchenko-Pastur")
    name = f"eigenvalues (lowest {size} of {spectrum.p})"
    ax.step(
        values, shares, where="mid", color=axes.THRESHOLD, linestyle="--", linewidth=1.3, label=name
    )
    if law is not None:
        x0, ends = compared[k], (shares[window.first - 1 + k], float(law.cdf(compared[k])))
        name = f"largest gap {gaps[k]:.4g}, at {x0:.4g}"
        ax.plot([x0, x0], ends, color="black", linewidth=1.5, marker="_", label=name)
        arrow = {"arrowstyle": "->", "color": "black"}
        where = (x0 + 0.06 * law.bulk_edge, ends[1] - 0.12)
        ax.annotate("largest gap", (x0, ends[1]), where, arrowprops=arrow, fontsize="small")
        span = law.bulk_edge - law.lower_edge
        start = law.lower_edge - 0.1 * span if axes.far_from_zero(law) else 0.0
        ax.set_xlim(start, law.bulk_edge + 0.1 * span)
    ax.set(xlabel=axes.EIGENVALUE, ylim=(0.0, 1.02), ylabel="share of the bulk at or below")
    ax.legend(loc="lower right", fontsize="small", title=_verdict(test), title_fontsize="small")
    return ax


def _verdict(test: FitTest | None) -> str | None:
    if test is None:
        return None
    if test.reason:
        return f"no test: {test.reason}"
    verdict = "accepted" if test.accepted else "rejected"
    return f"statistic {test.statistic:.4g}, p-value {test.pvalue:.3g}: {verdict}"
