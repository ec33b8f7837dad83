"""What a model loses at each size: the curve that a size is chosen from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from rmtspec._files.writing import PathLike, json_text, write_atomically
from rmtspec._records import plain
from rmtspec._text import html_table, text_table
from rmtspec.errors import InvalidValueError
from rmtspec.report.frame import data_frame
from rmtspec.report.report import Report

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Version of the JSON format.
SCHEMA = 1
#: Keys of a row, in order.
COLUMNS = (
    "budget", "kept", "parameters", "bytes", "n_split", "predicted_loss", "measured", "change",
    "seconds", "latency",
)  # fmt: skip


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class TradeOff:
    """What `trade_off` of an adapter measured: one row for each budget, the largest first.

    Attributes
    ----------
    baseline : dict
        The row of the model as it is.
    rows : list of dict
        "budget", "kept" (share of the parameters of the layers in question), "parameters" and
        "bytes" (of the whole model), "n_split" (matrices cut), "predicted_loss" (sum over the
        matrices; a ranking, too low by up to three times; None without gradients), "measured" (the
        user's figure), "change" (of that, against the baseline), "seconds" (that measuring took),
        "latency" (seconds of one forward pass, None if not asked for).
    plans : dict of float to Plan
        What each budget does, to be carried out with `apply_plan`.
    settings, versions : dict
        The options, and the versions of the packages that the numbers depend on.
    """

    baseline: dict[str, Any]
    rows: list[dict[str, Any]]
    plans: Mapping[float, Report] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def row(self, budget: float) -> dict[str, Any]:
        """Return the row of a budget.

        Raises
        ------
        InvalidValueError
            It was not tried.
        """
        for row in self.rows:
            if row["budget"] == budget:
                return row
        tried = ", ".join(f"{row['budget']:g}" for row in self.rows)
        raise InvalidValueError(f"The budget {budget:g} was not tried; those tried are {tried}.")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the plans as JSON-ready values."""
        names = ("baseline", "rows", "settings", "versions")
        return {"schema": SCHEMA, **{name: plain(getattr(self, name)) for name in names}}

    def to_json(self, path: PathLike | None = None) -> str:
        """Return `to_dict` as JSON, missing numbers as null; write it to `path` if given."""
        return json_text(self.to_dict(), path)

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows as a data frame, nan for None.

        Raises
        ------
        MissingDependencyError
            pandas is not installed.
        """
        return data_frame(self.rows, list(COLUMNS))

    def to_html(self, path: PathLike | None = None) -> str:
        """Return table and curve as one self-contained HTML page; write it to `path` if given."""
        from jinja2 import Environment, StrictUndefined

        from rmtspec.plot.trade_off import trade_off_svg

        file = resources.files("rmtspec.report").joinpath("trade_off_template.html")
        environment = Environment(autoescape=True, undefined=StrictUndefined)
        header, cells = self.cells()
        page = environment.from_string(file.read_text("utf-8")).render(
            header=header, cells=cells, figure=trade_off_svg(self.rows, self.baseline),
            settings=self.settings, versions=self.versions,
        )  # fmt: skip
        if path is not None:
            write_atomically(path, page)
        return page

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        measure: str = "measured",
        legend: str | None = "inside",
    ) -> "Axes":
        """Draw the figure against the size: see `rmtspec.plot.plot_trade_off`."""
        from rmtspec.plot.trade_off import plot_trade_off

        return plot_trade_off(self.rows, self.baseline, measure=measure, ax=ax, legend=legend)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the lines of the table for people, as text."""
        header = ["budget", "kept", "parameters", "split", "predicted loss", "measured", "change"]
        timed = any(row["latency"] is not None for row in (self.baseline, *self.rows))
        header += ["latency"] if timed else []
        return header, [_cells(row)[: len(header)] for row in (self.baseline, *self.rows)]

    def __repr__(self) -> str:
        header, cells = self.cells()
        return "\n".join(["TradeOff", *text_table(header, cells, header)])

    def _repr_html_(self) -> str:
        header, cells = self.cells()
        return html_table("TradeOff", header, cells)


def _cells(row: Mapping[str, Any]) -> list[str]:
    budget = "as it is" if row["budget"] is None else f"{row['budget']:g}"
    change = "" if row["change"] is None else f"{row['change']:+.4g}"
    latency = "" if row["latency"] is None else f"{row['latency'] * 1e3:.3g} ms"
    return [
        budget, f"{row['kept']:.1%}", f"{row['parameters']:,}", str(row["n_split"]),
        _number(row["predicted_loss"]), _number(row["measured"]), change, latency,
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def check_budgets(budgets: Sequence[float]) -> list[float]:
    """Return budgets as numbers, the largest first; raise if there are none or two are equal."""
    try:
        numbers = [float(budget) for budget in budgets]
    except (TypeError, ValueError):
        raise InvalidValueError(
            f"`budgets` is {budgets!r}; expected shares of the parameters, such as (0.9, 0.8)."
        ) from None
    if not numbers or len(set(numbers)) < len(numbers):
        raise InvalidValueError(f"`budgets` is {budgets!r}; expected at least one, each once.")
    return sorted(numbers, reverse=True)
