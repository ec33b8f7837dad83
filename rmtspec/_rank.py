"""Rank: how many singular values to keep, and whether a split at that rank saves parameters."""

import math
from dataclasses import dataclass
from typing import Any

from rmtspec import _checks
from rmtspec._bema import BulkFit
from rmtspec._fit_test import check_fit
from rmtspec._results import aligned, plain
from rmtspec._spectrum import Spectrum

RULES = ("bema",)


@dataclass(frozen=True, slots=True, repr=False)
class RankDecision:
    """How many singular values a rule keeps; usable as a whole number (``split(W, decision)``).

    Attributes
    ----------
    rank : int
        Singular values to keep; 0 means that there is nothing to keep and the matrix is best left.
    rule : str
        The rule that decided.
    break_even : float
        rows * columns / (rows + columns): a split saves parameters below this rank.
    saves : bool
        Whether 1 <= rank < break_even.
    n_spikes : int
        Spikes of the fit; nan when nothing could be fitted.
    bulk_keep : float
        Share of the bulk that is kept beside the spikes.
    min_rank : int
        Least rank asked for.
    reason : str
        Why no split would be made ("no signal found", "no bulk", ...); empty when it saves.
    """

    rank: int
    rule: str
    break_even: float
    saves: bool
    n_spikes: int
    bulk_keep: float
    min_rank: int
    reason: str

    def __index__(self) -> int:
        return self.rank

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values (nan as None)."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}

    def __repr__(self) -> str:
        pairs: list[tuple[str, object]] = [
            ("rank", self.rank),
            ("rule", f"{self.rule}, bulk_keep {self.bulk_keep:g}, min_rank {self.min_rank}"),
            ("break even", f"{self.break_even:.1f}"),
            ("saves", self.saves),
        ]
        if self.reason:
            pairs.append(("reason", self.reason))
        return aligned("RankDecision", pairs)


def choose_rank(
    spec: Spectrum,
    fit: BulkFit,
    *,
    rule: str = "bema",
    bulk_keep: float = 0.0,
    min_rank: int = 0,
) -> RankDecision:
    """Choose how many singular values to keep (the paper, sections 4.2 and 4.4).

    The rule "bema" keeps the r spikes and the largest ``floor(bulk_keep (p - r))`` of the others.

    Parameters
    ----------
    spec : Spectrum
        The spectrum.
    fit : BulkFit
        From `bema` on that spectrum.
    rule : {"bema"}
        The rule.
    bulk_keep : float
        In [0, 1]. 0 removes the whole bulk. 0.45 reproduces the paper's layer sizes (its text
        says that 45 % are removed; its numbers and its code keep 45 %).
    min_rank : int
        Never choose less, from 0 to p.

    Returns
    -------
    RankDecision
        Rank 0 with the reason where there is no spike and none of the bulk is kept, or no fit.

    Raises
    ------
    InvalidTypeError
        `spec` is no Spectrum, or `fit` no BulkFit.
    InvalidValueError
        A fit of another matrix size, an unknown rule, or an option outside its range.

    Examples
    --------
    >>> import rmtspec
    >>> spec = rmtspec.spectrum(rmtspec.ensembles.spiked(1000, 784, [5, 10, 20], rng=0))
    >>> fit = rmtspec.bema(spec, beta=0.01)
    >>> rmtspec.choose_rank(spec, fit).rank
    3
    >>> rmtspec.choose_rank(spec, fit, bulk_keep=0.45).rank
    354
    """
    check_fit(spec, fit)
    _checks.choice(rule, "rule", RULES)
    bulk_keep = _checks.inside(
        bulk_keep, "bulk_keep", 0.0, 1.0, closed=True, hint="It is a share: 0.45 keeps 45 %."
    )
    min_rank = _checks.integer(min_rank, "min_rank", 0, spec.p)
    rows, columns = spec.shape
    break_even = rows * columns / (rows + columns)
    rank = min_rank
    if not fit.reason:
        rank = max(rank, fit.n_spikes + math.floor(bulk_keep * (spec.p - fit.n_spikes) + 1e-9))
    saves = 1 <= rank < break_even
    reason = ""
    if rank == 0:
        reason = fit.reason or "no signal found"
    elif not saves:
        reason = f"rank {rank} is not below break-even {break_even:.1f}"
    return RankDecision(rank, rule, break_even, saves, fit.n_spikes, bulk_keep, min_rank, reason)
