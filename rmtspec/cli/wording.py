"""A command that shows our errors as one message, in its own terms: `--jobs` for `n_jobs`."""

import contextlib
import errno
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import click

from rmtspec._text import printable
from rmtspec.cli.output import lost, say, spell_out
from rmtspec.errors import OptionError, RmtspecError, RmtspecWarning

#: An option as messages name it, `keep` or `ranks['fc']`, and as hints pass it, keep=0.9.
_NAMED = re.compile(r"`(\w+)(?:\[(.+?)\])?`")
_PASSED = re.compile(r"\b(\w+)=(\S+)")
#: Name and value of an option that differ between Python and the command.
_PAIRS = {
    "mode='truncate'": "--as dense", "mode='split'": "--as factors", "gate=None": "--gate none",
    "noise='auto'": "--noise auto",
    "the method 'stochastic'": "--method stochastic",
    "calibration= and budget=": "calibration and budget in Python",
}  # fmt: skip


class Command(click.Command):
    """A command that shows each error and each warning as one message, without lines of code.

    The exit status is 2 for a wrong option, and 1 for any other error of this package.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with _warnings_in_words(self):
                return super().invoke(ctx)
        except OptionError as error:
            raise click.UsageError(in_flags(error, self), ctx) from None
        except RmtspecError as error:
            raise click.ClickException(printable(spoken(str(error), self))) from None
        except OSError as error:  # files have errors of their own; what is left is the output
            if error.errno == errno.EPIPE:  # whoever read it has enough
                raise
            raise lost(error) from None
        except KeyboardInterrupt:
            say("Interrupted.", err=True)
            ctx.exit(130)


class Group(click.Group):
    """The command with its subcommands: what they print and complain of is safe on a terminal."""

    command_class = Command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command line."""
        spell_out()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # of the help
            lost(error).show()
            sys.exit(1)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the options before the name of the subcommand."""
        with _spelled_out():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand."""
        with _spelled_out():
            return super().invoke(ctx)


@contextlib.contextmanager
def _spelled_out() -> Iterator[None]:
    """Spell out the control characters in the message of an error."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = "\n".join(map(printable, error.message.split("\n")))
        raise


@contextlib.contextmanager
def _warnings_in_words(command: click.Command) -> Iterator[None]:
    """Show our warnings without the line of code that they come from; any other as it was."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, RmtspecWarning):
                say(f"Warning: {spoken(str(message), command)}", err=True)
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        warnings.simplefilter("always", RmtspecWarning)
        yield


def in_flags(error: OptionError, command: click.Command) -> str:
    """Return the message of an error with the options named as on the command line."""
    flags = _flags(command)
    parts = (spoken(part, command) for part in (error.problem, error.expected, error.command_hint))
    problem, *rest = parts  # values that were given, in the first, stay as they are
    return printable(str(OptionError(problem, *(_PASSED.sub(flags, part) for part in rest))))


def spoken(text: str, command: click.Command | None = None) -> str:
    """Return a text with options named as on the line of a command, by default the running one."""
    for pair, words in _PAIRS.items():
        text = text.replace(pair, words)
    return _NAMED.sub(_flags(command or click.get_current_context().command), text)


def _flags(command: click.Command) -> Callable[[re.Match[str]], str]:
    """Return what replaces the name of an option, and its value if there is one, by its flag."""
    flags = {option.name: option.opts[0] for option in command.params}

    def flag(option: re.Match[str]) -> str:
        name, value = option[1], option[2] or ""
        return f"{flags[name]} {value}".strip() if name in flags else option[0]

    return flag
