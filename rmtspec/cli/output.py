"""What is printed: in any encoding, and no reason to fail once the files are written."""

import contextlib
import errno
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from rmtspec._text import printable


def spell_out() -> None:
    """Have characters that the encoding of the output lacks printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(words: str = "", *, err: bool = False) -> None:
    """Print one line, its control characters spelled out; what has no style goes here."""
    click.echo(printable(words), err=err)


def say_styled(lines: Iterable[str]) -> None:
    """Print lines whose texts are `printable` and which have the escapes of a style besides."""
    for line in lines:
        click.echo(line)


def say_lines(words: str = "") -> None:
    """Print some lines."""
    for line in words.split("\n"):
        say(line)


def complete(*written: Path | None) -> str:
    """Return the sentence for `after` that these files and folders are complete; "" for none."""
    places = [str(place) for place in written if place is not None]
    return f"{' and '.join(places)} {'is' if len(places) == 1 else 'are'} complete." * bool(places)


@contextlib.contextmanager
def after(done: str) -> Iterator[None]:
    """Print what was done; if the output fails, say only that, because the files are there.

    `done` says so, as a sentence, and the command ends with status 0; if it is empty, the failure
    is an error. A reader of a pipe who has enough is told nothing.
    """
    try:
        yield
    except OSError as error:
        if not done:
            raise
        sys.stdout = io.StringIO()  # it is flushed at the exit, which would fail again
        if error.errno != errno.EPIPE:
            with contextlib.suppress(OSError):
                say(f"The output cannot be written: {_reason(error)}. {done}", err=True)


def lost(error: OSError) -> click.ClickException:
    """Return the error of a command whose results could not be printed."""
    sys.stdout = io.StringIO()
    return click.ClickException(f"the output cannot be written: {_reason(error)}.")


def _reason(error: OSError) -> str:
    return printable(error.strerror or str(error))
