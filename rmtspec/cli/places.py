"""Places that a command writes to: what is wrong with one is wrong usage, said before any work."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from rmtspec._text import printable
from rmtspec.errors import FileError, InvalidValueError, OptionError


@contextlib.contextmanager
def target(argument: str) -> Iterator[None]:
    """Report a place that cannot be written to as wrong usage of the argument that names it."""
    try:
        yield
    except OptionError:
        raise
    except (FileError, InvalidValueError) as error:
        raise click.BadParameter(printable(str(error)), param_hint=argument) from None


def check_report(file: Path | None, argument: str) -> None:
    """Raise now what writing the report would raise after all the work."""
    if file is not None:
        from rmtspec._files.writing import check_writable
        from rmtspec.report.report import check_suffix

        with target(argument):
            check_suffix(file)
            check_writable(file)
