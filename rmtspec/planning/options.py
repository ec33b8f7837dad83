"""The options of a plan, checked before any work, and the options of the analysis it needs."""

from collections.abc import Mapping
from typing import Any

from rmtspec import _checks
from rmtspec.errors import InvalidOptionError, InvalidTypeError
from rmtspec.matrix.rank import RULES, refuse_bulk_keep
from rmtspec.report.options import check_jobs, check_options
from rmtspec.report.report import Report

MODES = ("split", "truncate")
#: Share of the bulk that a plan keeps beside the spikes (rule "bema"), unless told otherwise; the
#: paper's.
BULK_KEEP = 0.45


def analysis_options(
    mode: str,
    *,
    rule: str | None = None,
    bulk_keep: float | None = None,
    fit_cutoff: float | None = None,
    min_saving: float = 0.0,
    budget: float | None = None,
    n_jobs: int | None = 1,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the options of `analyze_many` that a plan needs, or raise for a wrong option.

    `options` are those of `rmtspec.analyze` that the user gave beside; `keep` may be among them.
    """
    _checks.choice(mode, "mode", MODES)
    _checks.inside(
        min_saving, "min_saving", 0.0, 1.0, closed=True, hint="It is a share of the parameters."
    )
    if "cutoff" in options:
        raise InvalidTypeError("`cutoff` is called `fit_cutoff` here: pass that.")
    if budget is not None:
        _check_budget(budget, mode)
        given = {"rule": rule, "bulk_keep": bulk_keep, "keep": options.get("keep")}
        for name, value in given.items():
            if value is not None:
                raise InvalidOptionError(
                    f"`budget` and `{name}` are both given; expected one of them, as each decides "
                    "the ranks. Leave one out."
                )
    if fit_cutoff is not None:
        _checks.cutoff(fit_cutoff, "fit_cutoff")
    rule = "bema" if rule is None else rule
    if bulk_keep is None:
        bulk_keep = BULK_KEEP if rule == "bema" else 0.0
    elif rule in RULES and rule != "bema":
        refuse_bulk_keep(rule, bulk_keep)
    analysis = {**options, "cutoff": fit_cutoff, "rule": rule, "bulk_keep": bulk_keep}
    check_options(analysis)
    check_jobs(n_jobs)
    return analysis


def sizes_only(sides: Mapping[str, tuple[int, ...]], unread: Mapping[str, str]) -> Report:
    """Return a report that knows (rows, columns) of matrices, and the reasons of unread ones.

    Enough to check ranks before all the work.
    """
    rows = [{"name": name, "rows": rows, "columns": columns} for name, (rows, columns) in
            sides.items()]  # fmt: skip
    skipped = [{"name": name, "reason": reason} for name, reason in unread.items()]
    return Report(rows, skipped, {}, {}, {})


def _check_budget(budget: Any, mode: str) -> None:
    """Raise unless `budget` is a share in (0, 1] and the mode saves parameters."""
    if mode != "split":
        raise InvalidOptionError(
            "`budget` is a share of parameters, and mode='truncate' saves none; expected "
            "mode='split'. Truncate with `rule`, `bulk_keep` or `ranks`."
        )
    share = _checks.inside(
        budget, "budget", 0.0, 1.0, closed=True, hint="It is the share of parameters to keep."
    )
    if share == 0.0:
        raise InvalidOptionError("`budget` is 0; expected a share above 0 to keep, as 0.5.")
