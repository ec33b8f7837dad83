"""The functional noise test: whether a figure of the user's own survives sign flips of the bulk."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rmtspec._files.writing import PathLike, json_text
from rmtspec._records import plain
from rmtspec._text import grouped, html_table, printable, text_table
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.noise import fit_noise
from rmtspec.terms import Need, Why

#: Version of the JSON format.
SCHEMA = 1
#: Level of the intervals.
LEVEL = 0.95
#: The default tolerance, as a share of the figure of the unchanged model.
TOLERATED = 0.01
#: Name of the row on all matrices at once.
TOGETHER = "all together"
_SHOWN = 60


class Components(NamedTuple):
    """Number of leading components that are no part of the bulk, or why there is no such number."""

    number: int
    reason: str = ""


def components_of(W: ArrayLike) -> Components:
    """Return how many leading components of a matrix stand above its bulk."""
    fit = fit_noise(W)
    if math.isnan(fit.n_components):
        return Components(0, fit.reason)
    return Components(int(fit.n_components))


class Change(NamedTuple):
    """The mean change of a figure, with its standard error and the ends of its interval."""

    mean: float
    change: float
    standard_error: float
    low: float
    high: float


def change_of(values: Sequence[float], baseline: Sequence[float]) -> Change:
    """Return the change of the mean from the baseline's, with its t interval over the draws.

    If the figures of the unchanged model vary, their spread counts too (Welch's interval).
    """
    from scipy.special import stdtrit

    mean, base = float(np.mean(values)), float(np.mean(baseline))
    parts = [float(np.var(each, ddof=1)) / len(each) for each in (values, baseline)]
    squared = sum(parts)
    change, error, reach = mean - base, math.sqrt(squared), 0.0
    if error > 0.0:
        shares = zip(parts, (len(values) - 1, len(baseline) - 1), strict=True)
        freedom = 1.0 / sum((part / squared) ** 2 / size for part, size in shares)
        reach = float(stdtrit(freedom, (1.0 + LEVEL) / 2.0)) * error
    return Change(mean, change, error, low=change - reach, high=change + reach)


def need_of(change: Change, tolerance: float) -> Need:
    """Return the verdict: where the interval lies, compared with a loss that is tolerated."""
    if change.high < -tolerance:
        return Need.NEEDED
    return Need.NOT_NEEDED if change.low >= -tolerance else Need.CANNOT_TELL


def measured(
    row: dict[str, Any], values: Sequence[float], baseline: Sequence[float], tolerance: float
) -> dict[str, Any]:
    """Return a row with the figures of its draws, and what follows from them."""
    lost = sum(not math.isfinite(value) for value in values)
    if lost:
        nothing = Change(*[math.nan] * 5)
        why = Why.NO_FIGURE.words(count=lost, draws=len(values))
        reason = "; ".join(filter(None, (row["reason"], why)))
        row = {**row, **nothing._asdict(), "verdict": Need.CANNOT_TELL, "reason": reason}
    else:
        change = change_of(values, baseline)
        row = {**row, **change._asdict(), "verdict": need_of(change, tolerance)}
    return dict(plain({**row, "values": list(values)}))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class NoiseTest:
    """What `noise_test` of an adapter measured.

    Attributes
    ----------
    baseline : float
        The figure of the unchanged model: the mean of `baseline_values`.
    baseline_values : list of float
        Two calls on the unchanged model, or as many as draws if the first two differ.
    rows : list of dict
        One JSON-ready row per matrix: "name", "kind", "rows", "columns", "n_components" (leading
        components that stay), "bulk_share" (share of ||W||^2 that is flipped), "values" (the figure
        of each draw), "mean", "change" (mean less `baseline`), "standard_error", "low" and "high"
        (ends of the 95 % t interval of the change over draws), "verdict" (a `rmtspec.terms.Need`),
        "reason" (what the row cannot be relied on for). None stands for a missing number.
    together : dict or None
        The same with all these matrices flipped at once; None if that was not asked for.
    tolerance : float
        The loss up to which a function is said to do without the bulk.
    skipped : list of dict
        "name" and "reason" of the matrices that were not tested.
    settings, versions : dict
        The options, and the versions of the packages that the numbers depend on.
    """

    baseline: float
    baseline_values: list[float]
    rows: list[dict[str, Any]]
    together: dict[str, Any] | None
    tolerance: float
    skipped: list[dict[str, str]]
    settings: dict[str, Any]
    versions: dict[str, str]

    def row(self, name: str) -> dict[str, Any]:
        """Return the row of a matrix.

        Raises
        ------
        InvalidValueError
            No row has that name.
        """
        for row in self.rows:
            if row["name"] == name:
                return row
        known = ", ".join(repr(row["name"]) for row in self.rows[:5])
        raise InvalidValueError(f"No row is named {name!r}; the first ones are {known}.")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {"schema": SCHEMA, **{name: plain(getattr(self, name)) for name in self.__slots__}}

    def to_json(self, path: PathLike | None = None) -> str:
        """Return `to_dict` as JSON, missing numbers as null; write it to `path` if given."""
        return json_text(self.to_dict(), path)

    def __repr__(self) -> str:
        draws = self.settings["draws"]
        title = f"NoiseTest: {len(self.rows)} tested in {draws} draws each, {len(self.skipped)}"
        lines = [
            f"{title} skipped; the unchanged model has {self.baseline:.6g}, "
            f"a loss of {self.tolerance:.3g} is tolerated"
        ]
        cells = [_cells(row) for row in self.rows[:_SHOWN]]
        if self.together is not None:
            cells.append(_cells(self.together))
        lines += text_table(_HEADER, cells)
        if len(self.rows) > _SHOWN:
            lines.append(f"  ... {len(self.rows) - _SHOWN} more; `rows` has all")
        lines += [f"  skipped {names}: {reason}" for reason, names in grouped(self.skipped)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = self.rows if self.together is None else [*self.rows, self.together]
        notes = [f"Skipped {names}: {reason}" for reason, names in grouped(self.skipped)]
        title = repr(self).splitlines()[0]
        return html_table(title, _HEADER, [_cells(row) for row in rows], notes=notes)


_HEADER = ("name", "size", "components", "flipped", "change", "95 %", "verdict")


def _cells(row: Mapping[str, Any]) -> list[str]:
    size = "" if row["rows"] is None else f"{row['rows']} x {row['columns']}"
    count = "" if row["n_components"] is None else str(row["n_components"])
    change, interval = "-", ""
    if row["change"] is not None:
        change, interval = f"{row['change']:+.4g}", f"{row['low']:+.4g} to {row['high']:+.4g}"
    verdict = "; ".join(filter(None, (row["verdict"], printable(row["reason"]))))
    share = "" if row["bulk_share"] is None else f"{row['bulk_share']:.1%}"
    return [printable(row["name"]), size, count, share, change, interval, verdict]
