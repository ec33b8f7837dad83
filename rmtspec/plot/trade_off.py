"""A figure of a model against its size: measured, and as the loss was predicted."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec.plot import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEASURED, _BASE = "#0077bb", "#ee7733"


def plot_trade_off(
    rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any], *, ax: "Axes | None" = None
) -> "Axes":
    """Draw a figure of a model against the share of parameters kept.

    Parameters
    ----------
    rows : sequence of mapping
        Each with "kept" and "measured", as those of `TradeOff.rows`.
    baseline : mapping
        The same of the model as it is: a dashed line.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> rows = [{"kept": 0.8, "measured": 2.4}, {"kept": 0.6, "measured": 3.1}]
    >>> base = {"kept": 1.0, "measured": 2.3}
    >>> ax = rmtspec.plot.plot_trade_off(rows, base, ax=Figure().subplots())
    >>> ax.get_xlabel()
    'parameters kept'
    """
    from matplotlib.ticker import PercentFormatter

    ax = axes.axes_for(ax, (6.0, 3.8))
    points = sorted([baseline, *rows], key=lambda row: -row["kept"])
    kept = np.array([row["kept"] for row in points], dtype=float)
    measured = np.array(
        [np.nan if row["measured"] is None else row["measured"] for row in points], dtype=float
    )
    ax.axhline(measured[0], color=_BASE, linestyle="--", label="as it is")
    ax.plot(kept, measured, color=_MEASURED, marker="o", label="pruned")
    finite = measured[np.isfinite(measured)]
    if finite.size and finite.min() > 0.0 and finite.max() > 10.0 * finite.min():
        ax.set_yscale("log")
    ax.invert_xaxis()
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("parameters kept")
    ax.set_ylabel("measured")
    ax.legend(frameon=False)
    return ax


def trade_off_svg(rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]) -> str:
    """Return the plot as SVG whose text and axes have the colour of the text around it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    marker = "#010203"  # stands for the colour of the page's text
    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "rmtspec", "text.color": marker,
        "axes.edgecolor": marker, "axes.labelcolor": marker, "xtick.color": marker,
        "ytick.color": marker,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(6.0, 3.8), layout="constrained")
        plot_trade_off(rows, baseline, ax=figure.subplots())
        picture = io.StringIO()
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    text = picture.getvalue()
    return text[text.index("<svg") :].replace(marker, "currentColor")
