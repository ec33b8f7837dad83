"""A model by depth: one quantity of its matrices, one line per kind of layer."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec import _checks
from rmtspec.plot import axes
from rmtspec.plot.legends import check_legend, inches, put_legend
from rmtspec.plot.look import look_of
from rmtspec.plot.series import groups_of, style_of
from rmtspec.plot.words import PLAIN, Said, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What can be drawn, and how the axis is called.
QUANTITIES = {
    "spikes": "singular values beyond the noise",
    "noise": "squared weights left in the bulk",
    "saving": "parameters that a split saves",
}


def plot_overview(
    points: Sequence[Mapping[str, Any]],
    quantity: str = "spikes",
    *,
    ax: "Axes | None" = None,
    legend: str | None = "inside",
) -> "Axes":
    """Draw a quantity of each matrix of a model by the depth of its block.

    A line joins the means of one kind of layer (query, key, up, conv, ...). A filled mark is a
    matrix whose saving counts, as `Report.passes` tells; others are hollow.

    Parameters
    ----------
    points : sequence of mapping
        One for each matrix, with "depth" (0, 1, ...), "block" (what to write below the axis),
        "role" (kind of layer), "passes", and the quantity, None where it is not known.
        `Report.plot` makes them from names and rows.
    quantity : {"spikes", "noise", "saving"}
        A count, or a share from 0 to 1 (below 0 where a split would cost).
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
        `quantity` or `legend` is unknown.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> points = [
    ...     {"depth": i, "block": str(i), "role": role, "passes": True, "spikes": 3 + i}
    ...     for i in range(4) for role in ("query", "up")
    ... ]
    >>> ax = rmtspec.plot.plot_overview(points, ax=Figure().subplots())
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['query', 'up']
    """
    from matplotlib.ticker import PercentFormatter

    _checks.choice(quantity, "quantity", tuple(QUANTITIES))
    legend = check_legend(legend)
    ax = axes.axes_for(ax)
    look = look_of(ax)
    known = [point for point in points if point.get(quantity) is not None]
    groups = groups_of(point["role"] for point in points)
    for number, group in enumerate(dict.fromkeys(groups.values())):
        own = [point for point in known if groups[point["role"]] == group]
        style = style_of(look, number)
        name, marker = literal(group), style.pop("marker")
        depth = np.array([point["depth"] for point in own], dtype=float)
        value = np.array([point[quantity] for point in own], dtype=float)
        passes = np.array([point["passes"] for point in own], dtype=bool)
        at = np.unique(depth)
        means = [float(value[depth == x].mean()) for x in at]
        ax.plot(at, means, linewidth=1.2, alpha=0.7, zorder=1.5, **style)
        dots: dict[str, Any] = {"linestyle": "none", "marker": marker, "markersize": 5.0}
        for part, face in ((passes, style["color"]), (~passes, look.paper)):
            colours = {"color": style["color"], "markerfacecolor": face}
            ax.plot(depth[part], value[part], **dots, **colours)
        if own:
            ax.plot([], [], color=style["color"], marker=marker, ls=style["linestyle"], label=name)
    _label_blocks(ax, points)
    ax.set_xlabel("block", color=look.ink)
    ax.set_ylabel(QUANTITIES[quantity], color=look.ink)
    ax.grid(axis="y", color=look.soft, alpha=0.25, linewidth=0.6)
    if quantity == "spikes":
        ax.set_yscale("symlog", linthresh=1.0, linscale=0.3)
        ax.yaxis.set_major_formatter("{x:,.0f}")
        ax.set_ylim(-0.3, 1.5 * max([1, *(point[quantity] for point in known)]))
    else:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    if not known:
        axes.remark(ax, look, "not known in this report", (0.75, 0.5))
    counted = {bool(point["passes"]) for point in known}
    note = "filled: noise-like bulk" if len(counted) == 2 else "no bulk is noise-like"
    said = Said((note,) if False in counted and legend is not None else (), "")
    put_legend(ax, look, legend, said=said)
    return ax


def _label_blocks(ax: "Axes", points: Sequence[Mapping[str, Any]]) -> None:
    """Write the blocks below the axis, as many as there is room for."""
    blocks = {int(point["depth"]): str(point["block"]) for point in points}
    if not blocks:
        return
    last = max(blocks)
    each = 72.0 * inches(ax)[0] / (last + 0.8)  # points between two blocks

    def fit(step: int) -> bool:
        sizes = [len(blocks.get(depth, "")) for depth in range(0, last + 1, step)]
        pairs = itertools.pairwise(sizes)
        return all(3.3 * (left + right) + 8.0 <= step * each for left, right in pairs)

    step = next((step for step in range(1, last + 1) if fit(step)), last + 1)
    ticks = [depth for depth in sorted(blocks) if depth % step == 0]
    ax.set_xticks(ticks, [blocks[depth] for depth in ticks], **PLAIN)
    ax.set_xlim(-0.4, last + 0.4)
