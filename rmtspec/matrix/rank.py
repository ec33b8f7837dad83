"""Rank: how many singular values to keep, and whether a split at that rank saves parameters."""

import math
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from rmtspec import _checks
from rmtspec._records import plain
from rmtspec._text import aligned
from rmtspec.errors import InvalidOptionError
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import check_fit
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.terms import Why

#: All but "bema" keep a share (`keep`) and do not need a fit.
RULES = ("bema", "energy", "fraction")
_HINTS = {
    "energy": "keep=0.9 to keep 90 % of the sum of squares.",
    "fraction": "keep=0.25 to keep a quarter of the singular values.",
}
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RankDecision:
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
        Number of spikes of the fit; nan if nothing could be fitted.
    bulk_keep : float
        Share of the bulk kept in addition to the spikes (rule "bema").
    keep : float
        Share kept by the rules "energy" and "fraction"; nan for "bema".
    min_rank : int
        The least rank requested.
    reason : str
        Why no split would be made ("no signal found", "no bulk", ...); empty if it saves.
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
        share = f"bulk_keep {self.bulk_keep:g}" if self.rule == "bema" else f"keep {self.keep:g}"
        pairs: list[tuple[str, object]] = [
            ("rank", self.rank),
            ("rule", f"{self.rule}, {share}, min_rank {self.min_rank}"),
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
    keep: float | None = None,
    min_rank: int = 0,
) -> RankDecision:
    """Choose how many singular values to keep (the paper, sections 4.2 and 4.4).

    ========== ===================================================================== ==========
    rule       keeps                                                                 needs
    ========== ===================================================================== ==========
    "bema"     the r spikes and the largest ``floor(bulk_keep (p - r))`` of the rest a fit
    "energy"   the fewest largest with a share ``keep`` of the sum of all squares    `keep`
    "fraction" the largest ``floor(keep p)``, but at least one                       `keep`
    ========== ===================================================================== ==========

    "energy" and "fraction" are common rules without a law of the noise, for comparison. They do not
    use the fit and decide even if there is none ("no bulk"). p does not count zero rows and
    columns.

    Parameters
    ----------
    spec : Spectrum
        The fitted spectrum.
    fit : BulkFit
        From `bema` on that spectrum.
    rule : {"bema", "energy", "fraction"}
        The rule.
    bulk_keep : float
        In [0, 1], for the rule "bema". 0 removes the whole bulk; 0.45 reproduces the paper's layer
        sizes (its text says that 45 % is removed; its numbers and its code keep 45 %).
    keep : float, optional
        In (0, 1], required by the rules "energy" and "fraction": the share that they keep.
    min_rank : int
        Never choose a smaller rank; from 0 to p.

    Returns
    -------
    RankDecision
        Its rank is 0, with the reason, if "bema" has no fit, or no spikes and none of the bulk to
        keep, or if "energy" is given a matrix of zeros.

    Raises
    ------
    InvalidTypeError
        `spec` is not a Spectrum, `fit` is not a BulkFit, or a share is not a number.
    InvalidValueError
        The fit is of another matrix size, the rule is unknown, an option is outside its range, or
        a share belongs to another rule.

    Examples
    --------
    >>> import rmtspec
    >>> spec = rmtspec.spectrum(rmtspec.ensembles.spiked(1000, 784, [5, 10, 20], rng=0))
    >>> fit = rmtspec.bema(spec, beta=0.01)
    >>> rmtspec.choose_rank(spec, fit).rank
    3
    >>> rmtspec.choose_rank(spec, fit, bulk_keep=0.45).rank
    354
    >>> rmtspec.choose_rank(spec, fit, rule="energy", keep=0.9).rank
    370
    >>> rmtspec.choose_rank(spec, fit, rule="fraction", keep=0.25).rank
    196
    """
    check_fit(spec, fit)
    bulk_keep, share = check_shares(rule, bulk_keep, keep)
    min_rank = _checks.integer(min_rank, "min_rank", 0, spec.p)
    rows, columns = spec.shape
    break_even = rows * columns / (rows + columns)
    none = Why.NO_SIGNAL.words()
    if rule == "energy":
        rank = _energy_rank(spec, share)
    elif rule == "fraction":
        rank = max(1, _floor(share * spec.p))
    elif fit.reason:
        rank, none = 0, fit.reason
    else:
        rank = fit.n_spikes + _floor(bulk_keep * (spec.p - fit.n_spikes))
    rank = max(min_rank, rank)
    saves = 1 <= rank < break_even
    reason = "" if saves else Why.SAVES_NOTHING.words(rank=rank, break_even=break_even)
    return RankDecision(
        rank=rank, rule=rule, break_even=break_even, saves=saves, n_spikes=fit.n_spikes,
        bulk_keep=bulk_keep, keep=share, min_rank=min_rank, reason=reason if rank else none,
    )  # fmt: skip


def refuse_bulk_keep(rule: str, bulk_keep: object) -> NoReturn:
    """Raise for a share of the bulk given to a rule without a bulk."""
    raise InvalidOptionError(
        f"`bulk_keep` is {bulk_keep!r} and `rule` {rule!r}; `bulk_keep` belongs to rule 'bema'.",
        hint="Leave it out: `keep` is the share to keep.",
    )


def check_shares(rule: str, bulk_keep: Any, keep: Any) -> tuple[float, float]:
    """Return `bulk_keep` and `keep`, checked; `keep` is nan for the rule "bema"."""
    _checks.choice(rule, "rule", RULES)
    hint = "It is a share: 0.45 keeps 45 %."
    bulk_keep = _checks.inside(bulk_keep, "bulk_keep", 0.0, 1.0, closed=True, hint=hint)
    if rule == "bema":
        if keep is not None:
            raise InvalidOptionError(
                f"`keep` is {keep!r} and `rule` 'bema'; `keep` belongs to the rules "
                f"{' and '.join(map(repr, RULES[1:]))}.",
                hint="Pass one of them, or `bulk_keep`, the share of the bulk to keep.",
            )
        return bulk_keep, math.nan
    if bulk_keep > 0.0:
        refuse_bulk_keep(rule, bulk_keep)
    if keep is None:
        problem = f"`rule` is {rule!r} and `keep` is not given"
        raise InvalidOptionError(problem, "a share in (0, 1]", f"Pass {_HINTS[rule]}")
    hint = f"It is a share: {_HINTS[rule]}"
    share = _checks.inside(keep, "keep", 0.0, 1.0, closed=True, hint=hint)
    if share == 0.0:
        raise InvalidOptionError("`keep` is 0", "a share above 0, such as 0.9")
    return bulk_keep, share


def _energy_rank(spec: Spectrum, share: float) -> int:
    """Return the fewest largest singular values that hold `share` of the sum of squares."""
    largest = float(spec.eigenvalues[-1])
    if largest == 0.0:
        return 0
    sums = np.cumsum(spec.eigenvalues[::-1] / largest)
    # Rounding in the sums must not cost one more of equal values, nor count rounded zeros.
    enough = (share - 4.0 * spec.p * _EPS) * sums[-1]
    return int(np.searchsorted(sums, enough)) + 1


def _floor(number: float) -> int:
    """Return the whole part of a count, taking 0.29 * 100 as 29."""
    return math.floor(number + 1e-9)
