"""Comparison: what changed between two checkpoints, as a table, files and a page."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtspec._files.writing import PathLike, json_text, write_atomically
from rmtspec._records import plain
from rmtspec._text import counted, grouped, html_table, printable, text, text_table
from rmtspec.comparison.change import MatrixChange
from rmtspec.comparison.columns import COLUMNS
from rmtspec.report.chosen import row_named
from rmtspec.report.frame import data_frame
from rmtspec.report.report import check_suffix
from rmtspec.report.rows import as_text
from rmtspec.terms import Change

if TYPE_CHECKING:
    import pandas as pd

#: Version of the JSON format.
SCHEMA = 1
#: Number of matrices shown by `repr`.
_SHOWN = 60
#: Titles of the short table, and those whose cells are numbers.
HEADER = ("name", "size", "change", "relative", "rank", "spikes", "edge", "overlap", "touched",
          "reason")  # fmt: skip
NUMBERS = ("relative", "rank", "spikes", "edge", "overlap", "touched")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Comparison:
    """The results of `rmtspec.compare`: a row for each couple of matrices.

    Attributes
    ----------
    rows : list of dict
        One flat JSON-ready row per couple, in the order of the matrices before; None stands for a
        number that is not known, and the row's "reason" says why.
    skipped : list of dict
        "name" and "reason" of each tensor without a row.
    settings : dict
        "a" and "b", what was compared, "names", how they were matched if they differ, and the
        options.
    versions : dict
        Versions of rmtspec, numpy, scipy, numba and python.
    note : str
        What to know about the whole; empty if nothing.
    matrices : dict of str to MatrixChange
        The full results by name.
    """

    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    settings: dict[str, Any]
    versions: dict[str, str]
    note: str = ""
    matrices: Mapping[str, MatrixChange] = field(default_factory=dict)

    def row(self, name: str) -> dict[str, Any]:
        """Return the row of a matrix, by its name before.

        Raises
        ------
        InvalidValueError
            No row has that name.
        """
        return row_named(self.rows, name)

    @property
    def counts(self) -> dict[str, int]:
        """Number of matrices by kind of change, in the order of `rmtspec.terms.Change`."""
        found = Counter(row["change"] for row in self.rows)
        return {kind.value: found[kind] for kind in Change if found[kind]}

    def summary(self) -> str:
        """Return in words how many matrices changed, and how."""
        each = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
        words = f"{counted(len(self.rows), 'matrix', 'matrices')} compared"
        return f"{words}: {each}" if each else words

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready values, the content of `to_json`."""
        names = ("note", "rows", "skipped", "settings", "versions")
        return {"schema": SCHEMA, **{name: plain(getattr(self, name)) for name in names}}

    def to_json(self, path: PathLike | None = None) -> str:
        """Return `to_dict` as JSON, missing numbers as null; write it to `path` if given."""
        return json_text(self.to_dict(), path)

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows as a DataFrame, nan for missing numbers.

        Raises
        ------
        MissingDependencyError
            pandas is not installed.
        """
        return data_frame(self.rows, list(COLUMNS))

    def to_csv(self, path: PathLike | None = None) -> str:
        """Return the rows as CSV with a header, missing numbers empty; write it to `path` if given.

        Text that a spreadsheet would take for a formula gets an apostrophe before it.
        """
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: as_text(value) for key, value in row.items()} for row in self.rows)
        return _written(stream.getvalue(), path)

    def to_html(self, path: PathLike | None = None) -> str:
        """Return the comparison as one self-contained HTML page; write it to `path` if given."""
        from jinja2 import Environment, StrictUndefined

        file = resources.files("rmtspec.comparison").joinpath("comparison_template.html")
        environment = Environment(autoescape=True, undefined=StrictUndefined)
        header, cells = self.cells()
        numbers = [
            [(key, text(row[key])) for key in COLUMNS if row[key] not in (None, "")]
            for row in self.rows
        ]
        page = environment.from_string(file.read_text("utf-8")).render(
            header=header, lines=list(zip(cells, numbers, strict=True)), numeric=NUMBERS,
            summary=self.summary(), note=self.note, skipped=grouped(self.skipped),
            settings=self.settings, versions=self.versions,
        )  # fmt: skip
        return _written(page, path)

    def save(self, path: PathLike) -> Path:
        """Write the comparison in the format of the suffix of `path`: .csv, .json or .html.

        Raises
        ------
        InvalidValueError
            Any other suffix.
        FileError
            The file cannot be written.
        """
        writers = {".csv": self.to_csv, ".json": self.to_json, ".html": self.to_html}
        writers[check_suffix(path)](path)
        return Path(path)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the lines of the short table for people, as text."""
        lines = [_cells(row) for row in self.rows]
        wanted = ("name", "size", "change", "relative", "rank")
        header = [t for t in HEADER if t in wanted or any(line[t] for line in lines)]
        return header, [[line[title] for title in header] for line in lines]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __repr__(self) -> str:
        lines = [f"Comparison: {self.summary()}"]
        lines += [f"  {words}" for words in self.remarks()]
        header, cells = self.cells()
        if cells:
            lines += text_table(header, cells[:_SHOWN])
        if len(cells) > _SHOWN:
            lines.append(f"  ... {len(cells) - _SHOWN} more; `rows` and to_pandas() have all")
        lines += [f"  skipped {names}: {reason}" for reason, names in grouped(self.skipped)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        header, cells = self.cells()
        notes = [f"Skipped {names}: {reason}" for reason, names in grouped(self.skipped)]
        title = f"Comparison: {self.summary()}"
        return html_table(title, header, cells, notes=[*self.remarks(), *notes], most=_SHOWN)

    def remarks(self) -> list[str]:
        """Return what to know about the whole, in words: the note, and how names were matched."""
        return [printable(words) for words in (self.note, self.settings.get("names")) if words]


def _written(content: str, path: PathLike | None) -> str:
    if path is not None:
        write_atomically(path, content)
    return content


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of a row by title."""
    renamed = "" if row["name_after"] == row["name"] else f" = {row['name_after']}"
    cells = {
        "name": f"{row['name']}{renamed}",
        "size": f"{row['rows']} x {row['columns']}",
        "change": row["change"],
        "relative": _relative(row),
        "rank": _rank(row),
        "spikes": _drift(row, "n_spikes"),
        "edge": _edge(row),
        "overlap": _overlap(row),
        "touched": f"{row['spikes_touched']} of {row['spikes_tried']}" * bool(row["spikes_tried"]),
        "reason": row["reason"],
    }
    return {title: printable(cell) for title, cell in cells.items()}


def _relative(row: Mapping[str, Any]) -> str:
    share = row["relative_change"]
    if share is not None:
        return f"{share:.2%}" if share >= 1e-4 else f"{share:.1e}" if share else "0"
    norm = row["norm_of_change"]
    return "-" if norm is None else f"{norm:.3g}"


def _rank(row: Mapping[str, Any]) -> str:
    if row["rank"] is None:
        return "-"
    low, high = row["rank_low"], row["rank_high"]
    sure = row["rank_is_exact"] or row["change"] == Change.ROUNDING
    return str(row["rank"]) if sure else f"{row['rank']} ({low} to {high})"


def _drift(row: Mapping[str, Any], key: str) -> str:
    before, after = row[f"{key}_before"], row[f"{key}_after"]
    if before is None and after is None:
        return ""
    ends = ["-" if value is None else str(value) for value in (before, after)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _edge(row: Mapping[str, Any]) -> str:
    """Return how far the edge of the bulk moved, on the scale of singular values."""
    before, after = row["bulk_edge_before"], row["bulk_edge_after"]
    if not before or after is None:
        return ""
    moved = math.sqrt(after / before) - 1.0
    return f"{moved:+.2%}" if abs(moved) >= 5e-5 else "0"


def _overlap(row: Mapping[str, Any]) -> str:
    left, right = row["left_overlap"], row["right_overlap"]
    if left is None or right is None:
        return ""
    return f"{min(left, right):.3f} of {row['components']}"
