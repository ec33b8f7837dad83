"""The figures of a matrix and of a report, drawn by `rmtspec.plot` from what they hold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rmtspec import _checks
from rmtspec._text import printable
from rmtspec.errors import InvalidOptionError, InvalidTypeError, InvalidValueError
from rmtspec.plot.axes import axes_for, set_title
from rmtspec.plot.before_after import plot_before_after
from rmtspec.plot.cdf_fit import plot_cdf_fit
from rmtspec.plot.esd import plot_esd
from rmtspec.plot.overview import QUANTITIES, plot_overview
from rmtspec.plot.scree import plot_scree
from rmtspec.report.layer_kinds import depths, place_of
from rmtspec.report.overview import overview_of, short_block

if TYPE_CHECKING:
    from rmtspec.report.matrix_report import MatrixReport
    from rmtspec.report.report import Report

_DRAW: dict[str, Any] = {"esd": plot_esd, "cdf": plot_cdf_fit, "scree": plot_scree}
#: Inches of one of three figures side by side.
_WIDTH, _HEIGHT = 5.2, 4.2
#: More matrices than this are drawn by kind of layer, before and after.
_ROWS = 30


def matrix_figure(matrix: "MatrixReport", kind: str, ax: Any, legend: str | None) -> Any:
    """Draw one of the figures of a matrix, or all; return the Axes, three of them for "all"."""
    _checks.choice(kind, "kind", (*_DRAW, "all"))
    if kind == "all":
        every = _three(ax, "esd, cdf and scree")
        for one, place in zip(_DRAW, every, strict=True):
            matrix_figure(matrix, one, place, legend)
        return every
    options = {"test": matrix.test, "noise": matrix.noise, "legend": legend}
    ax = _DRAW[kind](matrix.spectrum, matrix.fit, ax=ax, **options)
    set_title(ax, matrix.name)
    return ax


def report_figure(report: "Report", kind: str, ax: Any, legend: str | None) -> Any:
    """Draw one of the figures of a report; return the Axes, three of them for "overview"."""
    kinds = ("overview", *QUANTITIES, "before-after")
    if kind not in kinds:
        hint = "For a number over several reports there is rmtspec.plot.plot_drift."
        raise InvalidOptionError(f"`kind` is {kind!r}", f"one of {', '.join(kinds)}", hint)
    if not report.rows:
        raise InvalidValueError("The report has no matrices; expected at least one to draw.")
    if kind == "before-after":
        return plot_before_after(_sizes(report), ax=ax, legend=legend)
    points = _points(report)
    if kind != "overview":
        return plot_overview(points, kind, ax=ax, legend=legend)
    every = _three(ax, "spikes, noise and saving")
    for quantity, place in zip(QUANTITIES, every, strict=True):
        last = quantity == list(QUANTITIES)[-1]
        plot_overview(points, quantity, ax=place, legend=legend if last else None)
    return every


def _three(axes: Any, names: str) -> Sequence[Any]:
    """Return three Axes: those given, checked, or those of a new pyplot figure."""
    if axes is None:
        from matplotlib import pyplot

        made = pyplot.subplots(1, 3, figsize=(3 * _WIDTH, _HEIGHT), layout="constrained")[1]
        return tuple(made)
    try:
        several = tuple(axes)
    except TypeError:
        several = ()
    if len(several) != 3:
        raise InvalidTypeError(
            f"`ax` is {type(axes).__name__}; expected three Axes, for {names}. Take them from "
            "`figure, axes = plt.subplots(1, 3)`, or leave `ax` out for a new figure."
        )
    return tuple(axes_for(ax) for ax in several)


def _points(report: "Report") -> list[dict[str, Any]]:
    """Return what the overview needs of each matrix."""
    places = [place_of(printable(row["name"]), str(row.get("kind", ""))) for row in report.rows]
    return [
        {
            **overview_of(report, row),
            "depth": depth,
            "role": place.role,
            "block": short_block(place.block or place.role),
        }
        for row, place, depth in zip(report.rows, places, depths(places), strict=True)
    ]


def _sizes(report: "Report") -> list[dict[str, Any]]:
    """Return parameters before and after of each matrix, or of each kind of layer if many."""
    sizes: dict[str, list[int]] = {}
    many = len(report.rows) > _ROWS
    for row in report.rows:
        before = int(row["parameters_before"])
        after = int(row["parameters_after"]) if report.passes(row) else before
        name = str(row["name"])
        role = place_of(printable(name), str(row.get("kind", ""))).role
        total = sizes.setdefault(role if many else name, [0, 0, 0])
        total[:] = [total[0] + 1, total[1] + before, total[2] + after]
    return [
        {
            "name": f"{name} ({number})" if many else name,
            "parameters_before": before,
            "parameters_after": after,
        }
        for name, (number, before, after) in sizes.items()
    ]
