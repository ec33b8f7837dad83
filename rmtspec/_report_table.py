"""The short table of a report that people read: one line of text per matrix."""

from typing import Any

from rmtspec._text import printable


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
