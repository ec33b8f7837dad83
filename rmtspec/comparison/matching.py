"""Which matrix of one side is which of the other: by name, also where one prefix is the difference.

Nothing is guessed: names that differ by more than one prefix, the same for all, are not matched,
and the prefix is stated.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rmtspec.checkpoint.wrappers import is_wrapper
from rmtspec.comparison.sides import Entry
from rmtspec.terms import Why

Sides = tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Couple:
    """A matrix before and after; `before` is None for an adapter of LoRA without its base."""

    before: Entry | None
    after: Entry

    @property
    def name(self) -> str:
        """The name before, or else that after."""
        return self.after.name if self.before is None else self.before.name

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `include` and `exclude` may use."""
        known = () if self.before is None else self.before.names
        return tuple(dict.fromkeys((*known, *self.after.names)))


@dataclass(frozen=True, slots=True)
class Matching:
    """The couples by name, what has no partner, and how names were read.

    Attributes
    ----------
    renamed : str
        The difference of the names in words; empty if they are the same.
    """

    couples: dict[str, Couple]
    skipped: list[dict[str, str]]
    renamed: str


def matched(
    before: Mapping[str, Entry], after: Mapping[str, Entry], places: tuple[str, str]
) -> Matching:
    """Match the matrices of two sides, which messages call `places`."""
    partner = {name: name for name in before if name in after}
    rest = {name: entry for name, entry in before.items() if name not in partner}
    other = {name: entry for name, entry in after.items() if name not in partner}
    drop, put = _prefixes(rest, other)
    renamed = ""
    if drop or put:
        found = {f"{drop}{name.removeprefix(put)}": name for name in other if name.startswith(put)}
        pairs = {name: found[name] for name in rest if name in found}
        partner |= pairs
        renamed = _words(drop, put, places)
    couples: dict[str, Couple] = {}
    skipped: list[dict[str, str]] = []

    def skip(name: str, reason: str) -> None:
        skipped.append({"name": name, "reason": reason})

    for name, entry in before.items():
        twin = after.get(partner.get(name, ""))
        if twin is None:
            skip(name, entry.reason or Why.ONLY_IN.words(place=places[0]))
        elif entry.reason or twin.reason:
            skip(name, entry.reason or twin.reason)
        elif not _fit(entry.sides, twin.sides):
            skip(name, Why.OTHER_SHAPE.words(before=entry.sides, after=twin.sides))
        else:
            couples[name] = Couple(entry, twin)
    used = set(partner.values())
    for name, entry in after.items():
        if name not in used:
            skip(name, entry.reason or Why.ONLY_IN.words(place=places[1]))
    return Matching(couples, skipped, renamed)


def alone(after: Mapping[str, Entry], place: str) -> Matching:
    """Return the changes that an adapter makes, without the weights that it changes."""
    couples = {name: Couple(None, entry) for name, entry in after.items() if entry.pair is not None}
    reason = Why.NEEDS_BASE.words(place=place)
    skipped = [{"name": name, "reason": reason} for name in after if name not in couples]
    return Matching(couples, skipped, "")


def _prefixes(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> tuple[str, str]:
    """Return the prefix that names before have, and that which names after have instead.

    It is the one under which the most matrices of equal shape meet; none if two are as good.
    """
    ends: dict[str, list[tuple[str, str]]] = {}
    for name in before:
        for prefix, rest in _divided(name):
            ends.setdefault(rest, []).append((prefix, name))
    counts: Counter[tuple[str, str]] = Counter()
    for name, entry in after.items():
        for prefix, rest in _divided(name):
            for other, twin in _candidates(prefix, rest, ends, before):
                if (other or prefix) and _fit(before[twin].sides, entry.sides):
                    counts[other, prefix] += 1
    best = counts.most_common(2)
    if not best or (len(best) == 2 and best[0][1] == best[1][1]):
        return "", ""
    return best[0][0]


def _candidates(
    prefix: str, rest: str, ends: Mapping[str, list[tuple[str, str]]], names: Mapping[str, Entry]
) -> list[tuple[str, str]]:
    """Return prefix and name of the matrices that may be meant; two prefixes only of wrappers."""
    if not prefix:
        return ends.get(rest, [])
    if is_wrapper(prefix):
        return [found for found in ends.get(rest, []) if not found[0] or is_wrapper(found[0])]
    return [("", rest)] if rest in names else []


def _divided(name: str) -> Iterator[tuple[str, str]]:
    """Yield each way to divide a name after a dot, the whole name first."""
    yield "", name
    for place, letter in enumerate(name):
        if letter == ".":
            yield name[: place + 1], name[place + 1 :]


def _words(drop: str, put: str, places: tuple[str, str]) -> str:
    parts = [f"{p!r} before those of {s}" for p, s in zip((drop, put), places, strict=True) if p]
    return f"names are the same without {' and '.join(parts)}"


def _fit(before: Sides, after: Sides) -> bool:
    return before is None or after is None or before == after
