"""The commands on a file that holds a whole model: an adapter reads it, prunes it and writes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rmtspec._frameworks import adapter_of
from rmtspec._text import printable
from rmtspec.cli.output import after, complete, say
from rmtspec.cli.progress import progress_bar
from rmtspec.cli.tables import show

if TYPE_CHECKING:
    from rmtspec.report.report import Report


def takes(path: Path) -> bool:
    """Tell whether an adapter reads such a file; raise if what that needs is not installed."""
    return adapter_of(path) is not None


def analyze(path: Path, **options: Any) -> "Report":
    """Return the report on a model."""
    adapter: Any = adapter_of(path)
    with progress_bar() as progress:
        report: Report = adapter.analyze(path, progress=progress, **options)
    return report


def prune(
    path: Path, out: Path | None, calibration: Path | None, report: Path | None,
    unfit: Mapping[str, Any], options: dict[str, Any],
) -> None:  # fmt: skip
    """Plan the pruning of a model, show the plan, and write the result to `out` if given."""
    refuse(path, unfit)
    adapter: Any = adapter_of(path)
    if out is not None:
        _check_new(path, out)
    known = None
    if calibration is not None:
        from rmtspec.planning.calibration import Calibration

        known = Calibration.load(calibration)
        known.check_objective(options.get("objective"))
    given = {name: value for name, value in options.items() if name not in ("plan", "objective")}
    plan = options.get("plan")
    with progress_bar() as progress:
        if plan is None:
            plan = adapter.plan(path, calibration=known, progress=progress, **given)
        done = plan
        if out is not None:
            model, done = adapter.apply_plan(path, plan, calibration=known)
            adapter.save(model, out)
    if report is not None:
        done.save(report)
    with after(complete(out, report)):
        show(done)
        if report is not None:
            say(f"Report written to {report}")
        say("Nothing written (--dry-run)" if out is None else f"Written to {out}")


def merge(path: Path, out: Path) -> None:
    """Write the model with the factors multiplied out."""
    _check_new(path, out)
    adapter: Any = adapter_of(path)
    adapter.save(adapter.merge(path), out)
    with after(complete(out)):
        say(f"Written to {out}")


def refuse(path: Path, unfit: Mapping[str, Any]) -> None:
    """Refuse options, by flag, that were given and mean nothing for such a file."""
    for flag, value in unfit.items():
        if value not in (None, False):
            raise click.UsageError(f"{flag} does not work on {path.suffix} files. Leave it out.")


def _check_new(path: Path, out: Path) -> None:
    """Refuse a place that is there already, or a file of another kind."""
    if out.suffix.lower() != path.suffix.lower():
        raise click.BadParameter(
            f"{printable(str(out))}; expected the name of a new {path.suffix} file.",
            param_hint="OUT",
        )
    if out.exists():
        raise click.BadParameter(
            f"{printable(str(out))} exists. Name another file.", param_hint="OUT"
        )
