"""Before and after: the parameters of each matrix, joined by a line."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rmtspec.errors import InvalidValueError
from rmtspec.plot import axes
from rmtspec.plot.legends import check_legend, font_size, put_legend
from rmtspec.plot.look import look_of
from rmtspec.plot.words import PLAIN, Said, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Lines left free for the legend.
_ROOM = 3
#: Inches per line, above and below them, and width; characters of a name.
_LINE, _FRAME, _WIDTH, _NAME = 0.26, 1.1, 7.0, 44


def plot_before_after(
    rows: Sequence[Mapping[str, Any]], *, ax: "Axes | None" = None, legend: str | None = "inside"
) -> "Axes":
    """Draw the number of parameters of each matrix before and after, one line for each.

    Parameters
    ----------
    rows : sequence of mapping
        Each with "name", "parameters_before" and "parameters_after", drawn from the top.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure, as high as the lines need, if None.
    legend : {"inside", "outside"} or None
        Where the legend is; the total is written into the picture even without one.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `ax` is of the wrong type.
    InvalidValueError
        There are no rows, or `legend` is unknown.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> rows = [{"name": "fc1", "parameters_before": 784_000, "parameters_after": 178_400}]
    >>> ax = rmtspec.plot.plot_before_after(rows, ax=Figure().subplots())
    >>> ax.get_legend().get_title().get_text()
    '178,400 of 784,000 parameters kept (22.8%)'
    """
    from matplotlib.ticker import EngFormatter

    legend = check_legend(legend)
    if not rows:
        raise InvalidValueError("`rows` is empty; expected at least one matrix.")
    ax = axes.axes_for(ax, (_WIDTH, _FRAME + _LINE * (len(rows) + _ROOM)))
    look = look_of(ax)
    before = [row["parameters_before"] for row in rows]
    after = [row["parameters_after"] for row in rows]
    places = range(len(rows))
    ax.hlines(places, after, before, color=look.soft, linewidth=1.6, zorder=1.0)
    dots: dict[str, Any] = {"linestyle": "none", "markersize": 6.0}
    ax.plot(
        before, places, marker="o", markerfacecolor=look.paper, color=look.soft, label="before",
        **dots,
    )  # fmt: skip
    ax.plot(after, places, marker="D", color=look.series[0], label="after", **dots)
    names = [wrapped(str(row["name"]), _NAME, lines=1) for row in rows]
    ax.set_yticks(places, names, fontsize=font_size(ax), **PLAIN)
    ax.set_ylim(len(rows) - 0.4, -0.6 if legend == "outside" else -0.6 - _ROOM)
    ax.grid(axis="x", color=look.soft, alpha=0.25, linewidth=0.6)
    positive = [value for value in (*before, *after) if value > 0]
    if positive and max(positive) > 30 * min(positive):
        ax.set_xscale("log")
    else:
        ax.set_xlim(0.0, 1.05 * max([1, *positive]))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlabel("parameters", color=look.ink)
    total, left = sum(before), sum(after)
    words = f"{left:,} of {total:,} parameters kept ({left / max(total, 1):.1%})"
    put_legend(ax, look, legend, said=Said((words,), ""), loc="upper right")
    return ax
