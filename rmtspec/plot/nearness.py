"""How near components come to something, against random directions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec import _checks
from rmtspec.errors import InvalidValueError
from rmtspec.plot import axes
from rmtspec.plot.look import look_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_nearness(
    nearness: Sequence[float],
    drawn: Sequence[float],
    *,
    label: str = "nearness",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw how near each component comes to something, before the range of random directions.

    Parameters
    ----------
    nearness : sequence of float
        One number for each component, strongest first.
    drawn : sequence of float
        The same of random directions: their middle 90 % are a band, their mean a line.
    label : str
        Of the vertical axis.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `ax` is no Axes, or the numbers are none.
    InvalidValueError
        There are no numbers.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> ax = rmtspec.plot.plot_nearness([0.4, 0.2], [0.1, 0.2], ax=Figure().subplots())
    >>> len(ax.get_legend().get_texts())
    3
    """
    values, random = _checks.floats(nearness, "nearness"), _checks.floats(drawn, "drawn")
    if values.ndim != 1 or random.ndim != 1 or not values.size or not random.size:
        raise InvalidValueError(
            f"`nearness` has shape {values.shape} and `drawn` {random.shape}; expected one number "
            "or more in each."
        )
    ax = axes.axes_for(ax)
    look = look_of(ax)
    low, high = np.quantile(random, [0.05, 0.95])
    style: dict[str, Any] = {"linestyle": "none", "marker": "D", "markersize": 6.0}
    ax.axhspan(low, high, color=look.bars, alpha=0.6, label="90 % of random directions")
    ax.axhline(float(random.mean()), color=look.threshold, linestyle="--", label="their mean")
    ranks = np.arange(1, values.size + 1)
    ax.plot(ranks, values, color=look.spikes, label="components", **style)
    ax.set(xlabel="component, strongest first", ylim=(0.0, None), xlim=(0.4, values.size + 0.6))
    ax.set_ylabel(label)
    ax.set_xticks(ranks[:: 1 + len(ranks) // 20])
    ax.legend(loc="best", fontsize="small")
    return ax
