"""The cells of the short table of a report."""

from typing import Any

from rmtspec._text import printable
from rmtspec.report.options import STOCHASTIC
from rmtspec.terms import Verdict


def row_cells(row: dict[str, Any]) -> dict[str, str]:
    """Return the cells of a row by title; `components` is empty where the spikes are these."""
    fitted = row["variance"] is not None
    before, after = row["parameters_before"], row["parameters_after"]
    count = row.get("n_components")
    shown = "-" if count is None else str(count)
    cells = {
        "name": row["name"],
        "size": f"{row['rows']} x {row['columns']}",
        "spikes": ("~" if is_estimate(row) else "") + str(row["n_spikes"]) if fitted else "-",
        "rank": str(row["rank"]),
        "fit": "-" if not fitted or row["accepted"] is None else "yes" if row["accepted"] else "no",
        "components": "" if row.get("noise_model", "mp") == "mp" else shown,
        "verdict": _verdict(row),
        "kept": share_of(after, before),
        "action": row.get("action", ""),
        "error": _error(row),
        "predicted loss": _loss(row),
        "reason": row["reason"],
    }
    return {title: printable(cell) for title, cell in cells.items()}


def is_estimate(row: dict[str, Any]) -> bool:
    """Tell whether the row is of an estimated spectrum."""
    return row.get("method") == STOCHASTIC


def _verdict(row: dict[str, Any]) -> str:
    """Return the verdict, where it is "cannot tell" with the first words of its reason."""
    verdict = str(row.get("verdict", ""))
    if verdict != Verdict.CANNOT_TELL:
        return verdict
    why = str(row.get("verdict_reason", "")).split(":")[0].split(" (")[0]
    return f"{verdict}: {why}" if why else verdict


def _error(row: dict[str, Any]) -> str:
    """Return the relative error of the output if inputs were given, otherwise of the weight."""
    output, weight = row.get("output_error"), row.get("weight_error")
    if output is not None:
        return f"{output:.3f}" + ("" if weight is None else f" (weight {weight:.3f})")
    return "" if weight is None else f"{weight:.3f}"


def _loss(row: dict[str, Any]) -> str:
    """Return the growth of the loss that is predicted for the cut, which ranks the layers."""
    loss = row.get("predicted_loss")
    return "" if loss is None else f"{loss:.2g}"


def share_of(part: int, whole: int) -> str:
    """Return part / whole in per cent, or a dash if the whole is 0."""
    return f"{part / whole:.1%}" if whole else "-"
