"""The losses of a training by step, and those on batches held out."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmtspec.errors import InvalidValueError
from rmtspec.plot import axes
from rmtspec.plot.legends import check_legend, put_legend
from rmtspec.plot.look import look_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_losses(
    losses: Sequence[float],
    held_out_before: float = math.nan,
    held_out_after: float = math.nan,
    *,
    ax: "Axes | None" = None,
    legend: str | None = "inside",
) -> "Axes":
    """Draw losses by step, and as two marks those on the batches held out, before and after.

    Parameters
    ----------
    losses : sequence of float
        One for each step.
    held_out_before, held_out_after : float
        Not drawn if nan.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.
    legend : {"inside", "outside"} or None
        Where the legend is.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidValueError
        There are no losses, or `legend` is unknown.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> ax = rmtspec.plot.plot_losses([2.0, 1.5, 1.2], 2.1, 1.4, ax=Figure().subplots())
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('step', 'loss')
    """
    values = np.asarray(losses, dtype=float)
    if values.ndim != 1 or not values.size:
        raise InvalidValueError(
            f"`losses` has shape {values.shape}; expected a list of at least one number."
        )
    legend = check_legend(legend)
    ax = axes.axes_for(ax, (6.0, 3.6))
    look = look_of(ax)
    ax.plot(np.arange(1, len(values) + 1), values, color=look.series[0], label="each step")
    if not math.isnan(held_out_after):
        ends = [held_out_before, held_out_after]
        ax.plot([1, len(values)], ends, "D--", color=look.series[1], label="held out")
    if values.min() > 0.0 and values.max() > 10.0 * values.min():
        ax.set_yscale("log")
    ax.set_xlabel("step", color=look.ink)
    ax.set_ylabel("loss", color=look.ink)
    put_legend(ax, look, legend)
    return ax
