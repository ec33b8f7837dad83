"""`python -m rmtspec`: the command `rmtspec`."""

from rmtspec.cli.commands import main

if __name__ == "__main__":
    main(prog_name="rmtspec")
