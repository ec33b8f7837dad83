"""A given plan, edited or read from a file, checked against the matrices it is to be applied to."""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from rmtspec import _checks
from rmtspec._text import nearest
from rmtspec.errors import InvalidTypeError, InvalidValueError, OptionError
from rmtspec.planning.plan import PIVOTABLE, Plan, plan_of, settle
from rmtspec.planning.target import Target
from rmtspec.report.report import Report
from rmtspec.terms import Action, Form, Kind, Why

ACTIONS = tuple(action.value for action in Action)
_STORED = {
    Form.PIVOTED: "pivot rows",
    Form.FEWER_OUTPUTS: "fewer rows",
    Form.FEWER_INPUTS: "fewer columns",
}
#: Keys without which a row cannot be carried out.
_PLANNED = ("layer", "kind", "action", "rank", "rows", "columns", "bytes_before")


def adopt(plan: Report, targets: Mapping[str, Target], *, owner: str, dense: bool = False) -> Plan:
    """Return a plan in terms of these matrices, if it can be carried out on them.

    The plan of a model fits a file of its weights, and vice versa: a row may name a matrix by its
    layer or by an alias, and the two sides of a transposed linear layer may be swapped.

    Parameters
    ----------
    plan : Report
        The user's plan; not changed.
    targets : mapping of str to Target
        What may be done to each matrix, by name.
    owner : str
        What the matrices belong to, for messages: "model.safetensors".
    dense : bool
        Truncate the matrices that the plan splits.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        Not a plan, a plan for something else, or an action or rank that is not possible.
    """
    if not isinstance(plan, Report):
        raise InvalidTypeError(
            f"`plan` is a {type(plan).__name__}; expected a plan, or Report.from_json(path)."
        )
    rows = [dict(row) for row in plan.rows]
    others: dict[str, list[str]] = {}
    for name, target in targets.items():
        for other in {target.layer, *target.aliases}:
            others.setdefault(other, []).append(name)
    names: dict[str, str] = {}  # the plan's names, by name of the matrix
    for row in rows:
        given = str(row.get("name"))
        meant = [given] if given in targets else others.get(given, [])
        if len(meant) != 1:
            raise InvalidValueError(
                f"The plan names {given!r}, which is not a matrix of {owner}; expected the plan "
                f"that was made for it.{nearest(given, targets, meant)}"
            )
        name = meant[0]
        if name in names:
            raise InvalidValueError(f"The plan has two rows named {name!r}. Leave one out.")
        names[name] = given
        target = targets[name]
        planned, shape = (row.get("rows"), row.get("columns")), tuple(target.shape)
        swapped = Kind.TRANSPOSED_LINEAR in (row.get("kind"), target.kind)
        if planned != shape and not (swapped and planned[::-1] == shape):
            raise InvalidValueError(
                f"The plan has {given!r} as {planned[0]} x {planned[1]}; in {owner} it "
                f"is {' x '.join(map(str, shape))}. Apply it to what it was made for."
            )
        row.update(name=name, rows=shape[0], columns=shape[1])
        row.update(layer=target.layer, kind=str(target.kind))
        with contextlib.suppress(ValueError):  # an unknown action is reported below
            row["action"] = Action(str(row.get("action"))).value
        row["parameters_before"] = row["rows"] * row["columns"]
        row["bytes_before"] = row["parameters_before"] * target.itemsize
        if dense and row.get("action") == Action.SPLIT:
            row["action"] = Action.TRUNCATE.value
        alone = row.get("action") == Action.NARROW or row.get("form") == Form.SPATIAL
        if dense and alone and row.get("action") != Action.LEAVE:
            raise InvalidValueError(
                f"The plan stores {given!r} with {row.get('form')}, which is no lower rank of a "
                "dense matrix. Write factors, and merge what was written."
            )
        if row.get("form") == Form.SPATIAL:
            row["kernel"] = list(target.kernel)
        refusal = target.refusal(str(row.get("action")))
        if refusal and row.get("action") != Action.LEAVE:
            raise InvalidValueError(
                f"The plan's action for {name!r} is {row.get('action')!r}, but the matrix must "
                f'stay as it is: {refusal}. Set its action to "keep".'
            )
    _check_rows(rows)
    _check_hidden(rows, {given: name for name, given in names.items()})
    for row in rows:
        kept = row["action"] == Action.LEAVE
        row["reason"] = (row.get("reason") or Why.KEPT_BY_PLAN.words()) if kept else ""
        # The ranks may have been edited since.
        row["weight_error"] = row["output_error"] = row["predicted_loss"] = None
    matrices = {name: plan.matrices[was] for name, was in names.items() if was in plan.matrices}
    return plan_of(plan, rows=rows, matrices=matrices)


def _check_rows(rows: Iterable[dict[str, Any]]) -> None:
    """Settle the rows of an edited plan; raise if one cannot be carried out."""
    shared: dict[str, tuple[str, int]] = {}
    for row in rows:
        name = row.get("name")
        missing = [key for key in _PLANNED if key not in row]
        if missing:
            raise InvalidValueError(
                f"The row {name!r} has no {missing[0]!r}: this is a report, not a plan. Make one "
                "with the adapter's `plan`, or with: rmtspec prune IN --dry-run --report plan.json"
            )
        if row["action"] not in ACTIONS:
            raise InvalidValueError(
                f"The action of {name!r} is {row['action']!r}; expected one of "
                f"{', '.join(ACTIONS)}."
            )
        if row["action"] != Action.LEAVE:
            form = _form(row)
            most = form.most(row["rows"], row["columns"], row.get("kernel", ()))
            try:
                row["rank"] = _checks.integer(row["rank"], "rank", 1, most)
            except OptionError as error:  # a plan is data
                kind = InvalidTypeError if isinstance(error, TypeError) else InvalidValueError
                raise kind(
                    f"The rank of {name} in the plan is {row['rank']!r}; expected {error.expected}."
                ) from None
        if row["action"] == Action.SPLIT:
            first = shared.setdefault(row["layer"], (str(name), row["rank"]))
            if first[1] != row["rank"]:
                raise InvalidValueError(
                    f"{first[0]!r} has rank {first[1]} and {name!r} has {row['rank']}; the "
                    "matrices of a layer are split at the same rank. Set both to the same."
                )
        settle(row)


def _form(row: Mapping[str, Any]) -> Form:
    """Return how a row is to be stored, plain if it says nothing; raise if it cannot be."""
    given = row.get("form", Form.PLAIN)
    possible = [form.value for form in Form if form.narrow == (row["action"] == Action.NARROW)]
    if given not in possible:
        raise InvalidValueError(
            f"The form of {row['name']!r} is {given!r}; expected one of {', '.join(possible)} "
            f"for the action {row['action']!r}."
        )
    form = Form(given)
    if form is Form.SPATIAL:
        if row.get("kernel"):
            return form
        raise InvalidValueError(
            f"The plan makes two kernels of {row['name']!r}, along one axis each, and it is a "
            f"matrix of kind {row['kind']}; only a model's Conv2d without groups, of more than one "
            f'row and column, can become two. Set its form to "{Form.PLAIN.value}".'
        )
    if row["kind"] not in PIVOTABLE and form is not Form.PLAIN:
        raise InvalidValueError(
            f"The plan stores {row['name']!r} as {_STORED[form]}, and it is a matrix of kind "
            f"{row['kind']}; only linear layers are stored so. Set its form to "
            f'"{Form.PLAIN.value}", and its action to "{Action.SPLIT.value}".'
        )
    return form


def _check_hidden(rows: Iterable[dict[str, Any]], names: Mapping[str, str]) -> None:
    """Raise if rows that share hidden units keep different numbers of them.

    `names` are those of the matrices, by the name in the plan.
    """
    layers: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["action"] == Action.NARROW:
            reader = str(row.get("reader"))
            row["reader"] = names.get(reader, reader)
            layers.setdefault(row["reader"], []).append(row)
    for reader, members in layers.items():
        reads = [row["name"] for row in members if row["form"] == Form.FEWER_INPUTS]
        counts = {row["rank"] for row in members}
        if reads != [reader] or len(members) < 2 or len(counts) > 1:
            listed = ", ".join(f"{row['name']} ({row['form']}, {row['rank']})" for row in members)
            raise InvalidValueError(
                f"The plan narrows {listed} for the reader {reader!r}; expected the matrix that "
                "reads the units with fewer inputs, those that make them with fewer outputs, and "
                "one number of units in all. Set them to the same, or all to another action."
            )
