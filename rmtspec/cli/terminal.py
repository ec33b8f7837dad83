"""Tables on a terminal: as wide as this is, with names shortened in the middle."""

import io
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rmtspec._text import printable
from rmtspec.terms import Verdict

if TYPE_CHECKING:
    from rmtspec.matrix.spectrum_estimate import SpectrumEstimate
    from rmtspec.report.matrix_report import MatrixReport
    from rmtspec.report.report import Report

_GAP = 2
#: The name keeps at least this width; columns are left out before it gets shorter.
_NAME = 20
_SHORTEST_NAME = 12
#: Left out in this order where the terminal is too narrow.
_DROPPED = ("spectrum", "predicted loss", "error", "size", "components", "rank", "kept", "action")
_NUMERIC = ("spikes", "components", "rank", "kept", "error", "predicted loss")
_COLOURS = {
    Verdict.NOISE_LIKE: "green", Verdict.NOT_NOISE_LIKE: "red", Verdict.NO_BULK_LEFT: "red",
    Verdict.CANNOT_TELL: "yellow",
}  # fmt: skip
_BARS = " ▁▂▃▄▅▆▇█"
#: Characters of a drawn spectrum.
_WIDE = 12


def report_lines(report: "Report") -> list[str]:
    """Return the lines of the table of a report, styled for the terminal that stdout is."""
    return fitted_lines(_columns(report), numeric=_NUMERIC, dropped=_DROPPED)


def fitted_lines(
    columns: Mapping[str, Sequence[str]], *, numeric: Collection[str], dropped: Sequence[str] = ()
) -> list[str]:
    """Return the lines of a table as wide as the terminal that stdout is, styled for it.

    Parameters
    ----------
    columns : mapping of str to sequence of str
        The cells by title; the first column holds names, which lose their middle.
    numeric, dropped : sequences of str
        The titles of columns set to the right, and of those that may be left out, the first first.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size().columns
    shown = _fitting({title: list(cells) for title, cells in columns.items()}, width, dropped)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for title in shown:
        table.add_column(title, justify="right" if title in numeric else "left", no_wrap=True)
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*(Text(cell, _COLOURS.get(cell, "")) for cell in cells))
    stream = io.StringIO()
    Console(file=stream, width=max(width, 1000), force_terminal=True, highlight=False).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def _columns(report: "Report") -> dict[str, list[str]]:
    """Return the cells of every column that the rows have something for, by title."""
    header, lines = report.cells()
    cells = dict(zip(header, map(list, zip(*lines, strict=True)), strict=True))
    columns = {title: cells[title] for title in header if title not in ("fit", "reason")}
    if any(row.get("verdict") for row in report.rows):
        columns["verdict"] = [printable(str(row.get("verdict", "-"))) for row in report.rows]
    else:  # of a version without verdicts
        columns["verdict"] = cells["fit"]
    if (report.matrices or report.estimates) and _can_print(_BARS + "…"):
        columns["spectrum"] = [_drawn(report, row["name"]) for row in report.rows]
    return columns


def _can_print(words: str) -> bool:
    try:
        words.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _fitting(
    columns: dict[str, list[str]], width: int, dropped: Iterable[str]
) -> dict[str, list[str]]:
    """Return the columns that fit, with names as short as is needed."""
    from rich.cells import cell_len

    widths = {t: max(map(cell_len, [t, *cells])) for t, cells in columns.items()}
    first = next(iter(columns))
    left = iter([title for title in dropped if title in columns])

    def room() -> int:
        """Return what is left for the names."""
        return width - sum(widths[t] + _GAP for t in columns if t != first)

    while room() < min(widths[first], _NAME) and (title := next(left, "")):
        del columns[title]
    longest = max(room(), _SHORTEST_NAME)
    names = columns[first]
    if widths[first] > longest:  # then what most names end with tells least
        names = [name.removesuffix(".weight") or name for name in names]
    columns[first] = [shortened(name, longest) for name in names]
    return columns


def shortened(words: str, width: int) -> str:
    """Return words that are too wide without their middle, where a terminal shows them.

    >>> short = shortened("model.layers.11.self_attn.q_proj.weight", 20)
    >>> len(short), short[:6], short[-6:]
    (20, 'model.', 'weight')
    """
    from rich.cells import cell_len

    if cell_len(words) <= width:
        return words
    mark = "…" if _can_print("…") else "..."
    left = width - len(mark)
    return _start(words, left // 2) + mark + _start(words[::-1], left - left // 2)[::-1]


def _start(words: str, width: int) -> str:
    """Return as many of the first characters as fit."""
    from rich.cells import cell_len

    return "".join(_while_fitting(words, width, cell_len))


def _while_fitting(words: str, width: int, length: Any) -> Iterator[str]:
    for character in words:
        width -= length(character)
        if width < 0:
            return
        yield character


def _drawn(report: "Report", name: str) -> str:
    if name in report.estimates:
        return drawn_estimate(report.estimates[name])
    return drawn(report.matrices[name]) if name in report.matrices else ""


def drawn_estimate(estimate: "SpectrumEstimate") -> str:
    """Return the estimated histogram up to just beyond the threshold, in characters."""
    import numpy as np

    return _bars(estimate.density(np.linspace(0.0, 1.2 * estimate.threshold, _WIDE + 1))[0])


def drawn(matrix: "MatrixReport") -> str:
    """Return the histogram of the eigenvalues up to just beyond the threshold, in characters."""
    import numpy as np

    noise, fit = matrix.noise, matrix.fit
    decides = noise.model != "mp" and noise.law is not None
    values = (noise if decides else matrix).spectrum.eigenvalues
    end = 1.2 * (noise.threshold if decides else fit.threshold)
    if not np.isfinite(end):
        end = float(values[-1]) or 1.0
    return _bars(np.histogram(values, _WIDE, (0.0, end))[0])


def _bars(heights: Any) -> str:
    import numpy as np

    levels = np.ceil(heights / (heights.max() or 1) * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[level] for level in levels)
