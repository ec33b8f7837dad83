"""The common part of the plots: Axes, the view, the edges of the bars, titles, PNG files.

matplotlib is imported inside the functions, so importing the plots costs nothing. They draw and
return the Axes; they never show or save a figure or change a style.
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.plot.broken_axis import is_far
from rmtspec.plot.legends import font_size, inches
from rmtspec.plot.look import Look, look_of
from rmtspec.plot.words import PLAIN, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUARTERS = (0.25, 0.75)
EIGENVALUE = "eigenvalue $s^2 / n$"


def axes_for(ax: "Axes | None", size: tuple[float, float] = (7.0, 4.2)) -> "Axes":
    """Return `ax`, checked, or the Axes of a new pyplot figure of that size in inches."""
    from matplotlib.axes import Axes

    if ax is None:
        from matplotlib import pyplot

        return pyplot.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise InvalidTypeError(
            f"`ax` is a {type(ax).__name__}; expected matplotlib Axes. Take one from "
            "`figure, ax = plt.subplots()`, or leave `ax` out for a new figure."
        )
    return ax


def limits(xlim: Any) -> tuple[float, float]:
    """Return the two ends of a view, checked."""
    ends = _checks.floats(xlim, "xlim")
    if ends.shape != (2,) or not (np.isfinite(ends).all() and ends[0] < ends[1]):
        raise InvalidValueError(
            f"`xlim` is {xlim!r}; expected two finite increasing numbers, such as (0, 8)."
        )
    return float(ends[0]), float(ends[1])


def default_view(
    spectrum: Spectrum, fit: BulkFit | MarchenkoPastur | None, law: MarchenkoPastur | None
) -> tuple[float, float]:
    """Return the part of the axis where bars are drawn: from the bulk to just beyond its end.

    Without a law it ends at the outer fence (three interquartile ranges above the third quartile)
    if the largest eigenvalue is far beyond that. What is beyond the view but not far joins it.
    """
    values = spectrum.eigenvalues
    highest = float(values[-1])
    if highest <= 0.0:
        return 0.0, 1.0
    if law is None:
        first, third = np.quantile(
            values[spectrum.p - max(spectrum.numerical_rank, 1) :], _QUARTERS
        )
        start, end = 0.0, float(third + 3.0 * (third - first))
        if not 0.0 < end < 0.5 * highest:
            return start, 1.02 * highest
    else:
        edge = fit.threshold if isinstance(fit, BulkFit) else law.bulk_edge
        start = law.lower_edge - 0.25 * (edge - law.lower_edge) if far_from_zero(law) else 0.0
        end = edge + 0.25 * (edge - start)
    near = highest > end and not is_far(start, end, highest)
    return start, highest + 0.03 * (highest - start) if near else end


def bin_edges(values: Float64Array, bins: ArrayLike | None, low: float, high: float) -> Any:
    """Return the edges of the bars: as given, of the given number, or of a default number."""
    if bins is None:
        inside = np.count_nonzero((values >= low) & (values <= high))
        return np.linspace(low, high, int(np.clip(round(1.5 * inside**0.5), 10, 100)) + 1)
    if np.ndim(bins) == 0:
        return np.linspace(low, high, _checks.integer(bins, "bins", 1) + 1)
    edges = _checks.floats(bins, "bins")
    if edges.ndim != 1 or edges.size < 2 or not (np.diff(edges) > 0.0).all():
        raise InvalidValueError(
            f"`bins` is an array of shape {edges.shape}; expected at least two increasing edges, "
            "or the number of bars."
        )
    return edges


def far_from_zero(law: MarchenkoPastur) -> bool:
    """Tell whether the bulk lies so far from 0 that a view from 0 would waste space."""
    return law.lower_edge > law.bulk_edge / 2


def bulk_grid(law: MarchenkoPastur) -> Float64Array:
    """Return points of the bulk, dense at both edges, without the lower edge (perhaps a pole)."""
    angles = np.linspace(0.0, np.pi, 513)[1:]
    width = law.bulk_edge - law.lower_edge
    grid: Float64Array = law.lower_edge + width * np.sin(angles / 2.0) ** 2
    return grid


def remark(ax: "Axes", look: Look, words: str, place: tuple[float, float] = (0.98, 0.4)) -> None:
    """Write a remark into the Axes, by default into their right half."""
    if words:
        box = {"boxstyle": "round", "facecolor": look.paper, "edgecolor": look.soft, "lw": 0.6}
        align = {"xycoords": "axes fraction", "ha": "right", "va": "center", "color": look.ink}
        ax.annotate(words, place, fontsize=font_size(ax), bbox=box, **align)


def set_title(ax: "Axes", name: str) -> None:
    """Write a name above the Axes, in lines of their width; it stays text."""
    look, points = look_of(ax), 72.0 * inches(ax)[0]
    size = 12.0 if points >= 72.0 * 3.4 else 9.0
    ax.set_title(wrapped(name, int(points / (0.6 * size))), color=look.ink, fontsize=size, **PLAIN)


def png(figure: "Figure") -> bytes:
    """Return a figure as the content of a PNG file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()
