"""Places that a command writes to: what is wrong with one is wrong usage, said before any work."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from rmtspec._text import printable
from rmtspec.errors import FileError, InvalidValueError, OptionError

#: Of every command that writes a report.
force_option = click.option(
    "--force", is_flag=True, help="Let the report replace a file that is no report of rmtspec."
)


@contextlib.contextmanager
def target(argument: str) -> Iterator[None]:
    """Report a place that cannot be written to as wrong usage of the argument that names it."""
    try:
        yield
    except OptionError:
        raise
    except (FileError, InvalidValueError) as error:
        raise click.BadParameter(printable(str(error)), param_hint=argument) from None


def check_report(
    file: Path | None, argument: str, read: Iterable[Path | None], *, force: bool,
    yaml: bool = False,
) -> None:  # fmt: skip
    """Raise now what writing the report would raise after all the work, or would destroy.

    `read` are the files and folders that the work reads; `force` lets the report replace a file
    that is neither one of those nor a report. With `yaml` it is the list of weights to train.
    """
    if file is None:
        return
    from rmtspec.report.places import check_place, check_target, is_report
    from rmtspec.report.unfreeze import check_yaml

    with target(argument):
        if yaml:
            check_yaml(file)
        check = check_target if yaml else check_place
        check(file, [path for path in read if path is not None])
    if file.exists() and not force and not is_report(file):
        words = f"{file} exists and is no report of rmtspec. Name another file, or pass --force."
        raise click.BadParameter(printable(words), param_hint=argument)
