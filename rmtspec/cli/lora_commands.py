"""The commands on adapters of LoRA: `rmtspec extract-lora` and `rmtspec resize-lora`."""

from pathlib import Path
from typing import Any

import click

from rmtspec.cli.output import after, complete, say
from rmtspec.cli.parameters import FilePath
from rmtspec.cli.places import check_report, force_option, target
from rmtspec.cli.progress import progress_bar
from rmtspec.cli.tables import show
from rmtspec.cli.wording import Command

_PATH = FilePath(path_type=Path)
_REPORT = click.option(
    "--report", type=_PATH, help="Write the report to this .html, .csv or .json file too."
)
_DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Show the ranks and write nothing; OUT is optional."
)


@click.command(cls=Command)
@click.argument("base", type=_PATH)
@click.argument("tuned", type=_PATH)
@click.argument("out", required=False, type=_PATH)
@click.option("--rank", type=click.IntRange(min=1), help="One rank for all layers.")
@click.option("--budget", type=float, help="Share of the changed parameters to write.")
@click.option("--include", metavar="RE", help="Only names that match this expression.")
@click.option("--exclude", metavar="RE", help="No names that match this expression.")
@click.option(
    "--noise",
    type=click.Choice(["auto", "mp", "equalized", "signflip"]),
    default="auto",
    show_default=True,
    help="Model of the noise in the difference, whose components are kept.",
)
@click.option(
    "--beta", type=float, show_default="0.01", help="Chance of a component in pure noise."
)
@click.option("--rng", type=int, show_default="0", help="Seed of the sign flips.")
@_DRY_RUN
@_REPORT
@force_option
def extract_lora(
    base: Path, tuned: Path, out: Path | None, dry_run: bool, report: Path | None, force: bool,
    **request: Any,
) -> None:  # fmt: skip
    """Write what fine-tuning changed from BASE to TUNED as an adapter of LoRA, for PEFT, in OUT.

    Each layer gets the rank at which the noise in its difference begins. OUT is a new folder.
    """
    from rmtspec.runs.extract_lora import extract_lora as extract

    check_report(report, "--report", (base, tuned), force=force)
    out = _new_folder(out, dry_run)
    given = {name: value for name, value in request.items() if value is not None}
    with progress_bar() as progress:
        done = extract(base, tuned, out, report=report, progress=progress, **given)
    _tell(done, out, report)


@click.command(cls=Command)
@click.argument("adapter", type=_PATH)
@click.argument("out", required=False, type=_PATH)
@click.option("--rank", type=click.IntRange(min=1), help="The highest rank of a layer.")
@click.option(
    "--keep", type=float, default=1.0, show_default=True, help="Share of each layer's energy."
)
@_DRY_RUN
@_REPORT
@force_option
def resize_lora(
    adapter: Path, out: Path | None, rank: int | None, keep: float, dry_run: bool,
    report: Path | None, force: bool,
) -> None:  # fmt: skip
    """Write ADAPTER, of LoRA, with the ranks that its own spectra need, in OUT, a new folder."""
    from rmtspec.runs.resize_lora import resize_lora as resize

    check_report(report, "--report", (adapter,), force=force)
    out = _new_folder(out, dry_run)
    _tell(resize(adapter, out, rank=rank, keep=keep, report=report), out, report)


def _new_folder(out: Path | None, dry_run: bool) -> Path | None:
    """Return the folder to write into, None for a dry run; raise if it cannot be made."""
    from rmtspec._files.writing import empty_folder

    if dry_run:
        return None
    if out is None:
        raise click.UsageError("Missing argument 'OUT'; only --dry-run works without it.")
    with target("OUT"):
        return empty_folder(out)


def _tell(done: Any, out: Path | None, report: Path | None) -> None:
    with after(complete(out, report)):
        show(done)
        if report is not None:
            say(f"Report written to {report}")
        say("Nothing written (--dry-run)" if out is None else f"Written to {out}")
