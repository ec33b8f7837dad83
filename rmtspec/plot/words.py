"""Words in the plots: names that stay text, lines of a width, the verdict on a fit."""

import re
from typing import Any, NamedTuple

from rmtspec._text import printable
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import FitTest
from rmtspec.matrix.noise_fit import NoiseFit
from rmtspec.terms import Verdict

#: Passed to a Text that holds a name: neither $ nor _ has a meaning there.
PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}
#: Lines of a name; a longer one loses its middle.
_LINES = 3


class Said(NamedTuple):
    """What a plot says about a fit, a line for each thing, and how it is meant.

    `mood` is "good", "bad", "unsure", or "" if nothing was judged.
    """

    lines: tuple[str, ...]
    mood: str


def literal(words: str) -> str:
    """Return words for a label, in which $ begins no formula and nothing is unprintable."""
    return printable(words).replace("$", r"\$")


def wrapped(words: str, width: int, *, lines: int = _LINES) -> str:
    """Return words in lines of about `width` characters, broken after spaces, dots and the like.

    >>> print(wrapped("model.layers.11.self_attn.q_proj.weight", 24))
    model.layers.11.self_
    attn.q_proj.weight
    """
    words, width = printable(words), max(width, 8)
    if len(words) > lines * width:
        head = (lines * width - 3) // 2
        words = f"{words[:head]}...{words[-head:]}"
    made = [""]
    for piece in re.findall(r"[^\s._/:\-]*[\s._/:\-]|[^\s._/:\-]+", words):
        for part in (piece[i : i + width] for i in range(0, len(piece), width)):
            if made[-1] and len(made[-1]) + len(part.rstrip()) > width:
                made.append("")
            made[-1] += part
    return "\n".join(line.strip() for line in made if line.strip())


def label_of(name: str, width: int = 32) -> str:
    """Return a name for a legend: in lines of a width, and no formula."""
    return "\n".join(literal(line) for line in wrapped(name, width).splitlines())


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the singular or plural."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def said_of(fit: BulkFit | None, test: FitTest | None, noise: NoiseFit | None = None) -> Said:
    """Return the verdict on a fit with its p-value, and that of the noise model if given."""
    lines, mood = [], ""
    if noise is not None:
        lines.append(f"{noise.verdict}: {noise.reason}")
        mood = _MOODS[noise.verdict]
    if test is not None and test.reason:
        lines.append(f"no fit: {test.reason}")
        mood = mood or "bad"
    elif fit is not None and fit.reason:
        lines.append(f"no fit: {fit.reason}")
        mood = mood or "bad"
    elif test is not None and not (noise is not None and noise.model == "mp" and test.accepted):
        what = "fit" if noise is None else "law of one variance"
        word = "accepted" if test.accepted else "refused"
        lines.append(f"{what} {word}: {measured(test)}")
        mood = mood or ("good" if test.accepted else "bad")
    return Said(tuple(lines), mood)


def measured(test: FitTest) -> str:
    """Return in words what the test was decided by."""
    if test.cutoff is not None:
        sign = "within" if test.accepted else "above"
        return f"statistic {test.statistic:.3g}, {sign} {test.cutoff:g}, p-value {test.pvalue:.3g}"
    return f"p-value {test.pvalue:.3g}"


_MOODS = {
    Verdict.NOISE_LIKE: "good",
    Verdict.NOT_NOISE_LIKE: "bad",
    Verdict.NO_BULK_LEFT: "bad",
    Verdict.CANNOT_TELL: "unsure",
}
