"""The HTML page of a report, filled in: its table, the numbers that its figures are drawn from."""

import csv
import functools
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from typing import Any

from rmtspec._text import by_reason, counted, natural, printable, text
from rmtspec.report.cells import row_cells
from rmtspec.report.layer_kinds import Place, depths, place_of
from rmtspec.report.markdown import markdown_lines
from rmtspec.report.overview import overview_of, short_block
from rmtspec.report.page.curves import curves_of, estimated_curves
from rmtspec.report.page.headline import noise_sentence, saving_sentence
from rmtspec.report.report import Report
from rmtspec.report.rows import as_text
from rmtspec.terms import Verdict

#: The columns of the table: the title, and the key of the row that it is sorted by.
_COLUMNS = {
    "size": "parameters_before", "spikes": "n_spikes", "components": "n_components",
    "verdict": "verdict", "rank": "rank", "kept": "", "action": "action", "error": "weight_error",
    "predicted loss": "predicted_loss",
}  # fmt: skip
_NUMERIC = ("size", "spikes", "components", "rank", "kept", "error", "predicted loss")
#: A mark for each verdict, which also tells them apart without colours.
_MARKS = {
    Verdict.NOISE_LIKE: ("good", "✓"), Verdict.NOT_NOISE_LIKE: ("bad", "✗"),
    Verdict.NO_BULK_LEFT: ("bad", "∅"), Verdict.CANNOT_TELL: ("unsure", "?"),
}  # fmt: skip


def report_page(report: Report) -> str:
    """Return the page of a report: one file that needs no other, and asks for none."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    places = [place_of(printable(r["name"]), str(r.get("kind", ""))) for r in report.rows]
    titles = _titles(report)
    return environment.from_string(_asset("report.html")).render(
        style=_asset("report.css"), script=_asset("report.js"),
        libraries=[_asset("d3.min.js"), _asset("plot.umd.min.js")],
        data=_as_script(_data(report, places)), titles=titles, numeric=_NUMERIC,
        lines=[_line(row, place, titles) for row, place in zip(report.rows, places, strict=True)],
        title=_title(report), facts=_facts(report), sentences=_sentences(report),
        roles=sorted({place.role for place in places}, key=natural),
        verdicts=sorted({str(row.get("verdict")) for row in report.rows if row.get("verdict")}),
        skipped=_skipped(report), n_skipped=len(report.skipped),
        settings={key: _value(value) for key, value in report.settings.items()},
        versions=report.versions, source=report.source, version=version("rmtspec"),
    )  # fmt: skip


@functools.cache
def _asset(name: str) -> str:
    return resources.files("rmtspec.report.page").joinpath(name).read_text("utf-8")


def _as_script(data: Mapping[str, Any]) -> str:
    """Return JSON that no name can end: without < and > and what is not printable."""
    words = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for c in {c for c in words if c in "<>&" or not c.isprintable()}:
        words = words.replace(c, f"\\u{ord(c):04x}" if c in "<>&" else json.dumps(c)[1:-1])
    return words


def _title(report: Report) -> str:
    name = report.source.get("name")
    if name is None and len(report.rows) == 1:
        name = report.rows[0]["name"]
    return printable(str(name)) if name else "Weight matrices"


def _facts(report: Report) -> list[tuple[str, str]]:
    """Return what this is about: matrices, parameters, bytes."""
    facts = [("matrices", f"{len(report.rows):,}")]
    if report.skipped:
        facts.append(("skipped", f"{len(report.skipped):,}"))
    facts.append(("parameters in them", f"{report.parameters_before:,}"))
    whole = report.source.get("parameters", report.totals.get("parameters_before"))
    if whole is not None:
        facts.append(("parameters in all", f"{whole:,}"))
    size = report.source.get("bytes", report.totals.get("bytes_before"))
    if size is not None:
        facts.append(("size", _bytes(size)))
    return facts


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return counted(size, "byte")


def _sentences(report: Report) -> list[str]:
    more = (f"{words}." for words in (report.unsafe(), report.estimated()) if words)
    return [words for words in (noise_sentence(report), saving_sentence(report), *more) if words]


def _titles(report: Report) -> list[str]:
    """Return the titles of the columns that the rows have something for."""
    cells = [row_cells(row) for row in report.rows]
    needed = ("size", "spikes", "verdict", "rank", "kept")
    return [t for t in _COLUMNS if t in needed or any(line[t] not in ("", "-") for line in cells)]


def _line(row: Mapping[str, Any], place: Place, titles: Sequence[str]) -> dict[str, Any]:
    """Return the texts of a row of the table, and what it is sorted by."""
    cells = row_cells(dict(row))
    values = {title: row.get(_COLUMNS[title]) for title in titles}
    values["kept"] = row["parameters_after"] / max(row["parameters_before"], 1)
    verdict = str(row.get("verdict", ""))
    kind, mark = (
        _MARKS.get(Verdict(verdict), ("unsure", "")) if verdict in [*Verdict] else ("unsure", "")
    )
    return {
        "name": cells["name"], "role": place.role, "verdict": verdict, "class": kind,
        "mark": mark,
        "cells": [(t, cells[t], "" if values[t] is None else values[t]) for t in titles],
    }  # fmt: skip


def _data(report: Report, places: Sequence[Place]) -> dict[str, Any]:
    """Return the numbers that the script of the page draws and copies."""
    columns = report.columns()
    header, cells = report.cells()
    rows = [
        {
            "name": printable(row["name"]),
            "role": place.role,
            "depth": depth,
            "values": [text(value) if value is not None else "" for value in map(row.get, columns)],
            "csv": _csv_line([row.get(key) for key in columns]),
            "overview": overview_of(report, row),
            "curves": _curves(report, row["name"]),
        }
        for row, place, depth in zip(report.rows, places, depths(places), strict=True)
    ]
    head, lines = markdown_lines(header, cells)
    for row, line in zip(rows, lines, strict=True):
        row["markdown"] = line
    blocks = dict(zip(depths(places), (p.block or p.role for p in places), strict=True))
    return {
        "columns": columns, "csv": _csv_line(columns), "markdown": head, "rows": rows,
        "blocks": [short_block(blocks[depth]) for depth in sorted(blocks)],
    }  # fmt: skip


def _curves(report: Report, name: str) -> list[dict[str, Any]]:
    """Return what to draw of a matrix, nothing where only its row is known."""
    if name in report.estimates:
        return [estimated_curves(report.estimates[name])]
    return curves_of(report.matrices[name]) if name in report.matrices else []


def _csv_line(values: Sequence[Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(map(as_text, values))
    return stream.getvalue()


def _skipped(report: Report) -> list[tuple[str, str, list[str]]]:
    """Return each reason with the count and the names of what was skipped for it."""
    return [
        (reason, counted(len(names), "entry", "entries"), names)
        for reason, names in by_reason(report.skipped).items()
    ]


def _value(value: Any) -> str:
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return "none" if value is None else words if len(words) <= 300 else f"{words[:297]}..."
