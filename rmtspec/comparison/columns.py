"""The columns of a comparison: what a row says of a couple of matrices."""

import math
from collections.abc import Callable
from typing import Any

from rmtspec._records import plain
from rmtspec.comparison.change import MatrixChange
from rmtspec.matrix.metrics import effective_rank, stable_rank
from rmtspec.matrix.subspaces import overlap
from rmtspec.report.matrix_report import MatrixReport
from rmtspec.terms import Change, Why

_NAN = math.nan


def row_of(made: MatrixChange) -> dict[str, Any]:
    """Return one flat JSON-ready row, nan as None."""
    return {column: plain(value(made)) for column, value in COLUMNS.items()}


def _relative(made: MatrixChange) -> float:
    before, _, change = made.norms
    if made.state is Change.UNCHANGED:
        return 0.0
    return change / before if before else _NAN


def _spectral(made: MatrixChange) -> float:
    """Return the largest singular value of the change relative to that of the matrix before."""
    if made.state is Change.UNCHANGED:
        return 0.0
    if made.change is None or made.before is None:
        return _NAN
    new, old = (each.spectrum.singular_values[-1] for each in (made.change, made.before))
    return float(new / old) if old else _NAN


def _of(part: str, value: Callable[[MatrixReport], Any]) -> Callable[[MatrixChange], Any]:
    """Return the column of one of the analyses; None where there is none."""

    def column(made: MatrixChange) -> Any:
        report: MatrixReport | None = getattr(made, part)
        return None if report is None else value(report)

    return column


def _sides(values: dict[str, Callable[[MatrixReport], Any]]) -> dict[str, Callable[..., Any]]:
    """Return columns of the matrices before and after."""
    return {
        f"{name}_{part}": _of(part, value)
        for name, value in values.items()
        for part in ("before", "after")
    }


def _shape(made: MatrixChange) -> tuple[int, ...]:
    for report in (made.change, made.before):
        if report is not None:
            return report.spectrum.shape
    return made.couple.after.sides or (0, 0)


def _reason(made: MatrixChange) -> str:
    """Return why the rank or the drift is not known, or the kind of change not sure; else ""."""
    if made.change is None:
        return ""
    missing = [
        Why.OF_ONE.words(place=word, reason=report.fit.reason)
        for word, report in (("the matrix before", made.before), ("the matrix after", made.after))
        if report is not None and report.fit.reason
    ]
    why = ""
    if made.exact and made.mostly:
        p = made.change.spectrum.p
        why = Why.MOSTLY_COMPONENTS.words(count=made.numerical_rank, p=p)
    elif math.isnan(made.rank[0]) or made.state is Change.CANNOT_TELL:
        why = made.change.noise.reason
    return "; ".join(filter(None, [why, *missing]))


#: The columns in order, and their values.
COLUMNS: dict[str, Callable[[MatrixChange], Any]] = {
    "name": lambda m: m.couple.name,
    "kind": lambda m: m.couple.after.kind,
    "rows": lambda m: _shape(m)[0],
    "columns": lambda m: _shape(m)[1],
    "name_after": lambda m: m.couple.after.name,
    "dtype_before": lambda m: m.dtypes[0],
    "dtype_after": lambda m: m.dtypes[1],
    "change": lambda m: m.state,
    "relative_change": _relative,
    "relative_spectral_change": _spectral,
    "norm_before": lambda m: m.norms[0],
    "norm_after": lambda m: m.norms[1],
    "norm_of_change": lambda m: m.norms[2],
    "rank": lambda m: m.rank[0],
    "rank_low": lambda m: m.rank[1],
    "rank_high": lambda m: m.rank[2],
    "rank_is_exact": lambda m: m.exact and not m.mostly,
    "energy_share": lambda m: 1.0 if m.exact and m.change else _energy(m),
    "effective_rank": _of("change", lambda r: effective_rank(r.spectrum)),
    "stable_rank": _of("change", lambda r: stable_rank(r.spectrum)),
    "adapter_rank": lambda m: m.couple.after.pair and m.couple.after.pair.rank,
    "verdict": _of("change", lambda r: r.noise.verdict),
    "verdict_reason": _of("change", lambda r: r.noise.reason),
    "noise_model": _of("change", lambda r: r.noise.model),
    "bulk_pvalue": _of("change", lambda r: r.noise.bulk_pvalue),
    "bulk_ks": _of("change", lambda r: r.noise.bulk_ks),
    "noise_remarks": _of("change", lambda r: r.noise.remarks),
    "rounding_variance": lambda m: m.rounding_variance,
    "bulk_is_rounding": lambda m: m.bulk_is_rounding,
    **_sides(
        {
            "numerical_rank": lambda r: r.spectrum.numerical_rank,
            "variance": lambda r: r.fit.variance,
            "bulk_edge": lambda r: r.fit.bulk_edge,
            "threshold": lambda r: r.fit.threshold,
            "largest_eigenvalue": lambda r: float(r.spectrum.eigenvalues[-1]),
            "n_spikes": lambda r: r.fit.n_spikes,
            "count_is_safe": lambda r: r.noise.count_is_safe,
        }
    ),
    "components": lambda m: m.left_angles.size,
    "left_overlap": lambda m: overlap(m.left_angles),
    "right_overlap": lambda m: overlap(m.right_angles),
    "left_angle": lambda m: m.left_angles[-1] if m.left_angles.size else _NAN,
    "right_angle": lambda m: m.right_angles[-1] if m.right_angles.size else _NAN,
    "spikes_tried": lambda m: m.tried,
    "spikes_touched": lambda m: len(m.touched),
    "reason": _reason,
    "seconds": lambda m: m.seconds,
}


def _energy(made: MatrixChange) -> float:
    return _NAN if made.change is None else made.change.noise.energy_share
