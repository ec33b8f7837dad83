"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_lines(header: Sequence[str], lines: Iterable[Sequence[str]]) -> tuple[str, list[str]]:
    """Return the head of a table in Markdown, two lines, and one line for each of its rows."""
    return f"{_line(header)}\n|{'---|' * len(header)}", [_line(line) for line in lines]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(words: str) -> str:
    """Return text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|~#" else c for c in words)
