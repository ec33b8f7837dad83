"""The names of the rules, which options belong to which, and what each rule assumes."""

import math
from typing import Any, NoReturn

from rmtspec import _checks
from rmtspec.errors import InvalidOptionError

#: The rules that decide from a spectrum or a fit alone, as an analysis of many matrices needs it.
RULES = ("bema", "noise", "gavish-donoho", "screenot", "energy", "fraction", "exact")
#: All rules of `rmtspec.choose_rank`: the others need the entries of one matrix, or a rank.
ALL_RULES = (*RULES[:4], "parallel", "bcv", *RULES[4:], "fixed")
#: The rules that keep a share of the bulk besides what they count, if asked to.
BULK_RULES = ("bema", "noise")
#: The rules that keep a share, `keep`.
SHARE_RULES = ("energy", "fraction")
#: The rules that look at the entries of the matrix, not at its singular values alone.
ENTRY_RULES = ("noise", "parallel", "bcv")
#: What has to be true for a rule to be right, in a phrase.
ASSUMES = {
    "bema": "independent noise of one variance",
    "noise": "independent noise of any variances",
    "gavish-donoho": "white noise, at most half of it signal; least squared error",
    "screenot": "noise with an edge, rank below a bound; least squared error",
    "parallel": "noise of one variance in every column",
    "bcv": "white noise; least error of left-out entries",
    "energy": "nothing: a share of the squares",
    "fraction": "nothing: a share of the singular values",
    "exact": "no noise but rounding",
    "fixed": "nothing: a rank given",
}
_HINTS = {
    "energy": "keep=0.9 to keep 90 % of the sum of squares.",
    "fraction": "keep=0.25 to keep a quarter of the singular values.",
}


def check_shares(rule: str, bulk_keep: Any, keep: Any) -> tuple[float, float]:
    """Return `bulk_keep` and `keep`, checked, of an analysis; `keep` is nan unless `rule` has it.

    A rule that an analysis of many matrices cannot use raises here.
    """
    if rule in ALL_RULES and rule not in RULES:
        why = "needs a rank for each matrix" if rule == "fixed" else "needs the entries"
        hint = "Pass `ranks={name: k}` to a plan. " if rule == "fixed" else ""
        raise InvalidOptionError(
            f"`rule` is {rule!r}, which {why} and serves single matrices",
            f"one of {', '.join(RULES)}",
            f"{hint}For one matrix call rmtspec.choose_rank(W, rule={rule!r}).",
        )
    _checks.choice(rule, "rule", RULES)
    return shares_of(rule, bulk_keep, keep)


def shares_of(rule: str, bulk_keep: Any, keep: Any) -> tuple[float, float]:
    """Return `bulk_keep` and `keep` of a known rule, checked; `keep` is nan unless it has one."""
    hint = "It is a share: 0.45 keeps 45 %."
    bulk_keep = _checks.inside(bulk_keep, "bulk_keep", 0.0, 1.0, closed=True, hint=hint)
    if bulk_keep > 0.0 and rule not in BULK_RULES:
        refuse_bulk_keep(rule, bulk_keep)
    if rule not in SHARE_RULES:
        if keep is not None:
            more = ", or `bulk_keep`, the share of the bulk to keep" if rule in BULK_RULES else ""
            _refuse("keep", keep, rule, owners=SHARE_RULES, hint=f"Pass one of them{more}.")
        return bulk_keep, math.nan
    if keep is None:
        problem = f"`rule` is {rule!r} and `keep` is not given"
        raise InvalidOptionError(problem, "a share in (0, 1]", f"Pass {_HINTS[rule]}")
    hint = f"It is a share: {_HINTS[rule]}"
    share = _checks.inside(keep, "keep", 0.0, 1.0, closed=True, hint=hint)
    if share == 0.0:
        raise InvalidOptionError("`keep` is 0", "a share above 0, such as 0.9")
    return bulk_keep, share


def refuse_bulk_keep(rule: str, bulk_keep: object) -> NoReturn:
    """Raise for a share of the bulk given to a rule without a bulk."""
    hint = "Leave it out."
    if rule in SHARE_RULES:
        hint = "Leave it out: `keep` is the share to keep."
    _refuse("bulk_keep", bulk_keep, rule, owners=BULK_RULES, hint=hint)


def check_owner(name: str, value: object, rule: str, owner: str) -> None:
    """Raise if an option that belongs to the rule `owner` is given with another rule."""
    if value is not None and rule != owner:
        _refuse(name, value, rule, owners=(owner,), hint=f"Leave it out, or pass rule={owner!r}.")


def _refuse(name: str, value: object, rule: str, *, owners: tuple[str, ...], hint: str) -> NoReturn:
    words = " and ".join(map(repr, owners))
    whose = f"the rules {words}" if len(owners) > 1 else f"rule {words}"
    problem = f"`{name}` is {value!r} and `rule` {rule!r}; `{name}` belongs to {whose}."
    raise InvalidOptionError(problem, hint=hint)
