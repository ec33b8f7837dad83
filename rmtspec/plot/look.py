"""The one look of all plots: colours for light and for dark backgrounds, markers, dashes.

The colours are those of the HTML report. They keep their distance from each other for colour-blind
eyes, and no line is told by its colour alone.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Markers and dashes of the lines of a series, which its colours repeat.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), "-")


@dataclass(frozen=True, slots=True)
class Look:
    """Colours by what they stand for.

    `ink` is the colour of text and axes and `paper` that of the background, both as the Axes have
    them; the others are chosen for that background. `series` are for lines that have no meaning of
    their own.
    """

    ink: Any
    paper: Any
    soft: str
    bars: str
    law: str
    refused: str
    threshold: str
    spikes: str
    flips: str
    bad: str
    unsure: str
    series: tuple[str, ...]


_LIGHT = Look(
    ink="#1b1e23", paper="#ffffff", soft="#6b7480", bars="#a9bdd0", law="#c2371a",
    refused="#7d7d7d", threshold="#0b5cad", spikes="#9b2b70", flips="#2a7a3a", bad="#a3320b",
    unsure="#5c5200",
    series=("#0b5cad", "#b3450a", "#00795c", "#9b2b70", "#6b6100", "#5b4bb5", "#1f7f93", "#666666"),
)  # fmt: skip
_DARK = Look(
    ink="#e8eaed", paper="#14171b", soft="#a6aeb9", bars="#4b6178", law="#ff8a6b",
    refused="#a8a8a8", threshold="#7db8f5", spikes="#f08cc6", flips="#7fd18d", bad="#ff9c73",
    unsure="#e0cf5a",
    series=("#7db8f5", "#ffa26b", "#5fd3ab", "#f08cc6", "#e0cf5a", "#b7a9ff", "#79d5e8", "#b5b5b5"),
)  # fmt: skip


def look_of(ax: "Axes") -> Look:
    """Return the colours for these Axes: dark ones on a light background, light on a dark one.

    If Axes and figure are transparent, the colour of the labels tells which page they are for.
    """
    from matplotlib.colors import to_rgba

    ink = ax.xaxis.label.get_color()
    figure = ax.figure.get_facecolor() if ax.figure is not None else "none"
    paper = next((c for c in (ax.get_facecolor(), figure) if to_rgba(c)[3] > 0.5), None)
    dark = _luminance(ink) > 0.5 if paper is None else _luminance(paper) < 0.3
    look = _DARK if dark else _LIGHT
    if abs(_luminance(ink) - _luminance(look.paper if paper is None else paper)) < 0.3:
        ink = look.ink  # labels that could not be read
    return replace(look, ink=ink, paper=look.paper if paper is None else paper)


def _luminance(colour: Any) -> float:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
