"""`python -m rmtspec.cli`: the command `rmtspec`."""

from rmtspec.cli.commands import main

main(prog_name="rmtspec")
