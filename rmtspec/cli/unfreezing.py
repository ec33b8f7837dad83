"""What `rmtspec analyze --unfreeze` does with the report: the list of weights to train."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rmtspec._text import counted, grouped
from rmtspec.cli.output import say
from rmtspec.cli.wording import spoken

if TYPE_CHECKING:
    from rmtspec.report.report import Report
    from rmtspec.report.unfreeze import Unfrozen


def check_unfreeze(share: float | None, out: Path | None, paths: Sequence[Path]) -> None:
    """Raise now what is wrong with a share of weights to train, before any work."""
    if share is None:
        return
    from rmtspec.report.unfreeze import check_share

    check_share(share, "unfreeze")
    if out is None:
        raise click.UsageError("--unfreeze writes a list of weights; expected --out FILE.yaml.")
    if len(paths) > 1:
        raise click.UsageError("--unfreeze chooses the weights of one model; expected one PATH.")


def chosen_by(report: "Report", share: float, out: Path | None) -> "Unfrozen":
    """Choose the weights to train and write their list."""
    from rmtspec.report.unfreeze import unfreeze

    unfrozen = unfreeze(report, share)
    unfrozen.to_yaml(out)
    return unfrozen


def show_unfrozen(unfrozen: "Unfrozen", out: Path | None) -> None:
    """Say what was chosen, and of what nothing was."""
    total = len(unfrozen) + sum(map(len, unfrozen.frozen.values()))
    say(f"{len(unfrozen)} of {counted(total, 'weight')} to train, listed in {out}")
    for reason, names in grouped(unfrozen.left_out):
        say(f"not ranked: {names}: {spoken(reason)}")
