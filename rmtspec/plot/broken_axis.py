"""An axis that is linear over the bulk and logarithmic beyond it, so that all spikes are seen."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec.plot.legends import is_small
from rmtspec.plot.look import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Share of the width for what lies beyond, and how far beyond the view that begins.
_SHARE = 0.26
_FAR = 1.6


def is_far(low: float, high: float, largest: float) -> bool:
    """Tell whether a linear view that shows `largest` too would squeeze what lies below `high`."""
    return largest > low + _FAR * (high - low)


def break_axis(ax: "Axes", look: Look, view: tuple[float, float], *, largest: float) -> None:
    """Let the x axis be linear in the view and logarithmic from there to the largest value.

    Values keep their own coordinates, so that anything may be drawn there.
    """
    low, high = view
    end = high * (largest / high) ** 1.12
    width = _SHARE / (1.0 - _SHARE) * (high - low)
    slope = width / math.log(end / high)

    def forward(values: Any) -> Any:
        x = np.asarray(values, dtype=np.float64)
        return np.where(x <= high, x, high + slope * np.log(np.maximum(x, high) / high))

    def inverse(places: Any) -> Any:
        u = np.asarray(places, dtype=np.float64)
        return np.where(u <= high, u, high * np.exp(np.maximum(u - high, 0.0) / slope))

    ax.set_xscale("function", functions=(forward, inverse))
    ax.set_xlim(low, end)
    ticks = _ticks(low, high) + _powers(high, end)[-1 if is_small(ax) else 0 :]
    ax.set_xticks(ticks, [_label(tick) for tick in ticks])
    ax.minorticks_off()
    ax.axvspan(high, end, color=look.soft, alpha=0.1, linewidth=0.0)
    ax.axvline(high, color=look.soft, linewidth=0.9, linestyle=(0, (1, 2)))
    slash: dict[str, Any] = {"marker": [(-0.5, -1), (0.5, 1)], "markersize": 8, "clip_on": False}
    slash |= {"linestyle": "none", "color": look.ink, "transform": ax.get_xaxis_transform()}
    gap = 0.007 * (high - low)
    ax.plot([high - gap, high + gap * high / max(slope, 1e-300)], [0.0, 0.0], **slash)
    ax.annotate(
        "log scale", (end, 0.0), (-3, 14), xycoords=ax.get_xaxis_transform(), ha="right",
        textcoords="offset points", fontsize="xx-small", color=look.soft,
    )  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers of the linear part that keep clear of its end."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(5, steps=(1, 2, 5, 10)).tick_values(low, high)
    return [float(t) for t in ticks if low <= t <= high - 0.04 * (high - low)]


def _powers(high: float, end: float) -> list[float]:
    """Return about two round numbers of the logarithmic part."""
    decades = range(math.floor(math.log10(high)), math.ceil(math.log10(end)) + 1)
    room = (end / high) ** 0.15
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), tuple(np.arange(1.0, 10.0))):
        ticks = [step * 10.0**k for k in decades for step in steps]
        ticks = [tick for tick in ticks if high * room <= tick <= end / room**0.2]
        if len(ticks) >= 2:
            break
    close = len(ticks) > 1 and ticks[-1] / ticks[0] < (end / high) ** 0.4
    return ticks[-1:] if close else [*ticks[:1], *ticks[1:][-1:]]


def _label(tick: float) -> str:
    power = math.log10(tick) if tick > 0.0 else 0.0
    return f"$10^{{{power:.0f}}}$" if power >= 4.0 and power % 1 == 0.0 else f"{tick:.4g}"
