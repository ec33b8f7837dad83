"""The losses of a training by step, and those on batches held out."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmtspec.errors import InvalidValueError
from rmtspec.plot import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEPS, _HELD_OUT = "#0077bb", "#ee7733"


def plot_losses(
    losses: Sequence[float],
    held_out_before: float = math.nan,
    held_out_after: float = math.nan,
    *,
    ax: "Axes | None" = None,
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

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidValueError
        There are no losses.

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
    ax = axes.axes_for(ax, (6.0, 3.6))
    ax.plot(np.arange(1, len(values) + 1), values, color=_STEPS, label="each step")
    if not math.isnan(held_out_after):
        ends = [held_out_before, held_out_after]
        ax.plot([1, len(values)], ends, "D--", color=_HELD_OUT, label="held out")
    if values.min() > 0.0 and values.max() > 10.0 * values.min():
        ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    ax.legend(frameon=False)
    return ax
