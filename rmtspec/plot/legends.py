"""The legend of a plot, with the verdict as its title: inside, outside or none."""

import textwrap
from typing import TYPE_CHECKING, Any

from rmtspec.errors import InvalidOptionError
from rmtspec.plot.look import Look
from rmtspec.plot.words import Said, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACES = ("inside", "outside")
_SMALL = 3.4
_NOTHING = Said((), "")


def check_legend(legend: object) -> str | None:
    """Return the option `legend`, checked."""
    if legend is None or (isinstance(legend, str) and legend in PLACES):
        return legend
    raise InvalidOptionError(f"`legend` is {legend!r}", "'inside', 'outside' or None")


def inches(ax: "Axes") -> tuple[float, float]:
    """Return about how wide and high the Axes are, before any layout."""
    figure: Any = ax.figure
    box = ax.get_window_extent()
    return float(box.width / figure.dpi), float(box.height / figure.dpi)


def font_size(ax: "Axes") -> float:
    """Return the size of the words inside the Axes, in points: smaller in small ones."""
    from matplotlib.font_manager import FontProperties

    name = "small" if inches(ax)[0] >= _SMALL else "xx-small"
    return float(FontProperties(size=name).get_size_in_points())


def is_small(ax: "Axes") -> bool:
    """Tell whether there is room for the most important entries alone."""
    return inches(ax)[0] < _SMALL


def put_legend(
    ax: "Axes", look: Look, legend: str | None, *, said: Said = _NOTHING, loc: str = "best"
) -> None:
    """Draw the legend in the colours of the Axes; without one, the verdict stands alone.

    A legend outside lies to the right; a figure with ``layout="constrained"`` makes room for it.
    """
    size = font_size(ax)
    words = "\n".join(verdict_lines(ax, said, legend))
    colour = {"bad": look.bad, "unsure": look.unsure}.get(said.mood, look.ink)
    if legend is None:
        if words:
            _alone(ax, look, words, colour=colour, size=size, loc=loc)
        return
    place: dict[str, Any] = {"loc": loc}
    if legend == "outside":
        place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0.0}
    handles, labels = ax.get_legend_handles_labels()
    if not handles and not words:
        return
    style: dict[str, Any] = {
        "fontsize": size, "labelcolor": look.ink, "facecolor": look.paper, "framealpha": 0.9,
        "edgecolor": look.soft, "title": words or None, "title_fontsize": size,
        "alignment": "left", "borderpad": 0.5, "labelspacing": 0.3, "handlelength": 1.8,
    }  # fmt: skip
    made = ax.legend(handles, labels, **place, **style)
    made.get_title().set_color(colour)
    made.get_frame().set_linewidth(0.6)


def _alone(ax: "Axes", look: Look, words: str, *, colour: Any, size: float, loc: str) -> None:
    """Write the verdict into the corner where the legend would be."""
    up = "lower" not in loc
    box = {"boxstyle": "round,pad=0.3", "facecolor": look.paper, "edgecolor": "none", "alpha": 0.85}
    place: dict[str, Any] = {"ha": "right", "va": "top" if up else "bottom", "bbox": box}
    place |= {"xycoords": "axes fraction", "annotation_clip": False}
    ax.annotate(words, (0.98, 0.97 if up else 0.03), color=colour, fontsize=size, **place)


def verdict_lines(ax: "Axes", said: Said, legend: str | None) -> list[str]:
    """Return the lines of a verdict, broken so that they fill no more than half of the Axes."""
    width = inches(ax)[0] * 72.0 / (0.55 * font_size(ax))  # in characters
    share = 0.9 if legend == "outside" else 0.55
    most = int(max(28 if is_small(ax) else 36, min(44, share * width)))
    return [
        part
        for line in said.lines
        for part in textwrap.wrap(literal(line), most, break_on_hyphens=False)
    ]


def headroom(ax: "Axes", rows: int, *, characters: int) -> tuple[float, float]:
    """Return the shares of the width and height that a legend of that many rows would take."""
    if not rows:
        return 0.0, 0.0
    wide, high = inches(ax)
    size = font_size(ax)
    width = (0.55 * characters + 4.0) * size / (72.0 * wide)
    height = (1.35 * rows + 1.2) * size / (72.0 * high)
    return min(width, 1.0), min(height, 0.6)
