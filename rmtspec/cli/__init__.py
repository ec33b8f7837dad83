"""The command line."""

from rmtspec.cli.commands import main

__all__ = ["main"]
