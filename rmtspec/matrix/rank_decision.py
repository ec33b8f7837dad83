"""The decision about a rank: how many singular values to keep, by which rule, and what it saves."""

import math
from dataclasses import dataclass
from typing import Any

from rmtspec._records import plain
from rmtspec._text import Readable, aligned
from rmtspec.matrix.rules.options import BULK_RULES

_NAN: Any = math.nan  # the value of a whole number that there is not


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RankDecision(Readable):
    """How many singular values to keep; it can be used as an integer (``split(W, decision)``).

    Attributes
    ----------
    rank : int
        Number of singular values to keep; 0 means that there are none and the matrix is best left
        as it is.
    rule : str
        The rule that decided.
    break_even : float
        rows * columns / (rows + columns): a split saves parameters below this rank.
    saves : bool
        Whether 1 <= rank < break_even.
    n_spikes : int
        Number of spikes of the fit by BEMA; nan if nothing could be fitted, or if there was no such
        fit.
    bulk_keep : float
        Share of the bulk kept in addition to what was counted (rules "bema" and "noise").
    keep : float
        Share kept by the rules "energy" and "fraction"; nan for the others.
    min_rank : int
        The least rank requested.
    reason : str
        Why no split would be made ("no signal found", "no bulk", ...); empty if it saves.
    n_components : int
        Number of components of the NoiseFit; nan if there was none, or it has no number.
    threshold : float
        The rule keeps the eigenvalues above it, in the units of the spectrum (s^2 / n), and then
        what `bulk_keep` and `min_rank` add; nan for a rule without such a threshold.
    noise_variance : float
        Variance of the noise that "gavish-donoho" used, given or estimated; else nan.
    rank_bound : int
        Bound on the rank of the signal that "screenot" used; else nan.
    """

    rank: int
    rule: str
    break_even: float
    saves: bool
    n_spikes: int
    bulk_keep: float
    keep: float
    min_rank: int
    reason: str
    n_components: int = _NAN
    threshold: float = math.nan
    noise_variance: float = math.nan
    rank_bound: int = _NAN

    def __index__(self) -> int:
        return self.rank

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RankDecision):
            return NotImplemented
        return self.to_dict() == other.to_dict()  # nan, which equals nothing, is None there

    def __hash__(self) -> int:
        return hash(tuple(self.to_dict().values()))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values (nan as None)."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}

    def __repr__(self) -> str:
        pairs: list[tuple[str, object]] = [
            ("rank", self.rank),
            ("rule", ", ".join([self.rule, *self._options(), f"min_rank {self.min_rank}"])),
            ("break even", f"{self.break_even:.1f}"),
            ("saves", self.saves),
        ]
        if not math.isnan(self.threshold):
            pairs.append(("threshold", self.threshold))
        if self.reason:
            pairs.append(("reason", self.reason))
        return aligned("RankDecision", pairs)

    def _options(self) -> list[str]:
        if self.rule in BULK_RULES:
            return [f"bulk_keep {self.bulk_keep:g}"]
        names = ("keep", "noise_variance", "rank_bound")
        values = [(name, getattr(self, name)) for name in names]
        return [f"{name} {value:.6g}" for name, value in values if not math.isnan(value)]
