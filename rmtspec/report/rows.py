"""What the rows of a report hold: checked where a report is read from a file or a mapping."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rmtspec.report.metric_columns import METRIC_NUMBERS, METRIC_REASON

#: No count is larger, so that shares of counts are floats.
_MOST = 2**63 - 1
#: What a value may be: the check, and how to say what was expected.
_Rule = tuple[Callable[[Any], bool], str]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= _MOST)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _or_null(rule: _Rule) -> _Rule:
    return lambda value: value is None or rule[0](value), f"{rule[1]}, or null"


_TEXT: _Rule = (_is_text, "text")
_COUNT: _Rule = (_is_count, "a whole number from 0")
_NUMBER: _Rule = (_is_number, "a number")
_TRUTH: _Rule = (_is_truth, "true or false")

#: Without these no table can be made.
_NEEDED: dict[str, _Rule] = {
    "name": _TEXT, "rows": _COUNT, "columns": _COUNT, "variance": _or_null(_NUMBER),
    "n_spikes": _or_null(_COUNT), "accepted": _or_null(_TRUTH), "rank": _COUNT, "saves": _TRUTH,
    "parameters_before": _COUNT, "parameters_after": _COUNT, "reliable": _TRUTH, "reason": _TEXT,
}  # fmt: skip
#: These may be absent: earlier versions, and other kinds of reports, lack some.
_KNOWN: dict[str, _Rule] = {
    **dict.fromkeys(
        ("kind", "dtype", "method", "verdict", "verdict_reason", "noise_model", "action", "layer",
         "form", "reader"), _TEXT,
    ),
    **dict.fromkeys(
        ("note", "rule", "refinement", "noise_remarks", "quantised"), _or_null(_TEXT)
    ),
    **dict.fromkeys(
        ("n", "p", "numerical_rank", "bytes_before", "bytes_after", "rank_before",
         "multiply_adds_before", "multiply_adds_after"), _COUNT,
    ),
    **dict.fromkeys(
        ("n_components", "at_least", "components_low", "n_spikes_low", "n_spikes_high"),
        _or_null(_COUNT),
    ),
    **dict.fromkeys(
        ("ratio", "lower_edge", "bulk_edge", "threshold", "largest_eigenvalue", "fit_statistic",
         "fit_pvalue", "components_high", "n_removed", "bulk_pvalue", "bulk_ks", "energy_share",
         "noise_variance", "noise_variance_low", "noise_variance_high", "lower_threshold",
         "n_below", "rounding_variance", "rounding_edge", "n_below_rounding", "keep", "break_even",
         "seconds", "variance_error", "bulk_edge_error", "weight_error", "output_error",
         "predicted_loss", "norm_of_change"),
        _or_null(_NUMBER),
    ),
    "count_is_safe": _or_null(_TRUTH),
    **dict.fromkeys(METRIC_NUMBERS, _or_null(_NUMBER)), METRIC_REASON: _TEXT,
}  # fmt: skip


def wrong_in_report(content: Mapping[str, Any]) -> str:
    """Return what makes the content of a file no report, in words; "" if nothing does."""
    for key, kind, words in (
        ("rows", list, "a list"), ("skipped", list, "a list"), ("settings", dict, "an object"),
        ("versions", dict, "an object"), ("totals", dict, "an object"),
        ("source", dict, "an object"),
    ):  # fmt: skip
        value = content.get(key, {} if key in ("totals", "source") else None)
        if not isinstance(value, kind):
            return f"{key!r} is {_shown(value)}; expected {words}"
    wrong = _wrong_in(content.get("totals", {}), {}, dict.fromkeys(_TOTALS, _COUNT))
    if wrong:
        return f"in 'totals' {wrong}"
    known = {"name": _TEXT, "parameters": _COUNT, "bytes": _COUNT, "fingerprint": _TEXT}
    wrong = _wrong_in(content.get("source", {}), {}, known)
    if wrong:
        return f"in 'source' {wrong}"
    entry = {"name": _TEXT, "reason": _TEXT}
    for key, needed, known in (("rows", _NEEDED, _KNOWN), ("skipped", entry, {})):
        for number, row in enumerate(content[key], 1):
            if not isinstance(row, dict):
                return f"entry {number} of {key!r} is {_shown(row)}; expected an object"
            planned = isinstance(row.get("action"), str)  # its rank may be edited, and is checked
            left_out = ("rank",) if planned and "rank" in row else ()
            wrong = _wrong_in(row, needed, known, left_out)
            if wrong:
                return f"in entry {number} of {key!r}, {_shown(row.get('name'))}, {wrong}"
    return ""


_TOTALS = ("parameters_before", "parameters_after", "bytes_before", "bytes_after")


def _wrong_in(
    row: Mapping[str, Any],
    needed: Mapping[str, _Rule],
    known: Mapping[str, _Rule],
    left_out: Iterable[str] = (),
) -> str:
    """Return which value of a row is missing or of another kind; "" if none is."""
    for key, (fits, expected) in {**needed, **known}.items():
        if key in left_out:
            continue
        if key in row and not fits(row[key]):
            return f"{key!r} is {_shown(row[key])}; expected {expected}"
        if key not in row and key in needed:
            return f"there is no {key!r}; expected {expected}"
    return ""


def known_keys() -> list[str]:
    """Return the keys that rows of reports and plans may have."""
    return [*_NEEDED, *_KNOWN]


def columns_of(rows: Iterable[Mapping[str, Any]], first: Iterable[str]) -> list[str]:
    """Return the keys of rows, those in `first` before all others, as they come."""
    found = dict.fromkeys(key for row in rows for key in row)
    return [key for key in first if key in found] + [key for key in found if key not in {*first}]


def as_text(value: Any) -> Any:
    """Return a value for a cell of CSV: text that would be a formula with an apostrophe first."""
    if not isinstance(value, str) or value[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return value
    with contextlib.suppress(ValueError):
        float(value)  # a number is no formula
        return value
    return f"'{value}"


def _shown(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."
