"""A matrix whose spectrum was estimated, as a row of a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from rmtspec._records import plain
from rmtspec.checkpoint.memory import lacking
from rmtspec.matrix.estimate_spectrum import (
    FROM,
    TooSmallError,
    estimate_spectrum,
    memory_of_estimate,
)
from rmtspec.matrix.rank import RankOptions, decide_estimated
from rmtspec.matrix.rounding_level import RoundingLevel
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate
from rmtspec.report.options import STOCHASTIC, AnalysisOptions
from rmtspec.terms import Verdict, Why


@dataclass(frozen=True, slots=True, eq=False)
class Estimated:
    """What is known of a matrix with an estimated spectrum: the estimate, and its row."""

    estimate: SpectrumEstimate
    row: dict[str, Any]
    rounding: RoundingLevel | None = None

    def with_rounding(self, level: RoundingLevel) -> "Estimated":
        """Return it with what a quantised format says of the matrix."""
        known: dict[str, Any] = {
            "quantised": level.method, "rounding_variance": level.variance,
            "rounding_edge": level.edge, "n_below_rounding": level.n_below,
        }  # fmt: skip
        row = self.row | {key: plain(value) for key, value in known.items()}
        return Estimated(self.estimate, row, level)


def is_estimated(options: AnalysisOptions, sides: Sequence[int]) -> bool:
    """Tell whether the spectrum of a matrix with these sides is estimated."""
    return options.estimates and len(sides) == 2 and min(sides) >= FROM


def least_memory(options: AnalysisOptions, sides: Sequence[int]) -> int:
    """Return the bytes without which a matrix of these sides cannot be analysed."""
    p = min(sides)
    return memory_of_estimate(p) if is_estimated(options, sides) else 8 * p**2


def way_out(options: AnalysisOptions, sides: Sequence[int]) -> str:
    """Return in words how a matrix that is too large can be analysed; "" if there is no way."""
    if min(sides) < FROM or options.estimates:
        return ""
    return (
        f"; an estimate, by the method {STOCHASTIC!r}, takes "
        f"{memory_of_estimate(min(sides)) / 1e9:.2g} GB"
    )


def estimated(W: NDArray[Any], name: str, kind: str, options: AnalysisOptions) -> Estimated | None:
    """Estimate the spectrum of a matrix; None if that is small without its zero rows and columns.

    Then all eigenvalues are to be computed; MemoryError says that memory lacks for these.
    """
    try:
        estimate = estimate_spectrum(W, alpha=options.alpha, beta=options.beta, rng=options.rng)
    except TooSmallError:
        if words := lacking(8 * min(W.shape) ** 2):
            raise MemoryError(words) from None
        return None
    return Estimated(estimate, row_of(estimate, name, kind, options.of_rank))


def row_of(estimate: SpectrumEstimate, name: str, kind: str, how: RankOptions) -> dict[str, Any]:
    """Return the row of a matrix; what an estimate cannot tell is None."""
    e, rank = estimate, decide_estimated(estimate, how)
    (rows, columns), k = e.shape, e.n_spikes
    strength = float(e.spikes.sum())
    doubt = e.doubt
    reason = Why.ESTIMATED.words()
    row: dict[str, Any] = {
        "name": name, "kind": kind, "rows": rows, "columns": columns, "dtype": e.dtype,
        "n": e.n, "p": e.p, "ratio": e.p / e.n, "method": STOCHASTIC,
        "variance": e.variance, "variance_error": e.variance_error,
        "lower_edge": e.law.lower_edge, "bulk_edge": e.bulk_edge,
        "bulk_edge_error": e.bulk_edge_error, "threshold": e.threshold,
        "n_spikes": k, "n_spikes_low": e.n_spikes_low, "n_spikes_high": e.n_spikes_high,
        "n_removed": k, "largest_eigenvalue": float(e.largest[0]),
        "fit_statistic": None, "fit_pvalue": None, "accepted": None,
        "noise_model": "mp", "n_components": k, "at_least": e.n_spikes_low,
        "components_low": e.n_spikes_low, "components_high": e.n_spikes_high,
        "count_is_safe": not doubt, "verdict": Verdict.CANNOT_TELL,
        "verdict_reason": f"{reason}; {doubt}" if doubt else reason, "noise_remarks": "",
        "bulk_pvalue": None, "bulk_ks": None, "energy_share": strength / e.trace,
        "noise_variance": None, "noise_variance_low": None, "noise_variance_high": None,
        "lower_threshold": None, "n_below": None,
        "rank": rank.rank, "rule": rank.rule, "keep": None, "break_even": rank.break_even,
        "saves": rank.saves, "parameters_before": rows * columns,
        "parameters_after": rank.rank * (rows + columns) if rank.saves else rows * columns,
        "reliable": True, "reason": rank.reason, "note": "", "seconds": e.seconds,
    }  # fmt: skip
    return {key: plain(value) for key, value in row.items()}
