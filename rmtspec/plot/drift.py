"""How a number of each matrix moves from report to report: over epochs, or checkpoints."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec._text import nearest
from rmtspec.errors import InvalidOptionError, InvalidValueError
from rmtspec.plot import axes
from rmtspec.plot.legends import check_legend, put_legend
from rmtspec.plot.look import MARKERS, look_of
from rmtspec.plot.series import style_of
from rmtspec.plot.words import PLAIN, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Beyond this ratio of the largest to the smallest value the axis is logarithmic.
_WIDE = 30.0


def plot_drift(
    reports: Sequence[Iterable[Mapping[str, Any]]],
    column: str = "n_spikes",
    *,
    steps: Sequence[float] | None = None,
    ax: "Axes | None" = None,
    legend: str | None = "inside",
) -> "Axes":
    """Draw a column of a sequence of reports, one line for each matrix.

    Where a report lacks a matrix or its number, the line has a gap. More than eight matrices are
    thin lines of one colour, and their median is a thick one.

    Parameters
    ----------
    reports : sequence of Report, or of iterables of rows
        In the order of time.
    column : str
        Key of a number in the rows: "n_spikes", "bulk_edge", "largest_eigenvalue", "rank", ...
    steps : sequence of float, optional
        Where each report stands on the axis, as the epoch; 1, 2, ... by default.
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
        There are no reports, no row has a number in `column`, `steps` has another length, or
        `legend` is unknown.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> noise = rmtspec.ensembles.wishart(100, 60, rng=0)
    >>> reports = [rmtspec.analyze_many({"fc1": noise, "fc2": k * noise}) for k in (1, 2, 3)]
    >>> ax = rmtspec.plot.plot_drift(reports, "bulk_edge", ax=Figure().subplots())
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['fc1', 'fc2']
    """
    legend = check_legend(legend)
    found = _columns(reports, column)
    at = np.arange(1.0, len(reports) + 1.0) if steps is None else np.asarray(steps, dtype=float)
    if at.shape != (len(reports),):
        raise InvalidValueError(
            f"`steps` has shape {at.shape}; expected one number for each of the {len(reports)} "
            "reports."
        )
    ax = axes.axes_for(ax)
    look = look_of(ax)
    if len(found) <= len(MARKERS):
        for number, (name, values) in enumerate(found.items()):
            style = style_of(look, number)
            ax.plot(at, values, markersize=4.5, label=label_of(name), **style)
    else:
        thin: dict[str, Any] = {"color": look.series[0], "linewidth": 0.8, "alpha": 0.35}
        for values in found.values():
            ax.plot(at, values, **thin)
        table = np.array(list(found.values()))
        median = [np.median(v[np.isfinite(v)]) if np.isfinite(v).any() else np.nan for v in table.T]
        ax.plot([], [], label=f"each of {len(found)} matrices", **thin)
        ax.plot(at, median, color=look.ink, linewidth=2.2, marker="o", label="their median")
    values = np.concatenate(list(found.values()))
    values = values[np.isfinite(values)]
    if values.min() > 0.0 and values.max() > _WIDE * values.min():
        ax.set_yscale("log")
    if at.size <= 12 and steps is None:
        ax.set_xticks(at, [f"{step:g}" for step in at])
    ax.grid(axis="y", color=look.soft, alpha=0.25, linewidth=0.6)
    ax.set_xlabel("report" if steps is None else "step", color=look.ink)
    ax.set_ylabel(column.replace("_", " "), color=look.ink, **PLAIN)
    put_legend(ax, look, legend)
    return ax


def _columns(
    reports: Sequence[Iterable[Mapping[str, Any]]], column: str
) -> dict[str, Float64Array]:
    """Return the values of a column by name, nan where a report has none."""
    if not len(reports):
        raise InvalidValueError("`reports` is empty; expected at least one report.")
    listed = [list(report) for report in reports]
    keys = dict.fromkeys(k for rows in listed for row in rows for k in row if _is_number(row[k]))
    if column not in keys:
        hint = nearest(column, keys).strip()
        raise InvalidOptionError(f"`column` is {column!r}", "a key with numbers", hint)
    found: dict[str, Float64Array] = {}
    for i, rows in enumerate(listed):
        for row in rows:
            values = found.setdefault(row["name"], np.full(len(listed), math.nan))
            values[i] = row[column] if _is_number(row.get(column)) else math.nan
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
