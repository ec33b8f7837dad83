"""Reports over many matrices: `analyze_many` and the table, files and pages of its `Report`."""

import csv
import difflib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rmtspec._files import PathLike, read_json, write_atomically
from rmtspec._records import plain
from rmtspec._text import grouped, printable, text
from rmtspec.errors import (
    FileError,
    InvalidValueError,
    MissingDependencyError,
)
from rmtspec.report.matrix_report import COLUMNS, MatrixReport

if TYPE_CHECKING:
    import pandas as pd

#: Version of the JSON format.
SCHEMA = 1
#: Suffixes that `Report.save` knows.
SUFFIXES = (".csv", ".json", ".html")
#: Matrices shown by `repr`.
_SHOWN = 60


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Report:
    """What `analyze_many` found.

    Attributes
    ----------
    rows : list of dict
        One flat JSON-ready row per matrix, in the order given (`MatrixReport.to_dict`); None
        where a number could not be computed, the row's "reason" says why.
    skipped : list of dict
        "name" and "reason" of what could not be analysed at all.
    settings : dict
        Every option of the analysis.
    versions : dict
        Of rmtspec, numpy, scipy, numba and python.
    matrices : dict of str to MatrixReport
        The full results by name; empty for a report read from a file.
    totals : dict of str to int
        Sizes of the whole model before and after, where an adapter knows it: "parameters_before",
        "parameters_after", "bytes_before", "bytes_after"; else empty.
    """

    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    settings: dict[str, Any]
    versions: dict[str, str]
    matrices: dict[str, MatrixReport]
    totals: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, path: PathLike) -> Self:
        """Read a report, or a plan, that `to_json` wrote.

        Raises
        ------
        FileError
            No such file, no JSON, no report, or one of a later version of the format.
        """
        return cls.from_dict(read_json(path, "a report", SCHEMA), str(path))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], owner: str = "The mapping") -> Self:
        """Return the report whose `to_dict` is given; `owner` is what an error calls it.

        Raises
        ------
        FileError
            No report.
        """
        rows, skipped = content.get("rows"), content.get("skipped")
        settings, made_with = content.get("settings"), content.get("versions")
        if not (
            isinstance(rows, list)
            and isinstance(skipped, list)
            and all(isinstance(entry, dict) for entry in (*rows, *skipped))
            and isinstance(settings, dict)
            and isinstance(made_with, dict)
        ):
            raise FileError(
                f"{owner} is no report: expected lists of rows and skipped, settings and versions. "
                "Write one with Report.to_json."
            )
        return cls(rows, skipped, settings, made_with, {}, content.get("totals", {}))

    def row(self, name: str) -> dict[str, Any]:
        """Return the row of a matrix; in a plan it may be edited ("action", "rank").

        Raises
        ------
        InvalidValueError
            No row has that name.
        """
        for row in self.rows:
            if row["name"] == name:
                return row
        near = difflib.get_close_matches(str(name), [row["name"] for row in self.rows], n=3)
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise InvalidValueError(f"No row is named {name!r}; there are {len(self.rows)}.{hint}")

    @property
    def parameters_before(self) -> int:
        """Entries of all matrices in `rows`."""
        return sum(int(row["parameters_before"]) for row in self.rows)

    @property
    def parameters_after(self) -> int:
        """The same after the splits that save parameters."""
        return sum(int(row["parameters_after"]) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values, the content of `to_json`."""
        totals = {"totals": plain(self.totals)} if self.totals else {}
        return {
            "schema": SCHEMA,
            "rows": plain(self.rows),
            "skipped": plain(self.skipped),
            "settings": plain(self.settings),
            "versions": plain(self.versions),
            **totals,
        }

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows as a DataFrame, one column per key, nan where there is no number.

        Raises
        ------
        MissingDependencyError
            pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise MissingDependencyError(
                'to_pandas needs pandas, which is not installed: pip install "rmtspec[pandas]". '
                "`rows` holds the same as a list of dicts."
            ) from None
        columns = self._columns()
        rows = [[math.nan if row[c] is None else row[c] for c in columns] for row in self.rows]
        return pd.DataFrame(rows, columns=columns)

    def to_csv(self, path: PathLike | None = None) -> str:
        """Return the rows as CSV with a header, empty where there is no number.

        Written to `path` too, if given. What was skipped is in `skipped`, not in this table.
        """
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self._columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return _written(stream.getvalue(), path)

    def to_json(self, path: PathLike | None = None) -> str:
        """Return the report as JSON (null where there is no number); written to `path`, if given.

        The keys are schema (1), rows, skipped, settings and versions.
        """
        content = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        return _written(content + "\n", path)

    def to_html(self, path: PathLike | None = None) -> str:
        """Return the report as one HTML page that needs no other file; written to `path` too."""
        from jinja2 import Environment, StrictUndefined

        file = resources.files("rmtspec.report").joinpath("report_template.html")
        page = Environment(autoescape=True, undefined=StrictUndefined).from_string(
            file.read_text("utf-8")
        )
        header, cells = self.cells()
        content = page.render(
            header=header,
            cells=cells,
            numbers=[
                [(key, "" if value is None else text(value)) for key, value in row.items()]
                for row in self.rows
            ],
            skipped=self.skipped,
            settings=self.settings,
            versions=self.versions,
            kept=self.kept(),
            n_split=sum(row["saves"] for row in self.rows),
            n_accepted=sum(row["accepted"] for row in self.rows),
        )
        return _written(content, path)

    def save(self, path: PathLike) -> Path:
        """Write the report in the format that the suffix of `path` names.

        Parameters
        ----------
        path : path
            Ends in .csv, .json or .html; its folder must exist. A file there is replaced in one
            step, or left as it was if anything fails.

        Returns
        -------
        Path
            Of the file.

        Raises
        ------
        InvalidValueError
            Another suffix.
        FileError
            The file cannot be written.
        """
        suffix = check_suffix(path)
        writer = {".csv": self.to_csv, ".json": self.to_json, ".html": self.to_html}[suffix]
        writer(path)
        return Path(path)

    def kept(self) -> str:
        """Return in words the share of parameters kept: of the whole model where it is known."""
        if self.totals:
            before, after = self.totals["parameters_before"], self.totals["parameters_after"]
            return (
                f"{after:,} of the model's {before:,} parameters kept ({share_of(after, before)})"
            )
        before, after = self.parameters_before, self.parameters_after
        return f"{after:,} of {before:,} parameters kept ({share_of(after, before)})"

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the lines of the short table that people read, as text."""
        header = ["name", "size", "spikes", "rank", "fit", "kept", "reason"]
        if any("action" in row for row in self.rows):  # a plan
            header[-1:] = ["action", "error", "reason"]
        ends = [(row_cells(row), printable(row["reason"])) for row in self.rows]
        return header, [[*line[: len(header) - 1], reason] for line, reason in ends]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        title = f"Report: {len(self.rows)} analysed, {len(self.skipped)} skipped"
        lines = [f"{title}, {self.kept()}" if self.rows else title]
        header, cells = self.cells()
        if cells:
            shown = [header, *cells[:_SHOWN]]
            widths = [max(len(line[i]) for line in shown) for i in range(len(header))]
            lines += [
                "  " + "  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip()
                for line in shown
            ]
        if len(cells) > _SHOWN:
            lines.append(f"  ... {len(cells) - _SHOWN} more; `rows` and to_pandas() have all")
        lines += [f"  skipped {names}: {reason}" for reason, names in grouped(self.skipped)]
        return "\n".join(lines)

    def _columns(self) -> list[str]:
        return list(self.rows[0]) if self.rows else list(COLUMNS)


def check_suffix(path: PathLike) -> str:
    """Return the suffix of `path` in lower case if a report can be written in that format."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidValueError(
            f"{path} has the suffix {suffix!r}; expected one of {', '.join(SUFFIXES)}, "
            "which choose the format of the report."
        )
    return suffix


def _written(content: str, path: PathLike | None) -> str:
    if path is not None:
        write_atomically(path, content)
    return content


def row_cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of a row, all but the reason, which comes last."""
    fitted = row["variance"] is not None
    before, after = row["parameters_before"], row["parameters_after"]
    return [
        printable(row["name"]),
        f"{row['rows']} x {row['columns']}",
        str(row["n_spikes"]) if fitted else "-",
        str(row["rank"]),
        ("yes" if row["accepted"] else "no") if fitted else "-",
        share_of(after, before),
        row.get("action", ""),
        _error(row),
    ]


def _error(row: dict[str, Any]) -> str:
    """Return the relative error of the output, where inputs were given, else of the weight."""
    output, weight = row.get("output_error"), row.get("weight_error")
    if output is not None:
        return f"{output:.3f} (weight {weight:.3f})"
    return "" if weight is None else f"{weight:.3f}"


def share_of(part: int, whole: int) -> str:
    """Return part / whole in per cent, or a dash where there is no whole."""
    return f"{part / whole:.1%}" if whole else "-"
