"""The kills of kill.py at places instead of moments, so that no short window is missed.

    python benchmarks/checkpoint/kill_points.py [FOLDER] [--kills 2] [--bytes 40]

- before each change to the files: opening one for writing, renaming, removing, making a folder;
- at a number of bytes: when any file would grow beyond it, in the middle of a line or of a tensor.

The runs are forked copies of one process that has everything loaded, so hundreds of kills take
minutes. They end by SIGKILL or an unhandled SIGXFSZ.
"""

import contextlib
import itertools
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kill import (
    ONE_THREAD,
    TOKEN,
    Say,
    Trial,
    arguments_of,
    checkpoint,
    concluded,
    parser,
    state,
    unbroken,
    verdict,
)

#: Names of changes in the audit hooks of the interpreter; "open" is one only for writing.
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod")
#: Called in the copy with its folder; arranges for it to be killed later.
Killer = Callable[[Path], None]


def killed_at_changes(
    arguments: Sequence[str], *, kills: int = 1, seed: int = 0, say: Say | None = None
) -> list[Trial]:
    """Kill `rmtspec` with these arguments before each change that it makes in its folder.

    Further kills come before random changes of the runs that resume.
    """
    rng = random.Random(seed)
    with _copies(arguments) as copies:
        changes = copies.changes()
        trials = []
        for number, what in enumerate(changes):
            others = [rng.randrange(len(changes)) for _ in range(kills - 1)]
            plan = [(f"before {what}", _before_change(number))]
            plan += [(f"before change {n} of the next", _before_change(n)) for n in others]
            trials.append(copies.trial(plan, say))
        return trials


def killed_at_bytes(
    arguments: Sequence[str], times: int, *, seed: int = 0, say: Say | None = None
) -> list[Trial]:
    """Kill `rmtspec` with these arguments when a file would exceed a random number of bytes."""
    rng = random.Random(seed)
    with _copies(arguments) as copies:
        largest = max(map(len, copies.expected.values()))
        # Log-uniform, because a journal is much shorter than the weights.
        sizes = [int(largest ** rng.uniform(0.4, 1.0)) for _ in range(times)]
        return [copies.trial([(f"at {n} bytes", _past_bytes(n))], say) for n in sizes]


class _Copies:
    """Runs with the same arguments, each in a copy of this process and in its own folder."""

    def __init__(self, arguments: Sequence[str], place: Path) -> None:
        self._arguments, self._place, self._number = arguments, place, 0
        # The first run is in this process, so that the copies have what it imports and compiles.
        self.expected = unbroken(place / "unbroken", self._here)

    def changes(self) -> list[str]:
        """Return descriptions of the changes that a run makes in its folder."""
        folder = self._place / "changes"
        folder.mkdir()
        read, write = os.pipe()
        self._copy(folder, lambda f: _on_change(f, lambda what: os.write(write, what.encode())))
        os.close(write)
        with os.fdopen(read) as stream:
            return stream.read().splitlines()

    def trial(self, plan: list[tuple[str, Killer]], say: Say | None) -> Trial:
        """Return the trial of a run that is killed as planned, one kill after the other."""
        self._number += 1
        folder = self._place / str(self._number)
        folder.mkdir()
        noted = []
        for words, killer in plan:
            ended = self._copy(folder, killer)
            noted.append((f"killed {words}" if ended < 0 else "not killed", state(folder)))
        trial = concluded(noted, folder, self.expected, self._copy)
        if say is not None:
            say(f"{self._number:3}  {trial}")
        return trial

    def _copy(self, folder: Path, killer: Killer | None = None) -> int:
        """Return how a run in a copy of this process ended: its status, or minus the signal."""
        process = os.fork()
        if process:
            return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        status = 70
        try:
            if killer is not None:
                killer(folder)
            status = self._here(folder)
        finally:
            os._exit(status)

    def _here(self, folder: Path) -> int:
        from rmtspec.cli import main

        with (
            contextlib.chdir(folder),
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            try:
                main(list(self._arguments), prog_name="rmtspec")
            except SystemExit as ended:
                return int(ended.code or 0)
        return 0


@contextlib.contextmanager
def _copies(arguments: Sequence[str]) -> Iterator[_Copies]:
    with tempfile.TemporaryDirectory() as place:
        yield _Copies(arguments, Path(os.path.realpath(place)))


def _before_change(number: int) -> Killer:
    def killer(folder: Path) -> None:
        left = itertools.count(number, -1)
        _on_change(folder, lambda _: None if next(left) else os.kill(os.getpid(), signal.SIGKILL))

    return killer


def _on_change(folder: Path, call: Callable[[str], object]) -> None:
    """From now on, have this process call `call` before each change to a file in the folder."""

    def hook(event: str, given: tuple[Any, ...]) -> None:
        writes = event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in _CHANGES) and isinstance(given[0], str | os.PathLike):
            path = Path(os.path.realpath(given[0]))
            if path.is_relative_to(folder) and path != folder:
                call(f"{event} {TOKEN.sub('*', path.relative_to(folder).as_posix())}\n")

    sys.addaudithook(hook)


def _past_bytes(size: int) -> Killer:
    def killer(_: Path) -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it and raises
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return killer


def main() -> int:
    """Kill, resume, compare; return 1 if something differs."""
    line = parser(__doc__.partition("\n")[0])
    line.add_argument("--kills", type=int, default=2, help="most kills before changes in a row (2)")
    line.add_argument("--bytes", type=int, default=40, help="trials at a number of bytes (40)")
    given = line.parse_args()
    os.environ.update(ONE_THREAD)  # before NumPy loads
    trials: list[Trial] = []
    with checkpoint(given) as folder:
        for what in given.what:
            arguments = arguments_of(folder)[what]
            for kills in range(1, given.kills + 1):
                print(f"{what}, before each change to the files, kills in each: {kills}")
                trials += killed_at_changes(arguments, kills=kills, seed=given.seed, say=print)
            if given.bytes:
                print(f"{what}, at a number of bytes")
                trials += killed_at_bytes(arguments, given.bytes, seed=given.seed, say=print)
    return verdict(trials)


if __name__ == "__main__":
    sys.exit(main())
