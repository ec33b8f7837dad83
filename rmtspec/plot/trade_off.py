"""A figure of a model against its size: measured, and as the loss was predicted."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec.plot import axes
from rmtspec.plot.legends import check_legend, put_legend
from rmtspec.plot.look import look_of
from rmtspec.plot.words import PLAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_trade_off(
    rows: Sequence[Mapping[str, Any]],
    baseline: Mapping[str, Any],
    *,
    measure: str = "measured",
    ax: "Axes | None" = None,
    legend: str | None = "inside",
) -> "Axes":
    """Draw accuracy, perplexity or any figure of a model against the share of parameters kept.

    Each point is a plan; its budget is written beside it if the rows have one.

    Parameters
    ----------
    rows : sequence of mapping
        Each with "kept" and "measured", as those of `TradeOff.rows`.
    baseline : mapping
        The same of the model as it is: a dashed line.
    measure : str
        What was measured, for the axis: "accuracy", "perplexity".
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.
    legend : {"inside", "outside"} or None
        Where the legend is.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `ax` is of the wrong type.
    InvalidValueError
        `legend` is unknown.

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

    legend = check_legend(legend)
    ax = axes.axes_for(ax, (6.0, 3.8))
    look = look_of(ax)
    points = sorted([baseline, *rows], key=lambda row: -row["kept"])
    kept = np.array([row["kept"] for row in points], dtype=float)
    measured = np.array(
        [np.nan if row["measured"] is None else row["measured"] for row in points], dtype=float
    )
    ax.axhline(measured[0], color=look.series[1], linestyle="--", label="as it is")
    ax.plot(kept, measured, color=look.series[0], marker="o", label="pruned")
    finite = measured[np.isfinite(measured)]
    if finite.size and finite.min() > 0.0 and finite.max() > 10.0 * finite.min():
        ax.set_yscale("log")
    ax.invert_xaxis()
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("parameters kept", color=look.ink)
    ax.set_ylabel(measure, color=look.ink, **PLAIN)
    ax.margins(0.08, 0.14)
    beside: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "color": look.ink}
    for point, y in zip(points, measured, strict=True):
        if point.get("budget") is not None and point is not baseline and np.isfinite(y):
            words = f"budget {point['budget']:g}"
            ax.annotate(words, (point["kept"], y), (0, 8), fontsize="x-small", **beside)
    put_legend(ax, look, legend)
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
        ax = plot_trade_off(rows, baseline, ax=figure.subplots())
        if (legend := ax.get_legend()) is not None:
            legend.set_frame_on(False)  # it would stay white on a dark page
        picture = io.StringIO()
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    text = picture.getvalue()
    return text[text.index("<svg") :].replace(marker, "currentColor")
