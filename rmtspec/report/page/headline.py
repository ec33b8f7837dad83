"""What a report says in two sentences: where there is noise, and what could go."""

from typing import Any

from rmtspec._text import counted
from rmtspec.report.cells import share_of
from rmtspec.report.report import Report
from rmtspec.terms import Verdict


def noise_sentence(report: Report) -> str:
    """Say in how many matrices what is left without the components is noise."""
    rows = report.rows
    if not rows:
        return "No matrix could be analysed."
    counts = {verdict: _count(rows, verdict) for verdict in Verdict}
    known = sum(counts.values())
    if not known:
        accepted = sum(bool(row["accepted"]) for row in rows)
        return f"The law of pure noise fits {accepted:,} of {_matrices(len(rows))}."
    noise = counts[Verdict.NOISE_LIKE]
    if noise == known:
        words = "Both matrices have" if known == 2 else f"All {known:,} matrices have"
        return f"{'The matrix has' if known == 1 else words} a noise-like bulk."
    if known == 1:
        verdict = next(verdict for verdict, count in counts.items() if count)
        return f"The verdict on the matrix is: {verdict}."
    parts = [(noise, "has a noise-like bulk", "have a noise-like bulk")] if noise else []
    parts += [(counts[verdict], *words) for verdict, words in _REST.items() if counts[verdict]]
    first, *rest = parts
    said = [f"{first[0]:,} of {_matrices(known)} {first[1 if first[0] == 1 else 2]}"]
    said += [f"{count:,} {one if count == 1 else many}" for count, one, many in rest]
    return f"{_joined(said)}."


#: What is said of one matrix, and of several, whose bulk is not noise-like.
_REST = {
    Verdict.NOT_NOISE_LIKE: ("shows something else than noise", "show something else than noise"),
    Verdict.NO_BULK_LEFT: ("has no bulk left", "have no bulk left"),
    Verdict.CANNOT_TELL: ("cannot be judged", "cannot be judged"),
}


def saving_sentence(report: Report) -> str:
    """Say what could go, counted over the matrices that pass, and what only a budget decides."""
    if not report.rows:
        return ""
    if any("action" in row for row in report.rows):
        return f"{_first_up(report.kept())}."
    before, after = report.parameters_before, report.parameters_after
    passing = [row for row in report.rows if report.passes(row)]
    others = [row for row in report.rows if not report.passes(row)]
    saved = before - after
    words = "No split at the noise edge saves parameters"
    if saved:
        share = share_of(saved, before)
        words = f"Splits at the noise edge would save {saved:,} of {before:,} parameters ({share})"
    if not others:
        return f"{words}."
    if passing:
        ones = "the one matrix that passes"
        if len(passing) > 1:
            ones = f"the {_matrices(len(passing))} that pass"
        words += f", counted over {ones}"
    held = share_of(sum(row["parameters_before"] for row in others), before)
    ones = f"the other {len(others):,}" if passing else "the matrices"
    return (
        f"{words}. What {ones}, {held} of the parameters, can lose is not told by noise: "
        "a budget has to decide, by what the loss says."
    )


def _count(rows: list[dict[str, Any]], verdict: Verdict) -> int:
    return sum(row.get("verdict") == verdict for row in rows)


def _matrices(count: int) -> str:
    return counted(count, "matrix", "matrices")


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _first_up(words: str) -> str:
    return words[:1].upper() + words[1:]
