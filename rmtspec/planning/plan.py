"""Plans: what is done to each matrix of a model, and why, decided before anything is touched."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidOptionError, InvalidTypeError
from rmtspec.planning.budget import Purchase, spread
from rmtspec.report.matrix_report import RELIABLE_FROM, MatrixReport
from rmtspec.report.report import Report


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What may be done to a matrix, whatever its spectrum says.

    Attributes
    ----------
    layer : str
        The layer it belongs to. Matrices of one layer that are split get one rank.
    itemsize : int
        Bytes of an entry as stored.
    tied : str
        Why neither split nor truncation is possible; empty where one is.
    whole : str
        Why it cannot be split, only truncated; empty where it can.
    on_request : str
        Why it is left alone unless the user names it; empty where it is not.
    named : bool
        Whether the user named it (`include`).
    aliases : tuple of str
        Other names that `ranks` may use for it.
    """

    layer: str
    itemsize: int
    tied: str = ""
    whole: str = ""
    on_request: str = ""
    named: bool = False
    aliases: tuple[str, ...] = ()


def make_plan(
    report: Report,
    targets: Mapping[str, Target],
    *,
    mode: str = "split",
    fit_cutoff: float | None = None,
    min_saving: float = 0.0,
    ranks: Mapping[str, int] | None = None,
    budget: float | None = None,
    energies: Mapping[str, Float64Array] | None = None,
) -> Report:
    """Return `report` as a plan: each row with its action, rank, sizes afterwards and reason.

    Parameters
    ----------
    report : Report
        From `analyze_many`, with `MatrixReport` of every row.
    targets : mapping of str to Target
        By name of the matrix; a name without a row (it could not be analysed) keeps its layer
        as it is.
    mode, fit_cutoff, min_saving, ranks, budget
        As `rmtspec.adapters.torch.prune` describes them; checked by `analysis_options`.
    energies : mapping of str to ndarray, optional
        Squared singular values (descending) that the budget goes by; those of the matrix itself
        where a name is missing.

    Raises
    ------
    InvalidValueError
        A rank that does not fit, or a budget too small.
    """
    given = check_ranks(ranks or {}, report, targets, mode)
    refusals = _refusals(report, targets, mode, fit_cutoff is not None, given)
    rows = [dict(row) for row in report.rows]
    chosen: dict[str, int | None] = {}
    if budget is not None:
        buys = _purchases(report, targets, refusals, given, energies or {})
        chosen = spread(buys, budget) if buys else {}
    by_layer: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_layer.setdefault(_unit(targets[row["name"]], row["name"], mode), []).append(row)
    for layer, members in by_layer.items():
        forced = max((given[row["name"]] for row in members if row["name"] in given), default=None)
        refusal = next((refusals[row["name"]] for row in members if refusals[row["name"]]), "")
        rank = max(int(row["rank"]) for row in members)
        rule = members[0].get("rule") or report.settings.get("rule", "bema")
        reason = refusal
        if forced is not None:
            rank, rule, reason = forced, "given", ""
        elif budget is not None:
            rule = "budget"
            if not reason:
                bought = chosen[layer]
                rank = members[0]["p"] if bought is None else bought
                reason = "" if bought is not None else "stays dense: so the budget buys the most"
        elif not reason:
            reason = _no_use(members, rank, mode, min_saving)
        for row in members:
            row["layer"] = targets[row["name"]].layer
            row["rule"] = rule
            if rule in ("given", "budget"):
                row["keep"] = None
            row["action"] = "keep" if reason else mode
            row["rank"] = rank
            row["reason"] = reason
            row["weight_error"] = _weight_error(report.matrices[row["name"]], rank)
            row["output_error"] = None
            row["bytes_before"] = row["parameters_before"] * targets[row["name"]].itemsize
            settle(row)
    settings = {
        **report.settings,
        "mode": mode,
        "fit_cutoff": fit_cutoff,
        "min_saving": min_saving,
        "ranks": dict(given),
        "budget": budget,
    }
    if budget is not None:
        for decider in ("rule", "bulk_keep", "keep"):
            settings.pop(decider, None)
    return dataclasses.replace(report, rows=rows, settings=settings)


def candidates(
    report: Report,
    targets: Mapping[str, Target],
    *,
    mode: str,
    fit_cutoff: float | None,
    ranks: Mapping[str, int] | None,
) -> list[str]:
    """Return the names of the matrices that a plan with these options may split or truncate."""
    given = check_ranks(ranks or {}, report, targets, mode)
    refusals = _refusals(report, targets, mode, fit_cutoff is not None, given)
    return [name for name, reason in refusals.items() if not reason]


def settle(row: dict[str, Any]) -> None:
    """Recompute what follows from a row's action and rank: sizes, and whether it saves."""
    rows, columns, rank = row["rows"], row["columns"], row["rank"]
    before = rows * columns
    itemsize = row["bytes_before"] // before
    looked_up = row["kind"] == "embedding"  # rows are picked, not multiplied
    row["multiply_adds_before"] = 0 if looked_up else before
    after, work = before, row["multiply_adds_before"]
    if row["action"] == "split":
        after = rank * (rows + columns)
        work = rank * columns if looked_up else after
    row["saves"] = after < before
    row["parameters_before"], row["parameters_after"] = before, after
    row["bytes_after"] = after * itemsize
    row["multiply_adds_after"] = work
    if row["action"] == "keep":
        row["weight_error"] = row["output_error"] = None


def check_ranks(
    ranks: Mapping[str, int], report: Report, targets: Mapping[str, Target], mode: str
) -> dict[str, int]:
    """Return `ranks` by matrix name (a layer's name stands for all its matrices), checked.

    Of `report` the names, the sizes and the reasons of what was skipped are enough.
    """
    if not isinstance(ranks, Mapping):
        raise InvalidTypeError(
            f"`ranks` is a {type(ranks).__name__}; expected a mapping {{name: rank}}."
        )
    sizes = {row["name"]: min(row["rows"], row["columns"]) for row in report.rows}
    found: dict[str, int] = {}
    for key, rank in ranks.items():
        names = [n for n, t in targets.items() if key in (n, t.layer, *t.aliases)]
        if not names:
            near = difflib.get_close_matches(str(key), list(targets), n=3)
            hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
            raise InvalidOptionError(
                f"`ranks` names {key!r}, which is no matrix among the {len(targets)} chosen.{hint}"
            )
        for name in names:
            if name not in sizes:
                reason = next(e["reason"] for e in report.skipped if e["name"] == name)
                raise InvalidOptionError(f"`ranks` names {key!r}, which was skipped: {reason}.")
            fixed = _fixed(targets[name], mode)
            if fixed:
                raise InvalidOptionError(f"`ranks` names {name!r}, which stays as it is: {fixed}.")
            found[name] = _checks.integer(rank, f"ranks[{key!r}]", 1, sizes[name])
    return found


def _unit(target: Target, name: str, mode: str) -> str:
    """Return what shares one rank: the layer when it is split, else the matrix."""
    return target.layer if mode == "split" and not target.whole else name


def _fixed(target: Target, mode: str) -> str:
    """Return why a matrix can only stay as it is, or ""."""
    return target.tied or (target.whole if mode == "split" else "")


def _refusals(
    report: Report,
    targets: Mapping[str, Target],
    mode: str,
    gated: bool,
    given: Mapping[str, int],
) -> dict[str, str]:
    """Return for each row why it stays as it is, or "" where the rank decides."""
    analysed = {row["name"] for row in report.rows}
    lost = {t.layer: name for name, t in targets.items() if name not in analysed}
    refusals = {}
    for row in report.rows:
        name, target = row["name"], targets[row["name"]]
        hard = _fixed(target, mode)
        if not hard and mode == "split" and target.layer in lost:
            hard = f"{lost[target.layer]} of the same layer was skipped"
        if hard and name in given:
            raise InvalidOptionError(f"`ranks` names {name!r}, which stays as it is: {hard}.")
        soft = ""
        if not target.named:
            soft = target.on_request
            if not soft and not row["reliable"]:
                soft = f"smaller side {row['p']} is below {RELIABLE_FROM}"
        if not soft and row["largest_eigenvalue"] == 0.0:
            soft = "all zeros: two factors of zeros would not train"
        if not soft and gated and not row["accepted"]:
            soft = row["reason"] or f"fit rejected: {_fit(row, report.settings)}"
        refusals[name] = hard or ("" if name in given else soft)
    return refusals


def _fit(row: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    return f"statistic {row['fit_statistic']:.4g} above {settings['cutoff']:g}"


def _no_use(members: list[dict[str, Any]], rank: int, mode: str, min_saving: float) -> str:
    """Return why a rank that a rule chose is not worth it, or ""."""
    if rank == 0:
        reason: str = next((row["reason"] for row in members if row["reason"]), "no signal found")
        return reason
    before = sum(row["parameters_before"] for row in members)
    if mode == "truncate":
        full = min(members[0]["rows"], members[0]["columns"])
        return "" if rank < full else f"rank {rank} is full"
    after = rank * sum(row["rows"] + row["columns"] for row in members)
    if after >= before:
        return f"rank {rank} is not below break-even {members[0]['break_even']:.1f}"
    if 1.0 - after / before < min_saving:
        return f"saves {1.0 - after / before:.1%}, less than min_saving {min_saving:.1%}"
    return ""


def _purchases(
    report: Report,
    targets: Mapping[str, Target],
    refusals: Mapping[str, str],
    given: Mapping[str, int],
    energies: Mapping[str, Float64Array],
) -> dict[str, Purchase]:
    """Return what rank costs and buys in each layer that is the budget's to cut."""
    layers: dict[str, list[str]] = {}
    for row in report.rows:
        layers.setdefault(_unit(targets[row["name"]], row["name"], "split"), []).append(row["name"])
    by_name = {row["name"]: row for row in report.rows}
    buys = {}
    for layer, names in layers.items():
        if any(refusals[name] or name in given for name in names):
            continue
        curves = []
        for name in names:
            curve = energies.get(name)
            if curve is None:
                curve = report.matrices[name].spectrum.eigenvalues[::-1]
            total = float(np.sum(curve))
            # A matrix of zeros is exact at rank 1, so that the first rank holds all there is.
            curves.append(curve / total if total > 0.0 else np.eye(1, len(curve))[0])
        longest = max(map(len, curves))
        summed = np.sum([np.pad(c, (0, longest - len(c))) for c in curves], axis=0)
        sides = [(by_name[name]["rows"], by_name[name]["columns"]) for name in names]
        buys[layer] = Purchase(
            unit=sum(r + c for r, c in sides),
            dense=sum(r * c for r, c in sides),
            energies=summed / len(names),
        )
    return buys


def _weight_error(matrix: MatrixReport, rank: int) -> float | None:
    """Return ||W - W'|| / ||W|| of the best W' of that rank, from the spectrum."""
    values = matrix.spectrum.eigenvalues
    total = float(values.sum())
    if total == 0.0:
        return None
    left = float(values[: max(0, len(values) - rank)].sum())
    return math.sqrt(left / total)
