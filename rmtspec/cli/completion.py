"""`rmtspec completion`: what makes a shell complete the command's words."""

from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from rmtspec.cli.output import say, say_lines

#: Where each shell looks for the completion of a command, from the home folder.
_PLACES = {
    "bash": ".local/share/bash-completion/completions/rmtspec",
    "zsh": ".zfunc/_rmtspec",
    "fish": ".config/fish/completions/rmtspec.fish",
}
_CLASSES: dict[str, type[ShellComplete]] = {
    "bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete
}  # fmt: skip
_ZSH = "Once, in ~/.zshrc before compinit: fpath+=~/.zfunc"


@click.command()
@click.argument("shell", type=click.Choice(list(_PLACES)))
@click.option("--print", "shown", is_flag=True, help="Print the script, and write nothing.")
def completion(shell: str, shown: bool) -> None:
    """Install completion for SHELL: its next sessions complete commands, options and files."""
    group = click.get_current_context().find_root().command
    script = _CLASSES[shell](group, {}, "rmtspec", "_RMTSPEC_COMPLETE").source()
    if shown:
        say_lines(script.rstrip("\n"))
        return
    from rmtspec._files.writing import write_atomically

    place = Path.home() / _PLACES[shell]
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, script)
    say(f"Written to {place}. New sessions of {shell} use it.")
    if shell == "zsh":
        say(_ZSH)
