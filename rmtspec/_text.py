"""Text for people: aligned lines, tables of notebooks, text that is safe on a terminal."""

import difflib
import html
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any


def aligned(title: str, pairs: Iterable[tuple[str, object]]) -> str:
    """Return a title and one ``name  value`` line per pair, the values in one column.

    Control characters in a line are spelled out.
    """
    shown = [(name, text(value)) for name, value in pairs]
    width = max(len(name) for name, _ in shown)
    lines = [title, *(f"  {name:<{width}}  {value}" for name, value in shown)]
    return "\n".join(map(printable, lines))


def text_table(
    header: Sequence[str], lines: Iterable[Sequence[str]], right: Collection[str] = ()
) -> list[str]:
    """Return the lines of an indented table; the columns titled in `right` are set to the right."""
    shown = [header, *lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    sides = [">" if title in right else "<" for title in header]
    padded = (
        (f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True))
        for line in shown
    )
    return [f"  {'  '.join(cells)}".rstrip() for cells in padded]


class Readable:
    """A result whose `repr` is that of `aligned`; notebooks show it as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        title, *lines = repr(self).splitlines()
        pairs = [re.split(r" {2,}", line.strip(), maxsplit=1) for line in lines]
        return html_table(title, (), [pair if len(pair) == 2 else ["", *pair] for pair in pairs])


def html_table(
    title: str,
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    notes: Iterable[str] = (),
    most: int = 1000,
) -> str:
    """Return a table for a notebook, in the colours of its theme; the first cell of a row names it.

    At most `most` lines are shown, and it is said how many are not.
    """
    left = "text-align: left; vertical-align: top"
    head = "".join(f'<th scope="col" style="{left}">{_safe(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row" style="{left}">{_safe(first)}</th>'
        + "".join(f'<td style="{left}">{_safe(cell)}</td>' for cell in cells)
        + "</tr>"
        for first, *cells in lines[:most]
    )
    more = [f"{len(lines) - most:,} more rows are not shown."] if len(lines) > most else []
    below = "".join(f"<p>{_safe(note.strip())}</p>" for note in (*notes, *more))
    return (
        '<div style="overflow-x: auto"><table class="rmtspec">'
        f'<caption style="{left}">{_safe(title)}</caption>'
        f"{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>{below}"
        "</div>"
    )


def _safe(words: str) -> str:
    return html.escape(printable(words))


def text(value: Any) -> str:
    """Return a short readable form: six digits for floats, yes or no for truth values."""
    if getattr(value, "shape", None) == ():  # a numpy scalar
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def by_reason(skipped: list[dict[str, str]]) -> dict[str, list[str]]:
    """Return the names of the skipped entries by their reason."""
    found: dict[str, list[str]] = {}
    for entry in skipped:
        found.setdefault(printable(entry["reason"]), []).append(printable(entry["name"]))
    return found


def grouped(skipped: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return (reason, count and first names) of the skipped entries, one pair per reason."""
    return [
        (reason, f"{len(names)} ({listed(names, most=3)})")
        for reason, names in by_reason(skipped).items()
    ]


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number and its noun: "1 matrix", "1,200 matrices"; `many` if it is not one + s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return the key that sorts names by the numbers in them: "layers.2" before "layers.10"."""
    pieces = re.findall(r"[0-9]{1,18}|[^0-9]+", name)
    return [(False, int(p), "") if p[0] in "0123456789" else (True, 0, p) for p in pieces]


def listed(names: Iterable[str], *, most: int) -> str:
    """Return the first `most` names and the number of the others: "a, b and 3 more"."""
    all_names = list(names)
    more = f" and {len(all_names) - most} more" if len(all_names) > most else ""
    return ", ".join(all_names[:most]) + more


def nearest(name: object, known: Iterable[str], meant: Sequence[str] = ()) -> str:
    """Return a hint with the names that may be meant or are similar, or ""."""
    near = meant or difflib.get_close_matches(str(name), list(known), n=3)
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""


def printable(words: str) -> str:
    """Return `words` with control characters, which a terminal would obey, escaped."""
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
