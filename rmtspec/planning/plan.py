"""Plans: what is done to each matrix of a model, and why, decided before any is changed."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidOptionError
from rmtspec.matrix.rules.options import BULK_RULES
from rmtspec.planning.budget import (
    Either,
    Joint,
    Offered,
    Purchase,
    Ranked,
    Units,
    least,
    spread,
)
from rmtspec.planning.curves import Curves
from rmtspec.planning.options import PlanOptions
from rmtspec.planning.target import Target, given_ranks
from rmtspec.report.matrix_report import RELIABLE_FROM, MatrixReport
from rmtspec.report.report import Report
from rmtspec.terms import Action, Form, Kind, Verdict, Why

#: Kinds whose splits may be stored as pivot rows. In a file, a matrix whose loss is known was
#: calibrated as a linear layer.
PIVOTABLE = (Kind.LINEAR, Kind.TRANSPOSED_LINEAR, Kind.MATRIX)


@dataclasses.dataclass(frozen=True, slots=True, repr=False, eq=False)
class Plan(Report):
    """A report whose rows also say what is done to each matrix.

    Besides the columns of a report a row has "action" (`rmtspec.terms.Action`), sizes before and
    after, and a reason if the matrix stays as it is. "action" and "rank" may be edited before the
    plan is carried out; `Plan.from_json` reads a plan from its file.
    """

    @property
    def cut(self) -> list[dict[str, Any]]:
        """The rows of the matrices that are split or truncated."""
        return [row for row in self.rows if row["action"] not in (Action.LEAVE, "leave")]


def make_plan(
    report: Report,
    targets: Mapping[str, Target],
    options: PlanOptions,
    curves: Curves | None = None,
) -> Plan:
    """Return `report`, of an analysis with `options.analysis`, as a plan.

    A target without a row, which could not be analysed, keeps its layer as it is. `curves` tell
    what ranks buy where data are known.
    """
    curves = curves or Curves()
    case = _Case(report, targets, options, curves)
    budget = options.budget
    rows = [dict(row) for row in report.rows]
    for row in rows:
        if present := targets[row["name"]].present_rank:
            row["parameters_before"] = present * (row["rows"] + row["columns"])
    chosen: dict[str, int | Ranked | Units | None] = {}
    if budget is not None:
        # Losses and relative errors have no common measure: each group keeps the share.
        for buys in case.purchases():
            what = "seconds" if options.size == "latency" else options.size
            found = spread(buys, budget, what) if buys else {}
            for unit, bought in found.items():
                chosen |= bought if isinstance(buys[unit], Joint) else {unit: bought}
    by_unit: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_unit.setdefault(case.unit(row["name"]), []).append(row)
    for unit, members in by_unit.items():
        forced = max((case.given[r["name"]] for r in members if r["name"] in case.given), default=0)
        refusals = {row["name"]: case.refusals[row["name"]] for row in members}
        refused, reason = next(((n, why) for n, why in refusals.items() if why), ("", ""))
        rank = max(int(row["rank"]) for row in members)
        rule, units, other = members[0]["rule"], None, ""
        if forced:
            rank, rule, reason, refused = forced, "given", "", ""
        elif budget is not None:
            rule = "budget"
            if not reason:
                bought = chosen[unit]
                if isinstance(bought, Ranked):
                    other, bought = bought
                rank, units, reason = _bought(bought, members[0]["p"])
        elif not reason and all(case.exact_rank(row) for row in members):
            rank, rule = max(case.exact_rank(row) for row in members), "exact"
        elif not reason:
            present = targets[members[0]["name"]].present_rank
            multiple = options.multiple_of(members[0]["p"])
            rank = min(-(-rank // multiple) * multiple, members[0]["p"])
            form = case.form(members[0]["name"])
            reason = _no_use(members, rank, options, present=present, form=form)
        for row in members:
            target = targets[row["name"]]
            why = reason
            if refused:  # a matrix that might be cut by itself says which one is in the way
                why = refusals[row["name"]] or Why.LAYER_HELD.words(name=refused, reason=reason)
            if rule in ("given", "budget", "exact"):
                row["keep"] = None
            row.update(
                layer=target.layer, rule=rule, rank=rank, reason=why,
                action=Action.LEAVE.value if reason else options.mode,
                weight_error=_weight_error(report.matrices[row["name"]], rank), output_error=None,
                bytes_before=row["parameters_before"] * target.itemsize,
                form=other or case.form(row["name"]).value,
            )  # fmt: skip
            if other == Form.SPATIAL:
                row.update(kernel=list(target.kernel), weight_error=None)
            known = curves.spatial if other == Form.SPATIAL else curves.losses
            row["predicted_loss"] = _tail(known.get(row["name"]), rank, row["action"])
            if units is not None and not reason:
                _narrow(row, units, curves)
            settle(row)
    settings = report.settings | {"mode": options.mode, "gate": options.gate}
    settings |= {"min_saving": options.min_saving, "ranks": case.given, "budget": budget}
    settings |= {"rank_multiple": options.rank_multiple, "form": options.form}
    settings["size"] = options.size
    if budget is not None:
        for decider in ("rule", "bulk_keep", "keep"):
            settings.pop(decider, None)
    return plan_of(report, rows=rows, settings=settings)


def plan_of(report: Report, **changes: Any) -> Plan:
    """Return a report as a plan with some fields changed."""
    same = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    return Plan(**{**same, **changes})


def candidates(report: Report, targets: Mapping[str, Target], options: PlanOptions) -> list[str]:
    """Return the names of the matrices that a plan with these options may split or truncate."""
    refusals = _Case(report, targets, options, Curves()).refusals
    return [name for name, reason in refusals.items() if not reason]


def least_budget(
    report: Report,
    targets: Mapping[str, Target],
    options: PlanOptions,
    curves: Curves | None = None,
) -> float:
    """Return the smallest budget that can be kept: the share that the lowest ranks take."""
    groups = _Case(report, targets, options, curves or Curves()).purchases()
    return max((least(buys) for buys in groups if buys), default=1.0)


def settle(row: dict[str, Any]) -> None:
    """Recompute what follows from a row's action and rank: its sizes, and whether it saves."""
    rows, columns, rank = row["rows"], row["columns"], row["rank"]
    # If it is split already, the parameters before are those of its factors.
    before = row.setdefault("parameters_before", rows * columns)
    itemsize = row["bytes_before"] // before
    looked_up = row["kind"] == "embedding"  # rows are picked, not multiplied
    work = before
    if looked_up:
        work = 0 if before == rows * columns else before // (rows + columns) * columns
    row["multiply_adds_before"] = work
    after = before
    if row["action"] in (Action.SPLIT, Action.NARROW):
        form = Form(row.get("form", Form.PLAIN))
        after = form.parameters(rank, rows, columns, row.get("kernel", ()))
        work = rank * columns if looked_up else after
    row["saves"] = after < before
    row["parameters_after"] = after
    row["bytes_after"] = after * itemsize
    row["multiply_adds_after"] = work
    if row["action"] == Action.LEAVE:
        row["weight_error"] = row["output_error"] = row["predicted_loss"] = None


class _Case:
    """A report with what may be done to its matrices, and the given ranks.

    `refusals` tells by name why a matrix stays as it is; "" if that depends on the rank.
    """

    def __init__(
        self, report: Report, targets: Mapping[str, Target], options: PlanOptions, curves: Curves
    ) -> None:
        self._report, self._targets, self._options = report, targets, options
        self._curves = curves
        skipped = {entry["name"]: entry["reason"] for entry in report.skipped}
        self.given = given_ranks(options, targets, skipped)
        analysed = {row["name"] for row in report.rows}
        self._lost = {t.layer: name for name, t in targets.items() if name not in analysed}
        self.refusals = {row["name"]: self._refusal(row) for row in report.rows}

    def unit(self, name: str) -> str:
        """Return the name of what has one rank: the layer if it is split, else the matrix."""
        target = self._targets[name]
        together = self._options.mode == Action.SPLIT and not target.unsplittable
        return target.layer if together else name

    def form(self, name: str) -> Form:
        """Return how a matrix is stored if it is split."""
        target = self._targets[name]
        if target.kind not in PIVOTABLE or target.present_rank:
            return Form.PLAIN
        if self._options.form is not None:
            return Form(self._options.form)
        known = self._options.budget is not None and name in self._curves.losses
        return Form.PIVOTED if known and name not in self.given else Form.PLAIN

    def _refusal(self, row: Mapping[str, Any]) -> str:
        name, target = row["name"], self._targets[row["name"]]
        hard = target.refusal(self._options.mode)
        if not hard and self._options.mode == Action.SPLIT and target.layer in self._lost:
            hard = Why.LAYER_SKIPPED.words(name=self._lost[target.layer])
        if hard and name in self.given:
            raise InvalidOptionError(f"`ranks` names {name!r}, which stays as it is: {hard}.")
        if hard or name in self.given:
            return hard
        if not target.named and target.on_request:
            return target.on_request
        if not target.named and not row["reliable"]:
            return Why.TOO_SMALL.words(p=row["p"], least=RELIABLE_FROM)
        if row["largest_eigenvalue"] == 0.0:
            return Why.ALL_ZERO.words()
        if target.present_rank and row["variance"] is None:
            return Why.SPLIT_NO_BULK.words(present=target.present_rank)
        gate = self._options.gate
        if gate is None or self._low_rank(row):
            return ""
        if gate == "noise":
            passes = row["verdict"] == Verdict.NOISE_LIKE
            return "" if passes else Why.GATED.words(verdict=row["verdict"])
        if not row["accepted"]:
            fitted = row["fit_statistic"]
            return row["reason"] or Why.FIT_REJECTED.words(statistic=fitted, cutoff=gate)
        return ""

    def exact_rank(self, row: Mapping[str, Any]) -> int:
        """Return the numerical rank of a matrix that a split at it keeps whole, else 0."""
        counts = self._options.analysis.rule in BULK_RULES  # another rule has the last word
        if not counts or self._options.mode != Action.SPLIT:
            return 0
        return self._low_rank(row)

    def _low_rank(self, row: Mapping[str, Any]) -> int:
        """Return the numerical rank of a matrix, not yet split, if a split at it saves, else 0."""
        rank, sides = int(row["numerical_rank"]), (row["rows"], row["columns"])
        if self._targets[row["name"]].present_rank:
            return 0
        size = self.form(row["name"]).parameters(rank, sides[0], sides[1])
        return rank if size < math.prod(sides) else 0

    def purchases(self) -> list[Mapping[str, Offered]]:
        """Return what each rank costs and buys in the layers that the budget may cut.

        Those whose losses are known come apart from the others, whose errors are relative.
        """
        layers: dict[str, list[str]] = {}
        for row in self._report.rows:
            layers.setdefault(self.unit(row["name"]), []).append(row["name"])
        by_loss: dict[str, Purchase] = {}
        by_error: dict[str, Purchase] = {}
        for layer, names in layers.items():
            if any(self.refusals[name] or name in self.given for name in names):
                continue
            known = all(name in self._curves.losses for name in names)
            each = [self._curves.losses[n] if known else self._shares(n) for n in names]
            longest = max(map(len, each))
            summed = np.sum([np.pad(c, (0, longest - len(c))) for c in each], axis=0)
            sides = self._targets[names[0]].shape
            prices, dense = self._prices(names, longest)
            (by_loss if known else by_error)[layer] = Purchase(
                energies=summed if known else summed / len(names),
                prices=prices,
                dense=dense,
                multiple=self._options.multiple_of(min(sides)),
            )
        return [self._join(self._alternatives(by_loss)), dict(by_error)]

    def _alternatives(self, purchases: dict[str, Purchase]) -> dict[str, Offered]:
        """Return the purchases, those of kernels that can become two in both forms."""
        offered: dict[str, Offered] = dict(purchases)
        for name, saved in self._curves.spatial.items():
            target, unit = self._targets[name], self.unit(name)
            if unit not in purchases or not self._options.may_narrow:
                continue
            channels = np.arange(1, len(saved) + 1)
            rows, columns = target.shape
            each = Form.SPATIAL.parameters(1, rows, columns, target.kernel)
            size = 1 if self._options.size == "parameters" else target.itemsize
            first = purchases[unit]
            second = Purchase(
                energies=saved, prices=(channels * each * size).astype(float), dense=first.dense,
                multiple=first.multiple,
            )  # fmt: skip
            forms = {self.form(name).value: first, Form.SPATIAL.value: second}
            offered[unit] = Either(forms=forms)
        return offered

    def _join(self, purchases: dict[str, Offered]) -> dict[str, Offered]:
        """Return the purchases with those of hidden layers joined where units may leave."""
        joined = dict(purchases)
        for reader, (layer, order) in self._curves.units.items():
            units = [self.unit(name) for name in layer.members]
            alone = {unit: joined.get(unit) for unit in units}
            layers = {u: each for u, each in alone.items() if isinstance(each, Purchase)}
            if len(layers) == len(units) and self._options.may_narrow:
                sides = [self._targets[name].shape for name in layer.makers]
                entries = sum(columns for _, columns in sides) + self._targets[reader].shape[0]
                size = 1 if self._options.size == "parameters" else self._targets[reader].itemsize
                joined[self.unit(reader)] = Joint(
                    layers=layers, losses=order.losses, price=float(entries * size)
                )
                for name in layer.makers:
                    del joined[self.unit(name)]
        return joined

    def _prices(self, names: list[str], most: int) -> tuple[Float64Array, float]:
        """Return what ranks 1 to `most` cost in the layer of these matrices, and what it costs."""
        sides = [self._targets[name].shape for name in names]
        form, costs = self.form(names[0]), self._options.costs
        if costs is None:
            numbers = [
                sum(form.parameters(k, rows, columns) for rows, columns in sides)
                for k in range(1, most + 1)
            ]
            unit = 1 if self._options.size == "parameters" else self._targets[names[0]].itemsize
            return unit * np.array(numbers, dtype=float), unit * sum(map(math.prod, sides))
        found = [costs.of(each) for each in sides]
        seconds = np.sum([cost.seconds(most, form) for cost in found], axis=0)
        return seconds, sum(cost.dense for cost in found)

    def _shares(self, name: str) -> Float64Array:
        """Return what each rank takes off the relative error of a matrix."""
        curve = self._curves.energies.get(name)
        if curve is None:
            curve = self._report.matrices[name].spectrum.eigenvalues[::-1]
        total = float(np.sum(curve))
        # A matrix of zeros is exact at rank 1: the first rank holds everything.
        return curve / total if total > 0.0 else np.eye(1, len(curve))[0]


def _no_use(
    members: list[dict[str, Any]], rank: int, options: PlanOptions, present: int, form: Form
) -> str:
    """Return why the rank that a rule chose is not worth a change, or "" if it is."""
    if rank == 0:
        given = next((row["reason"] for row in members if row["reason"]), "")
        return given or Why.NO_SIGNAL.words()
    before = sum(row["parameters_before"] for row in members)
    if options.mode == Action.TRUNCATE:
        full = min(members[0]["rows"], members[0]["columns"])
        return "" if rank < full else Why.FULL_RANK.words(rank=rank)
    after = sum(form.parameters(rank, row["rows"], row["columns"]) for row in members)
    if present and rank >= present:
        return Why.SPLIT_ENOUGH.words(present=present, rank=rank)
    if after >= before:
        even = members[0]["break_even"] if form is Form.PLAIN else float(members[0]["p"])
        return Why.SAVES_NOTHING.words(rank=rank, break_even=even)
    if 1.0 - after / before < options.min_saving:
        return Why.SAVES_LITTLE.words(saving=1.0 - after / before, least=options.min_saving)
    return ""


def _bought(choice: int | Units | None, full: int) -> tuple[int, int | None, str]:
    """Return rank, hidden units, and why the layer stays as it is, by what a budget bought."""
    if choice is None:
        return full, None, Why.STAYS_DENSE.words()
    return (full, choice.count, "") if isinstance(choice, Units) else (choice, None, "")


def _narrow(row: dict[str, Any], units: int, curves: Curves) -> None:
    """Let a row keep so many hidden units."""
    name = row["name"]
    reader = next(r for r, (layer, _) in curves.units.items() if name in layer.members)
    form, loss = Form.FEWER_OUTPUTS, 0.0  # all of it is counted where the units are read
    if name == reader:
        losses = curves.units[reader][1].losses
        form, loss = Form.FEWER_INPUTS, float(losses[len(losses) - units])
    row.update(
        action=Action.NARROW.value, form=form.value, rank=units, reader=reader,
        predicted_loss=loss, weight_error=None,
    )  # fmt: skip


def _weight_error(matrix: MatrixReport, rank: int) -> float | None:
    """Return ||W - W'|| / ||W|| for the best W' of this rank, from the spectrum."""
    values = matrix.spectrum.eigenvalues
    total = float(values.sum())
    if total == 0.0:
        return None
    left = float(values[: max(0, len(values) - rank)].sum())
    return math.sqrt(left / total)


def _tail(losses: Float64Array | None, rank: int, action: str) -> float | None:
    """Return the loss predicted for a cut at that rank; None where it is not known."""
    if losses is None or action == Action.LEAVE:
        return None
    return float(np.sum(losses[rank:]))
