"""The report on many matrices, and its table, files and pages."""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rmtspec._files.reading import read_json
from rmtspec._files.writing import PathLike, json_text, write_atomically
from rmtspec._records import plain
from rmtspec._text import counted, grouped, html_table, text_table
from rmtspec.errors import FileError, InvalidValueError
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate
from rmtspec.report.cells import is_estimate, row_cells, share_of
from rmtspec.report.chosen import ordered, row_named, test_of
from rmtspec.report.figures import report_figure
from rmtspec.report.frame import data_frame
from rmtspec.report.markdown import markdown_lines
from rmtspec.report.matrix_report import COLUMNS, MatrixReport
from rmtspec.report.rows import as_text, columns_of, wrong_in_report
from rmtspec.terms import Verdict

if TYPE_CHECKING:
    import pandas as pd

#: Version of the JSON format.
SCHEMA = 1
#: Suffixes that `Report.save` knows.
SUFFIXES = (".csv", ".json", ".html")
#: Number of matrices shown by `repr`.
_SHOWN = 60


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Report:
    """The results of `analyze_many`.

    Attributes
    ----------
    rows : list of dict
        One flat JSON-ready row per matrix, in the order given (`MatrixReport.to_dict`); None
        stands for a number that could not be computed, and the row's "reason" says why. The report
        iterates over them; ``report["fc1"]``, ``report[0]`` and ``report[2:5]`` give one or some.
    skipped : list of dict
        "name" and "reason" of each matrix that could not be analysed at all.
    settings : dict
        All options of the analysis.
    versions : dict
        Versions of rmtspec, numpy, scipy, numba and python; "eigenvalues" names the LAPACK that
        finds those of large matrices.
    matrices : dict of str to MatrixReport
        The full results by name; empty for a report read from a file.
    estimates : dict of str to SpectrumEstimate
        Those of the matrices whose spectra were estimated, with the method "stochastic".
    totals : dict of str to int
        Sizes of the whole model before and after, if an adapter knows it: "parameters_before",
        "parameters_after", "bytes_before", "bytes_after"; otherwise empty.
    source : dict
        What was analysed, as far as it is known: "name" of the file, folder or model, "parameters"
        and "bytes" of all its tensors, and the "fingerprint" of a checkpoint.
    """

    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    settings: dict[str, Any]
    versions: dict[str, str]
    matrices: dict[str, MatrixReport]
    totals: dict[str, int] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    estimates: dict[str, SpectrumEstimate] = field(default_factory=dict)

    @classmethod
    def from_json(cls, path: PathLike) -> Self:
        """Read a report or plan written by `to_json`.

        Raises
        ------
        FileError
            The file does not exist, is not JSON or not a report (the message names the row and the
            value), or has a later format version.
        """
        return cls.from_dict(read_json(path, "a report", SCHEMA), str(path))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], owner: str = "The mapping") -> Self:
        """Return the report whose `to_dict` is `content`; errors call it `owner`.

        Raises
        ------
        FileError
            The mapping is not a report, or a value in a row is missing or of another kind; keys
            that are not known are kept.
        """
        wrong = wrong_in_report(content)
        if wrong:
            raise FileError(
                f"{owner} is not a report: {wrong}. Correct it, or write one with Report.to_json."
            )
        return cls(
            content["rows"], content["skipped"], content["settings"],
            versions=content["versions"], matrices={}, totals=content.get("totals", {}),
            source=content.get("source", {}),
        )  # fmt: skip

    def row(self, name: str) -> dict[str, Any]:
        """Return the row of a matrix; in a plan it may be edited ("action", "rank").

        Raises
        ------
        InvalidValueError
            No row has that name.
        """
        return row_named(self.rows, name)

    def sort(self, by: str, *, descending: bool = False) -> "Report":
        """Return the report with its rows in another order.

        Parameters
        ----------
        by : str
            A key of the rows ("n_spikes"), or a title of the short table ("spikes", "size",
            "kept"). Names sort by the numbers in them, layers.2 before layers.10.
        descending : bool
            The largest first. Rows without a value come last in either order.

        Raises
        ------
        InvalidOptionError
            The rows have no such key.
        """
        return self._of(ordered(self.rows, by, descending))

    def filter(
        self, where: "str | re.Pattern[str] | Callable[[dict[str, Any]], object]"
    ) -> "Report":
        """Return the report on some of its matrices.

        Parameters
        ----------
        where : str, pattern or callable
            A regular expression to be found in the name, kind, verdict or action of a row, or a
            function of a row.

        Raises
        ------
        InvalidOptionError, InvalidOptionTypeError
            `where` is neither.

        Examples
        --------
        >>> import rmtspec
        >>> noise = rmtspec.ensembles.wishart(200, 100, rng=1)
        >>> report = rmtspec.analyze_many({"fc1": noise, "fc2": noise, "conv": noise})
        >>> [row["name"] for row in report.filter("^fc").sort("name", descending=True)]
        ['fc2', 'fc1']
        """
        fits = test_of(where)
        return self._of([row for row in self.rows if fits(row)])

    def _of(self, rows: list[dict[str, Any]]) -> "Report":
        """Return a report on these of its rows; that of a plan is no plan."""
        matrices = {r["name"]: self.matrices[r["name"]] for r in rows if r["name"] in self.matrices}
        names = {row["name"] for row in rows}
        return Report(
            rows, self.skipped, self.settings, versions=self.versions, matrices=matrices,
            source=self.source,
            estimates={name: e for name, e in self.estimates.items() if name in names},
        )  # fmt: skip

    @property
    def parameters_before(self) -> int:
        """Number of entries of all matrices in `rows`."""
        return sum(int(row["parameters_before"]) for row in self.rows)

    @property
    def parameters_after(self) -> int:
        """The same number after the splits that save parameters, of the matrices that pass.

        Those pass whose fit is accepted by the paper's gamma, if `cutoff` was given, and otherwise
        those whose verdict is "noise-like bulk"; in a plan, all that it cuts.
        """
        return sum(self._after(row) for row in self.rows)

    def _after(self, row: dict[str, Any]) -> int:
        return int(row["parameters_after" if self.passes(row) else "parameters_before"])

    def passes(self, row: dict[str, Any]) -> bool:
        """Tell whether what a row would save is counted: see `parameters_after`."""
        if "action" in row:
            return True
        if not row["reliable"]:
            return False
        if self._by_fit or "verdict" not in row:
            return bool(row["accepted"])
        return str(row["verdict"]) == Verdict.NOISE_LIKE

    @property
    def _by_fit(self) -> bool:
        """Whether the paper's gamma decides which matrices pass, and not the verdict."""
        return self.settings.get("cutoff") is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values, the content of `to_json`."""
        known = [key for key in ("totals", "source") if getattr(self, key)]
        keys = ["rows", "skipped", "settings", "versions", *known]
        return {"schema": SCHEMA, **{key: plain(getattr(self, key)) for key in keys}}

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows as a DataFrame, one column per key, nan for missing numbers.

        Raises
        ------
        MissingDependencyError
            pandas is not installed.
        """
        return data_frame(self.rows, self.columns())

    def to_csv(self, path: PathLike | None = None) -> str:
        """Return the rows as CSV with a header, missing numbers empty; write it to `path` if given.

        Skipped matrices are listed in `skipped`, not in this table. Text that a spreadsheet would
        take for a formula, because it begins with =, +, - or @, gets an apostrophe before it.
        """
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self.columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: as_text(value) for key, value in row.items()} for row in self.rows)
        return _written(stream.getvalue(), path)

    def to_json(self, path: PathLike | None = None) -> str:
        """Return the report as JSON, missing numbers as null; write it to `path` if given.

        The keys are schema (1), rows, skipped, settings and versions, and totals and source if
        known.
        """
        return json_text(self.to_dict(), path)

    def to_html(self, path: PathLike | None = None) -> str:
        """Return the report as one self-contained HTML page; write it to `path` if given.

        The page asks nothing of any network. It shows the spectrum of each matrix in `matrices`, so
        a report read from JSON has a page without them.
        """
        from rmtspec.report.page.page import report_page

        return _written(report_page(self), path)

    def to_markdown(self, path: PathLike | None = None) -> str:
        """Return the short table in Markdown; write it to `path` if given."""
        head, lines = markdown_lines(*self.cells())
        return _written("\n".join([head, *lines, ""]), path)

    def save(self, path: PathLike) -> Path:
        """Write the report in the format given by the suffix of `path`, and return the path.

        Parameters
        ----------
        path : path
            Ends in .csv, .json or .html; its folder must exist. An existing file is replaced in
            one step, or left as it was if anything fails.

        Raises
        ------
        InvalidValueError
            Any other suffix.
        FileError
            The file cannot be written.
        """
        suffix = check_suffix(path)
        writer = {".csv": self.to_csv, ".json": self.to_json, ".html": self.to_html}[suffix]
        writer(path)
        return Path(path)

    def plot(self, ax: Any = None, *, kind: str = "overview", legend: str | None = "inside") -> Any:
        """Draw the model by depth, one line per kind of layer, or its sizes before and after.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw, three of them for "overview"; a new pyplot figure if None.
        kind : {"overview", "spikes", "noise", "saving", "before-after"}
            By depth: spikes, share of noise, share of parameters saved, or these side by side
            (`rmtspec.plot.plot_overview`); parameters of each matrix before and after what the
            report or plan would do (`plot_before_after`).
        legend : {"inside", "outside"} or None
            Where the legend is.

        Returns
        -------
        matplotlib.axes.Axes
            Three of them for "overview".

        Raises
        ------
        InvalidTypeError
            `ax` is of the wrong type.
        InvalidValueError
            `kind` or `legend` is unknown, or the report has no matrices.
        """
        return report_figure(self, kind, ax, legend)

    def kept(self) -> str:
        """Return in words the share of parameters kept: of the whole model if that is known."""
        before = self.totals.get("parameters_before", self.parameters_before)
        after = self.totals.get("parameters_after", self.parameters_after)
        whole = f"the model's {before:,}" if self.totals else f"{before:,}"
        words = f"{after:,} of {whole} parameters kept ({share_of(after, before)})"
        failing = [row for row in self.rows if row["reliable"] and not self.passes(row)]
        more = sum(row["parameters_before"] - row["parameters_after"] for row in failing)
        if more and not self.totals:
            count = sum(row["saves"] for row in failing)
            ones = counted(count, "matrix", "matrices")
            judged = not self._by_fit and any("verdict" in row for row in failing)
            why = "not known to have a noise-like bulk" if judged else "whose fit is rejected"
            words += f"; {ones} {why} would save {more:,} more"
        return words

    def unsafe(self) -> str:
        """Return in words how many counts may be wrong, and how to count instead; "" if none."""
        rows = [
            row for row in self.rows
            if row["reliable"] and row["n_spikes"] is not None and "action" not in row
            and row.get("count_is_safe") is False
            and (self.settings.get("noise") == "mp" or is_estimate(row))
        ]  # fmt: skip
        count = len(rows)
        ones = "1 count of spikes is" if count == 1 else f"{count} counts of spikes are"
        words = f"{ones} not safe (see the verdict): count with noise='auto'" if count else ""
        return words + (", without the method 'stochastic'" if any(map(is_estimate, rows)) else "")

    def estimated(self) -> str:
        """Return in words how many spectra are estimates, which no test judges; "" if none."""
        count = sum(map(is_estimate, self.rows))
        ones = "1 spectrum is an estimate" if count == 1 else f"{count} spectra are estimates"
        return f"{ones} (~), with errors stated and nothing tested" if count else ""

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the lines of the short table for people, as text."""
        header = ["name", "size", "spikes", "fit", "components", "verdict", "rank", "kept"]
        header += ["action", "error"] if any("action" in row for row in self.rows) else []
        if any(row.get("predicted_loss") is not None for row in self.rows):
            header.append("predicted loss")
        lines = [row_cells(row) for row in self.rows]
        if not any(line["components"] for line in lines):
            header.remove("components")
        header.append("reason")
        return header, [[line[title] for title in header] for line in lines]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __contains__(self, name: object) -> bool:
        return any(row["name"] == name for row in self.rows)

    def __getitem__(self, key: str | int | slice) -> Any:
        """Return the row of that name or number, or a report on a slice of the rows."""
        if isinstance(key, str):
            return self.row(key)
        return self._of(self.rows[key]) if isinstance(key, slice) else self.rows[key]

    def _repr_html_(self) -> str:
        header, cells = self.cells()
        title, *notes = repr(dataclasses.replace(self, rows=[], matrices={})).splitlines()
        notes = [*filter(None, (self.unsafe(), self.estimated())), *notes]
        if self.rows:
            title = f"{len(self.rows)} analysed, {len(self.skipped)} skipped, {self.kept()}"
        return html_table(title, header, cells, notes=notes, most=_SHOWN)

    def __repr__(self) -> str:
        title = f"Report: {len(self.rows)} analysed, {len(self.skipped)} skipped"
        lines = [f"{title}, {self.kept()}" if self.rows else title]
        lines += [f"  {words}" for words in (self.unsafe(), self.estimated()) if words]
        header, cells = self.cells()
        if cells:
            lines += text_table(header, cells[:_SHOWN])
        if len(cells) > _SHOWN:
            lines.append(f"  ... {len(cells) - _SHOWN} more; `rows` and to_pandas() have all")
        lines += [f"  skipped {names}: {reason}" for reason, names in grouped(self.skipped)]
        return "\n".join(lines)

    def columns(self) -> list[str]:
        """Return the keys of the rows; those that are not columns of every report go last."""
        return columns_of(self.rows, COLUMNS) if self.rows else list(COLUMNS)


def check_suffix(path: PathLike) -> str:
    """Return the suffix of `path` in lower case; raise if it names no format of a report."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidValueError(
            f"{path} has the suffix {suffix!r}; expected one of {', '.join(SUFFIXES)}, "
            "which decides the format of the report."
        )
    return suffix


def _written(content: str, path: PathLike | None) -> str:
    if path is not None:
        write_atomically(path, content)
    return content
