"""What the overview of a model shows of each of its matrices."""

from typing import TYPE_CHECKING, Any

from rmtspec._text import printable
from rmtspec.report.cells import row_cells

if TYPE_CHECKING:
    from rmtspec.report.report import Report

#: Characters of a label on the axis of blocks.
_LABEL = 12


def overview_of(report: "Report", row: dict[str, Any]) -> dict[str, Any]:
    """Return what the overview shows of a matrix, and whether it counts."""
    count = row.get("n_components")
    share = row.get("energy_share")
    before, after = row["parameters_before"], row["parameters_after"]
    return {
        "spikes": row["n_spikes"] if count is None else count,
        "noise": None if share is None else round(1.0 - share, 5),
        "saving": round(1.0 - after / before, 5) if before else None,
        "passes": report.passes(row),
        "size": row_cells(row)["size"],
        "verdict": str(row.get("verdict", "")),
    }


def short_block(block: str) -> str:
    """Return the end of the name of a block that tells it from the others: "layers.3" is "3"."""
    pieces = block.split(".")
    numbers = [piece for piece in pieces if piece[-1:].isdecimal()]
    shown = printable(".".join(numbers[-2:]) or block)
    return shown if len(shown) <= _LABEL else f"{shown[: _LABEL - 3]}..."
