"""Lines of a series: which groups get one of their own, and how each is drawn."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rmtspec.plot.look import DASHES, MARKERS, Look

#: The group of what has no line of its own.
OTHERS = "other kinds"


def groups_of(kinds: Iterable[str]) -> dict[str, str]:
    """Return the group of each kind: itself, or `OTHERS` for the rare ones of too many."""
    listed = [kind for kind, _ in Counter(kinds).most_common()]
    own = listed if len(listed) <= len(MARKERS) else listed[: len(MARKERS) - 1]
    return {kind: kind if kind in own else OTHERS for kind in listed}


def style_of(look: Look, number: int) -> dict[str, Any]:
    """Return colour, dashes and marker of a line, told apart without its colour too."""
    return {
        "color": look.series[number % len(look.series)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }
