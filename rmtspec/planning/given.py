"""A plan that is given, edited or read from a file, checked against what it is to be applied to."""

from collections.abc import Iterable, Mapping
from typing import Any

from rmtspec import _checks
from rmtspec.errors import InvalidTypeError, InvalidValueError, OptionError
from rmtspec.planning.plan import Plan, plan_of, settle
from rmtspec.planning.target import Target, nearest
from rmtspec.report.report import Report
from rmtspec.terms import Action

ACTIONS = tuple(action.value for action in Action)
#: What a row must say to be carried out.
_PLANNED = ("layer", "kind", "action", "rank", "rows", "columns", "bytes_before")


def adopt(
    plan: Report,
    targets: Mapping[str, Target],
    *,
    owner: str,
    dense: bool = False,
) -> Plan:
    """Return a plan with its sizes settled, if it can be carried out on these matrices.

    Parameters
    ----------
    plan : Report
        The user's; not changed.
    targets : mapping of str to Target
        What may be done to each matrix, by name.
    owner : str
        What the matrices belong to, for messages: "model.safetensors".
    dense : bool
        Truncate what the plan splits.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        No plan, a plan of something else, or an action or rank that is not possible.
    """
    if not isinstance(plan, Report):
        raise InvalidTypeError(
            f"`plan` is a {type(plan).__name__}; expected a plan, or Report.from_json(path)."
        )
    rows = [dict(row) for row in plan.rows]
    seen: set[str] = set()
    for row in rows:
        name = str(row.get("name"))
        if name not in targets:
            raise InvalidValueError(
                f"The plan names {name!r}, which is no matrix of {owner}; expected the plan that "
                f"was made for it.{nearest(name, targets)}"
            )
        if name in seen:
            raise InvalidValueError(f"The plan has two rows named {name!r}. Leave one out.")
        seen.add(name)
        target = targets[name]
        if (row.get("rows"), row.get("columns")) != target.shape:
            raise InvalidValueError(
                f"The plan has {name!r} as {row.get('rows')} x {row.get('columns')}; in {owner} it "
                f"is {' x '.join(map(str, target.shape))}. Apply it to what it was made for."
            )
        row["layer"], row["kind"] = target.layer, target.kind
        row["bytes_before"] = row["rows"] * row["columns"] * target.itemsize
        if dense and row.get("action") == Action.SPLIT:
            row["action"] = Action.TRUNCATE.value
        refusal = target.refusal(str(row.get("action")))
        if refusal and row.get("action") != Action.LEAVE:
            raise InvalidValueError(
                f"The plan's action of {name!r} is {row.get('action')!r}, and it must stay as it "
                f'is: {refusal}. Set its action to "keep".'
            )
    _check_rows(rows)
    for row in rows:
        kept = row["action"] == Action.LEAVE
        row["reason"] = (row.get("reason") or "kept by the plan") if kept else ""
        row["weight_error"] = row["output_error"] = None  # of the ranks before they were edited
    return plan_of(plan, rows=rows)


def _check_rows(rows: Iterable[dict[str, Any]]) -> None:
    """Raise where an edited plan cannot be carried out; settle the rows that can."""
    shared: dict[str, tuple[str, int]] = {}
    for row in rows:
        name = row.get("name")
        missing = [key for key in _PLANNED if key not in row]
        if missing:
            raise InvalidValueError(
                f"The row {name!r} has no {missing[0]!r}: this is a report, not a plan. Make one "
                "with the adapter's `plan`."
            )
        if row["action"] not in ACTIONS:
            raise InvalidValueError(
                f"The action of {name!r} is {row['action']!r}; expected one of "
                f"{', '.join(ACTIONS)}."
            )
        if row["action"] != Action.LEAVE:
            most = min(row["rows"], row["columns"])
            try:
                row["rank"] = _checks.integer(row["rank"], "rank", 1, most)
            except OptionError as error:  # a plan is data
                raise InvalidValueError(
                    f"The rank of {name} in the plan is {row['rank']!r}; expected {error.expected}."
                ) from None
        if row["action"] == Action.SPLIT:
            first = shared.setdefault(row["layer"], (str(name), row["rank"]))
            if first[1] != row["rank"]:
                raise InvalidValueError(
                    f"{first[0]!r} has rank {first[1]} and {name!r} {row['rank']}; the matrices of "
                    "one layer are split at one rank. Set both to the same."
                )
        settle(row)
