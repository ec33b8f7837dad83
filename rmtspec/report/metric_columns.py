"""The columns that a row has only where metrics were asked for."""

from dataclasses import fields
from typing import Any

from rmtspec.matrix.metrics import Metrics

#: Columns that hold a number, or none; and the one that says why there is none.
METRIC_NUMBERS = tuple(f.name for f in fields(Metrics) if f.name != "reason")
METRIC_REASON = "metrics_reason"


def metric_columns(metrics: Metrics) -> dict[str, Any]:
    """Return metrics as columns of a row: those of `Metrics`, and "metrics_reason"."""
    columns = metrics.to_dict()
    return {METRIC_REASON if name == "reason" else name: v for name, v in columns.items()}
