"""A command that shows our errors as one message, in its own words: `--jobs` for `n_jobs`."""

import re
from typing import Any

import click

from rmtspec.cli.tables import one_line
from rmtspec.errors import OptionError, RmtspecError

#: An option as messages name it, `keep` or `ranks['fc']`, and as hints pass it, keep=0.9.
_NAMED = re.compile(r"`(\w+)(?:\[(.+?)\])?`")
_PASSED = re.compile(r"\b(\w+)=(\S+)")
#: What the command calls otherwise than Python, name and value together.
_PAIRS = {"mode='truncate'": "--as dense", "mode='split'": "--as factors"}


class Command(click.Command):
    """A command whose errors are one message, without traceback.

    A wrong option is wrong usage, exit status 2; for any other error of ours the status is 1.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except OptionError as error:
            raise click.UsageError(in_flags(error, self), ctx) from None
        except RmtspecError as error:
            raise click.ClickException(one_line(str(error))) from None
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


def in_flags(error: OptionError, command: click.Command) -> str:
    """Return the message of an error, its options named as on the line of the command."""
    flags = {option.name: option.opts[0] for option in command.params}

    def flag(found: re.Match[str]) -> str:
        name, value = found[1], found[2] or ""
        return f"{flags[name]} {value}".strip() if name in flags else found[0]

    parts = [error.problem, error.expected, error.command_hint]
    for pair, words in _PAIRS.items():
        parts = [part.replace(pair, words) for part in parts]
    problem, *rest = (_NAMED.sub(flag, part) for part in parts)
    return one_line(str(OptionError(problem, *(_PASSED.sub(flag, part) for part in rest))))
