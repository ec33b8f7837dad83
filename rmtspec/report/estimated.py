"""A matrix whose spectrum was estimated, as a row of a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import matrix
from rmtspec._records import plain
from rmtspec.matrix.estimate_spectrum import FROM, estimate_spectrum, memory_of_estimate
from rmtspec.matrix.rank import RankOptions, decide_estimated
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate
from rmtspec.report.options import STOCHASTIC, AnalysisOptions
from rmtspec.terms import Verdict, Why


@dataclass(frozen=True, slots=True, eq=False)
class Estimated:
    """What is known of a matrix with an estimated spectrum: the estimate, and its row."""

    estimate: SpectrumEstimate
    row: dict[str, Any]


def is_estimated(options: AnalysisOptions, sides: Sequence[int]) -> bool:
    """Tell whether the spectrum of a matrix with these sides is estimated."""
    return options.method == STOCHASTIC and len(sides) == 2 and min(sides) >= FROM


def takes_estimate(options: AnalysisOptions, value: Any) -> bool:
    """Tell whether the spectrum of a matrix is estimated, and not that of a `Spectrum`."""
    if options.method != STOCHASTIC or isinstance(value, Spectrum):
        return False
    return is_estimated(options, np.shape(value))


def least_memory(options: AnalysisOptions, sides: Sequence[int]) -> int:
    """Return the bytes without which a matrix of these sides cannot be analysed."""
    p = min(sides)
    return memory_of_estimate(p) if is_estimated(options, sides) else 8 * p**2


def way_out(options: AnalysisOptions, sides: Sequence[int]) -> str:
    """Return in words how a matrix that is too large can be analysed; "" if there is no way."""
    if min(sides) < FROM or options.method == STOCHASTIC:
        return ""
    return (
        f"; an estimate, by the method {STOCHASTIC!r}, takes "
        f"{memory_of_estimate(min(sides)) / 1e9:.2g} GB"
    )


def estimated(W: NDArray[Any], name: str, kind: str, options: AnalysisOptions) -> Estimated:
    """Estimate the spectrum of a matrix."""
    estimate = estimate_spectrum(matrix(W), alpha=options.alpha, beta=options.beta, rng=options.rng)
    return Estimated(estimate, row_of(estimate, name, kind, options.of_rank))


def row_of(estimate: SpectrumEstimate, name: str, kind: str, how: RankOptions) -> dict[str, Any]:
    """Return the row of a matrix; what an estimate cannot tell is None."""
    e, rank = estimate, decide_estimated(estimate, how)
    (rows, columns), k = e.shape, e.n_spikes
    strength = float(e.largest[:k].sum())
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
