"""One report on several models or files."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rmtspec.report.matrix_report import MatrixReport
from rmtspec.report.report import Report


def joined(reports: Mapping[str, Report]) -> Report:
    """Return the reports as one, each name after the label of its report: "last/fc.weight".

    A matrix that bears the name of its report, as that of a .npy file does, keeps it. The settings
    and versions are those of the first report.
    """

    def named(label: str, name: str) -> str:
        return name if name == label else f"{label}/{name}"

    first = next(iter(reports.values()))
    matrices: dict[str, MatrixReport] = {}
    totals: dict[str, int] = {}
    for label, report in reports.items():
        for name, matrix in report.matrices.items():
            full = named(label, name)
            matrices[full] = dataclasses.replace(matrix, name=full)
    estimates = {
        named(label, name): estimate
        for label, report in reports.items()
        for name, estimate in report.estimates.items()
    }
    source: dict[str, Any] = {"name": ", ".join(reports)}
    for key in ("parameters", "bytes"):
        if all(key in report.source for report in reports.values()):
            source[key] = sum(report.source[key] for report in reports.values())
    if all(report.totals for report in reports.values()):
        totals = {
            name: sum(report.totals[name] for report in reports.values()) for name in first.totals
        }
    return Report(
        rows=[
            {**row, "name": named(label, row["name"])}
            for label, report in reports.items()
            for row in report.rows
        ],
        skipped=[
            {**entry, "name": named(label, entry["name"])}
            for label, report in reports.items()
            for entry in report.skipped
        ],
        settings=first.settings, versions=first.versions, matrices=matrices, totals=totals,
        source=source, estimates=estimates,
    )  # fmt: skip
