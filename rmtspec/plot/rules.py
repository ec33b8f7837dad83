"""Singular values by rank, with the rank that each of several rules chooses."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.matrix.spectrum import Spectrum, check_spectrum
from rmtspec.plot import axes
from rmtspec.plot.look import look_of
from rmtspec.plot.words import PLAIN, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches: height of the curve, of the line of one rule, width of the figure.
_CURVE, _LINE, _WIDTH = 2.2, 0.26, 5.2


def plot_rules(spectrum: Spectrum, ranks: Mapping[str, int], *, ax: "Axes | None" = None) -> "Axes":
    """Draw the singular values, largest first, and below them the rank that each rule chooses.

    Both scales are logarithmic, but the ranks begin with 0. Each rule has a line of its own below
    the curve, and its rank a thin line up to the curve; a hollow mark is a rank of 0. Names and
    numbers have the default colour of text, so that the picture can be read on a dark background
    too.

    Parameters
    ----------
    spectrum : Spectrum
        From `rmtspec.spectrum`.
    ranks : mapping of str to int
        Rank by the name of the rule, from 0 to p, drawn in this order.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `spectrum`, `ranks` or `ax` is of the wrong type.
    InvalidValueError
        There are no ranks, or one is not from 0 to p.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> spec = rmtspec.spectrum(rmtspec.ensembles.spiked(400, 300, [3, 20], rng=0))
    >>> ranks = {"gavish-donoho": 2, "exact": 300}
    >>> ax = rmtspec.plot.plot_rules(spec, ranks, ax=Figure().subplots())
    >>> [text.get_text() for text in ax.texts]
    ['gavish-donoho', '2', 'exact', '300']
    """
    check_spectrum(spectrum, "spectrum", "compare_rules(W).plot()")
    checked = _ranks(ranks, spectrum.p)
    lines = _LINE * (len(checked) + 0.5)
    ax = axes.axes_for(ax, (_WIDTH, _CURVE + lines + 0.5))
    below = lines / (_CURVE + lines)  # the part of the picture below the curve
    heights = _curve(ax, spectrum, below)
    for number, (name, rank) in enumerate(checked.items()):
        height = below * (1.0 - (number + 0.75) / (len(checked) + 0.5))
        _mark(ax, (name, rank), height, float(heights[rank - 1]) if rank else height)
    return ax


def _curve(ax: "Axes", spectrum: Spectrum, below: float) -> Float64Array:
    """Draw the singular values above the part `below`; return their heights in the picture."""
    look = look_of(ax)
    values = spectrum.singular_values[::-1]
    kept = max(1, spectrum.numerical_rank)
    logs = np.log10(np.maximum(values, values[kept - 1] if values[0] > 0.0 else 1.0))
    low, high = float(logs[-1]), float(logs[0])
    span = max(high - low, 0.05)
    low, high = low - 0.1 * span, high + 0.1 * span
    bottom = low - (high - low) * below / (1.0 - below)
    shown = np.arange(kept) if values[0] > 0.0 else np.arange(0)
    style: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 4.0}
    ax.plot(shown + 1, values[shown], color=look.threshold, **style)
    ax.axhline(10.0**low, color=look.soft, linewidth=0.8)
    ax.set_xscale("symlog", linthresh=1.0, linscale=0.6)
    ax.set_yscale("log")
    ax.set(xlim=(-0.4, 4.0 * spectrum.p), ylim=(10.0**bottom, 10.0**high))
    powers = [10**k for k in range(len(str(spectrum.p)))]
    ax.set_xticks([0, *powers], [f"{tick:,}" for tick in (0, *powers)])
    ticks = _ticks(low, high)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("rank, largest first", color=look.ink)
    ax.set_ylabel("singular value $s$", color=look.ink, y=(1.0 + below) / 2.0)
    heights: Float64Array = (logs - bottom) / (high - bottom)
    return heights


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two powers of ten, at most about six."""
    for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        powers = range(math.floor(low), math.ceil(high) + 1)
        ticks = [step * 10.0**k for k in powers for step in steps]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) <= 6:
            break
    return ticks[:: 1 + len(ticks) // 7]


def _mark(ax: "Axes", rule: tuple[str, int], height: float, top: float) -> None:
    """Draw the rank of a rule at a height of the picture, with a line up to the curve."""
    name, rank = rule
    look = look_of(ax)
    across = ax.get_xaxis_transform()
    thin: dict[str, Any] = {"color": look.spikes, "linewidth": 0.9, "alpha": 0.6}
    ax.plot([rank, rank], [height, top], transform=across, **thin)
    face = look.spikes if rank else "none"
    style: dict[str, Any] = {"marker": "D", "markersize": 5.0, "color": look.spikes}
    ax.plot([rank], [height], transform=across, markerfacecolor=face, **style)
    place: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "center"}
    ax.text(-0.02, height, wrapped(name, 24), color=look.ink, **place, **PLAIN)
    place = {"xycoords": across, "textcoords": "offset points", "va": "center"}
    ax.annotate(f"{rank:,}", (rank, height), (7, 0), color=look.ink, **place)


def _ranks(ranks: Any, p: int) -> dict[str, int]:
    if not isinstance(ranks, Mapping):
        raise InvalidTypeError(
            f"`ranks` is a {type(ranks).__name__}; expected a mapping of rules to ranks, such as "
            "{'bema': 3}."
        )
    if not ranks:
        raise InvalidValueError("`ranks` is empty; expected at least one rule with its rank.")
    return {
        str(name): _checks.integer(rank, f"ranks[{name!r}]", 0, p) for name, rank in ranks.items()
    }
