"""Some of the rows of a report, or all in another order."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rmtspec._text import natural, nearest
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError, InvalidValueError

Row = Mapping[str, Any]
#: The short titles of tables, and the keys that they show.
TITLES = {
    "size": "parameters_before", "spikes": "n_spikes", "components": "n_components",
    "fit": "fit_pvalue", "error": "weight_error", "predicted loss": "predicted_loss",
}  # fmt: skip


def row_named(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the row of that name; raise `InvalidValueError` with what is near if there is none."""
    for row in rows:
        if row["name"] == name:
            return row
    hint = nearest(name, (row["name"] for row in rows))
    raise InvalidValueError(f"No row is named {name!r}; there are {len(rows)}.{hint}")


def ordered(rows: Iterable[dict[str, Any]], by: str, descending: bool) -> list[dict[str, Any]]:
    """Return the rows in the order of a key or title; those without a value come last."""
    listed = list(rows)
    key = sort_key(listed, by)
    known = [row for row in listed if key(row) is not None]
    try:
        known.sort(key=key, reverse=descending)
    except TypeError:
        raise InvalidOptionError(
            f"`by` is {by!r}, whose values are of several kinds", "a key of numbers or of text"
        ) from None
    return known + [row for row in listed if key(row) is None]


def sort_key(rows: Iterable[Row], by: str) -> Callable[[Row], Any]:
    """Return the function of a row that `by` sorts by, None for a missing value."""
    known = dict.fromkeys(key for row in rows for key in row)
    if not isinstance(by, str):
        raise InvalidOptionTypeError(f"`by` is {by!r}", "a key of the rows, as text")
    if by == "kept":
        return lambda row: row["parameters_after"] / max(row["parameters_before"], 1)
    key = TITLES.get(by, by)
    if known and key not in known:
        hint = nearest(by, [*TITLES, "kept", *known]).strip()
        raise InvalidOptionError(f"`by` is {by!r}", "a key of the rows, such as 'n_spikes'", hint)

    def value(row: Row) -> Any:
        found = row.get(key)
        if isinstance(found, str):
            return natural(found)
        return float(found) if isinstance(found, int) else found

    return value


def test_of(where: Any) -> Callable[[Row], bool]:
    """Return the test of a row that `where` is: a predicate, or an expression found in its words.

    These are name, kind, verdict and action.
    """
    if callable(where):
        return lambda row: bool(where(row))
    if not isinstance(where, str | re.Pattern):
        raise InvalidOptionTypeError(
            f"`where` is a {type(where).__name__}", "a regular expression, or a function of a row"
        )
    try:
        found = re.compile(where).search
    except re.error as error:
        raise InvalidOptionError(
            f"`where` is {where!r} ({error})", "a regular expression",
            "Write a backslash before characters such as ( and [ to find them.",
        ) from None  # fmt: skip
    words = ("name", "kind", "verdict", "action")
    return lambda row: any(found(str(row[key])) for key in words if row.get(key) is not None)
