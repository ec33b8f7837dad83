"""Options of an analysis, checked before any work."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec._records import plain
from rmtspec.errors import InvalidOptionError, InvalidTypeError
from rmtspec.report.matrix_report import analyze

Progress = Callable[[int, int | None, str], object]


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of `analyze` as settings of a report, or raise for a wrong one."""
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(analyze).parameters.items()
        if name not in ("W", "name")
    }
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InvalidTypeError(
            f"`{unknown[0]}` is no option of the analysis; expected one of "
            f"{', '.join(sorted(known))}."
        )
    given = dict(options)
    solver = given.get("eigensolver")
    if solver is not None:
        if not callable(solver):
            raise InvalidTypeError(f"`eigensolver` is {solver!r}; expected a callable, or None.")
        given["eigensolver"] = np.linalg.eigvalsh  # the check below must not run the user's
    _checks.integer(given.pop("min_rank", 0), "min_rank", 0)  # its upper end is each matrix's own
    analyze(_PILOT, **given)
    settings = {**known, **options}
    if "kind" not in options:
        settings.pop("kind")
    if solver is not None:
        settings["eigensolver"] = getattr(solver, "__qualname__", type(solver).__name__)
    result: dict[str, Any] = plain(settings)
    return result


def check_jobs(n_jobs: Any) -> int | None:
    """Return `n_jobs` if joblib can take it: a whole number but 0, or None."""
    if n_jobs is None:
        return None
    hint = "1 works in this process, -1 takes all cores."
    number = _checks.integer(n_jobs, "n_jobs", -(2**31), hint=hint)
    if number == 0:
        raise InvalidOptionError("`n_jobs` is 0", "a whole number other than 0", hint)
    return number


def check_progress(progress: Any) -> None:
    """Raise unless `progress` can be called, or is None."""
    if progress is not None and not callable(progress):
        raise InvalidTypeError(f"`progress` is {progress!r}; expected a callable, or None.")


_PILOT = np.eye(4)
