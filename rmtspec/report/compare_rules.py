"""Rules side by side: the rank that each rule gives one matrix, in a table and a figure."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from rmtspec._records import plain, versions
from rmtspec._text import grouped, html_table, text_table
from rmtspec.errors import (
    InvalidOptionTypeError,
    InvalidTypeError,
    OptionError,
    RmtspecError,
)
from rmtspec.matrix.bema import bema
from rmtspec.matrix.rank import RankDecision, RankOptions, decide
from rmtspec.matrix.rules.options import ALL_RULES, ASSUMES, BULK_RULES
from rmtspec.matrix.spectrum import Spectrum, spectrum
from rmtspec.plot.rules import plot_rules
from rmtspec.report.frame import data_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: The rules of the table, with the options that they need.
DEFAULTS: dict[str, dict[str, Any]] = {
    **{rule: {} for rule in ALL_RULES if rule != "fixed"},
    "energy": {"keep": 0.9},
    "fraction": {"keep": 0.25},
}
#: The rules with a level.
_LEVELS = (*BULK_RULES, "parallel")
#: The columns of the table for people, left to right.
_HEADER = ("rule", "rank", "energy", "parameters", "saves", "seconds", "assumes")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RuleComparison:
    """The results of `compare_rules`: a table in `rows`, a figure by `plot`.

    Attributes
    ----------
    spectrum : Spectrum
        The spectrum of the matrix, which all rules share.
    rows : list of dict
        One JSON-ready row per rule, in the order asked for: "rule", "options" (those given, a
        mapping), "rank", "energy" (share of the squared Frobenius norm kept at that rank),
        "parameters" (of the two factors, or of the matrix if a split saves nothing), "saves",
        "threshold" (in s^2 / n, None for a rule without one), "assumes" (what has to be true for
        the rule to be right), "reason" (why a split is not advised) and "seconds" (without the
        spectrum).
    skipped : list of dict
        "name" and "reason" of each rule that could not decide.
    decisions : dict of str to RankDecision
        The full decisions by rule.
    settings : dict
        "rows", "columns", "beta" and "rng".
    versions : dict
        Versions of rmtspec, numpy, scipy, numba and python.
    """

    spectrum: Spectrum
    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    decisions: dict[str, RankDecision]
    settings: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return rows, skipped, settings and versions as JSON-ready values."""
        keys = ("rows", "skipped", "settings", "versions")
        return {key: plain(getattr(self, key)) for key in keys}

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows as a DataFrame, nan for missing numbers.

        Raises
        ------
        MissingDependencyError
            pandas is not installed.
        """
        columns = list(self.rows[0]) if self.rows else list(_HEADER)
        return data_frame(self.rows, columns)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the singular values with the rank of every rule: see `rmtspec.plot.plot_rules`."""
        ranks = {_label(row): row["rank"] for row in self.rows}
        return plot_rules(self.spectrum, ranks, ax=ax)

    def __repr__(self) -> str:
        rows, columns = self.spectrum.shape
        lines = [f"RuleComparison: {rows} x {columns}, {rows * columns:,} parameters"]
        lines += text_table(_HEADER, map(_cells, self.rows), _NUMBERS)
        lines += [f"  skipped {names}: {reason}" for reason, names in grouped(self.skipped)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        title = repr(self).splitlines()[0]
        notes = [f"Skipped {names}: {reason}" for reason, names in grouped(self.skipped)]
        return html_table(title, _HEADER, [_cells(row) for row in self.rows], notes=notes)


#: The columns that are set to the right.
_NUMBERS = ("rank", "energy", "parameters", "seconds")


def compare_rules(
    W: ArrayLike | Spectrum,
    rules: Iterable[str] | Mapping[str, Mapping[str, Any]] | None = None,
    beta: float = 0.1,
    rng: Any = 0,
) -> RuleComparison:
    """Choose the rank of one matrix by every rule, in one table.

    `rmtspec.choose_rank` describes the rules. Each answers a question of its own, so that they
    need not agree: "bema", "noise" and "parallel" test how many components are there,
    "gavish-donoho", "screenot" and "bcv" ask which are worth keeping, "energy" and "fraction" do
    not ask about noise.

    Parameters
    ----------
    W : array_like of shape (rows, columns), or Spectrum
        The matrix. With a Spectrum, the rules that need the entries are listed as skipped.
    rules : iterable of str, or mapping of str to options, optional
        Which rules, or which with which options of `choose_rank`: ``{"energy": {"keep": 0.5},
        "fixed": {"rank": 32}}``. By default all but "fixed", "energy" with keep=0.9 and "fraction"
        with keep=0.25.
    beta : float
        In (0, 1): level of "bema", "noise" and "parallel".
    rng : None, int, or numpy.random.Generator
        For the rules that draw; the default gives the same table each time.

    Returns
    -------
    RuleComparison

    Raises
    ------
    InvalidTypeError
        `W` is not a matrix, or `rules` is neither an iterable of names nor a mapping.
    InvalidValueError
        A rule or an option is unknown or outside its range.

    Examples
    --------
    >>> import rmtspec
    >>> W = rmtspec.ensembles.spiked(300, 200, [1.5, 3, 20], rng=0)
    >>> table = rmtspec.compare_rules(W, ["bema", "gavish-donoho", "bcv", "energy"])
    >>> {row["rule"]: row["rank"] for row in table.rows}
    {'bema': 3, 'gavish-donoho': 2, 'bcv': 2, 'energy': 73}
    """
    chosen = _chosen(rules, beta, rng)
    spec = W if isinstance(W, Spectrum) else spectrum(W)
    bulk = bema(spec, beta=beta)
    comparison = RuleComparison(
        spectrum=spec, rows=[], skipped=[], decisions={}, versions=versions(),
        settings={
            "rows": spec.shape[0], "columns": spec.shape[1], "beta": beta,
            "rng": rng if isinstance(rng, int | np.integer | None) else type(rng).__name__,
        },
    )  # fmt: skip
    for options, given in chosen:
        fit = None if options.rule in BULK_RULES else bulk
        start = time.perf_counter()
        try:
            decision = decide(W, spec, fit, options)
        except OptionError:
            raise
        except RmtspecError as error:
            comparison.skipped.append({"name": options.rule, "reason": str(error)})
            continue
        seconds = time.perf_counter() - start
        comparison.decisions[options.rule] = decision
        comparison.rows.append(_row(spec, decision, given=given, seconds=seconds))
    return comparison


def _chosen(rules: Any, beta: float, rng: Any) -> list[tuple[RankOptions, dict[str, Any]]]:
    """Return the options of each rule, checked before any work, and those given for it alone."""
    if rules is None:
        rules = DEFAULTS
    if isinstance(rules, str) or not isinstance(rules, Iterable):
        raise InvalidTypeError(
            f"`rules` is {rules!r}; expected names of rules, such as ['bema', 'screenot'], or a "
            "mapping of names to options."
        )
    if not isinstance(rules, Mapping):
        rules = {name: DEFAULTS.get(name, {}) for name in rules}
    known = sorted(field.name for field in fields(RankOptions) if field.name != "rule")
    chosen = []
    for name, given in rules.items():
        if not isinstance(given, Mapping):
            raise InvalidTypeError(
                f"`rules[{name!r}]` is {given!r}; expected a mapping of options, such as "
                "{'keep': 0.9}; {} for none."
            )
        for option in given:
            if option not in known:
                raise InvalidOptionTypeError(
                    f"`{option}` is not an option of a rule", f"one of {', '.join(known)}"
                )
        common = {"rng": rng, "beta": beta if name in _LEVELS else None}
        chosen.append((RankOptions(**{"rule": name, **common, **given}), dict(given)))
    return chosen


def _row(
    spec: Spectrum, decision: RankDecision, *, given: dict[str, Any], seconds: float
) -> dict[str, Any]:
    rows, columns = spec.shape
    total = float(spec.eigenvalues.sum())
    kept = float(spec.eigenvalues[spec.p - decision.rank :].sum())
    row = {
        "rule": decision.rule,
        "options": given,
        "rank": decision.rank,
        "energy": kept / total if total else 0.0,
        "parameters": decision.rank * (rows + columns) if decision.saves else rows * columns,
        "saves": decision.saves,
        "threshold": decision.threshold,
        "assumes": ASSUMES[decision.rule],
        "reason": decision.reason,
        "seconds": seconds,
    }
    return dict(plain(row))


def _label(row: Mapping[str, Any]) -> str:
    """Return the rule and its numbers: "energy 0.9"."""
    numbers = [f"{v:g}" for v in row["options"].values() if isinstance(v, int | float)]
    return " ".join([row["rule"], *numbers])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        _label(row),
        f"{row['rank']:,}",
        f"{row['energy']:.1%}",
        f"{row['parameters']:,}",
        "yes" if row["saves"] else "no",
        f"{row['seconds']:.3f}",
        row["assumes"],
    )
