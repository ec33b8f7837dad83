"""Killing `rmtspec analyze --resume` and `rmtspec prune`, and seeing them end as if nothing was.

    python benchmarks/checkpoint/kill.py [FOLDER] [--times 20] [--rows 5] [--seed 0]

Each trial begins in an empty folder, is killed (SIGKILL, its whole process group) at a random
moment, mostly after it has begun to write, once or several times in a row, is run to its end by the
same command, and is compared with a run that nobody killed: all files byte for byte, of JSON all
but the wall times (keys with "seconds" in them). Exit status 1 where one differs. kill_points.py
hits the places that random moments miss.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WHAT = ("analyze", "factors", "dense")
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
#: In the names of files that are written and then renamed.
TOKEN = re.compile(r"(?<=\.rmtspec-)[0-9a-f]{16}(?=\.tmp$)")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Trial:
    """What came of one fresh start, its kills and its last run.

    Attributes
    ----------
    moments : tuple of str
        When it was killed; "not killed" where it was quicker.
    found : tuple of str
        What was there after each kill.
    differences : tuple of str
        Files that differ from those of the run that nobody killed, or how else it ended badly.
    strays : tuple of str
        Temporary files that were left beside the results.
    """

    moments: tuple[str, ...]
    found: tuple[str, ...]
    differences: tuple[str, ...]
    strays: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether it ended as the unbroken run did."""
        return not self.differences

    def __str__(self) -> str:
        kills = "; ".join(f"{m}: {f}" for m, f in zip(self.moments, self.found, strict=True))
        ending = "equal" if self.equal else f"DIFFERENT: {', '.join(self.differences)}"
        left = f" (left behind: {', '.join(self.strays)})" if self.strays else ""
        return f"{kills}; {ending}{left}"


def killed_runs(
    command: Sequence[str],
    times: int,
    seed: int,
    *,
    kills: int = 1,
    say: Say | None = None,
) -> list[Trial]:
    """Kill a command at random moments of its run, resume it, compare.

    Parameters
    ----------
    command : sequence of str
        Run in a fresh folder for each trial: the paths of what it reads are absolute, of what it
        writes relative.
    times : int
        Trials. A fifth are killed first before anything is written, which takes most of the time
        of a small checkpoint; the others after, at moments one each from as many equal parts of
        the time that is then left to the unbroken run, divided by `kills`.
    seed : int
        Of the moments.
    kills : int
        In a row, each of the run that goes on after the one before.
    say : callable, optional
        Called with a line for each trial.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        expected, idle, busy = _timed(command, Path(place))
        early, busy = times // 5, busy / kills
        firsts = [(False, rng.random() * idle) for _ in range(early)]
        late = times - early
        firsts += [(True, (part + rng.random()) / late * busy) for part in range(late)]
        trials = []
        for number, first in enumerate(rng.sample(firsts, times), 1):
            folder = Path(place, str(number))
            folder.mkdir()
            moments = [first, *((True, rng.random() * busy) for _ in range(kills - 1))]
            noted = [_killed_at(command, folder, *moment) for moment in moments]
            trials.append(concluded(noted, folder, expected, lambda f: _ended(command, f)))
            if say is not None:
                say(f"{number:3}  {trials[-1]}")
        return trials


def _timed(command: Sequence[str], place: Path) -> tuple[dict[str, bytes], float, float]:
    """Return what a run that nobody kills leaves, its seconds until it writes, and the others."""
    expected = unbroken(place / "first", lambda folder: _ended(command, folder))  # fills caches
    times = [time.perf_counter()]

    def timed(folder: Path) -> int:
        process = _started(command, folder)
        _wait_for_change(process, folder, {})
        times.append(time.perf_counter())
        return process.wait()

    differ = _differences(unbroken(place / "second", timed), expected)
    if differ:
        raise SystemExit(f"two runs that nobody killed differ: {', '.join(differ)}")
    return expected, times[1] - times[0], time.perf_counter() - times[1]


def unbroken(folder: Path, run: Callable[[Path], int]) -> dict[str, bytes]:
    """Return what a run that nobody kills leaves in a new folder."""
    folder.mkdir()
    status = run(folder)
    if status:
        raise SystemExit(f"a run that nobody killed failed with status {status}")
    left = contents(folder)
    strays = [name for name in left if TOKEN.search(name)]
    if strays:
        raise SystemExit(f"a run that nobody killed left temporary files: {', '.join(strays)}")
    return left


def concluded(
    noted: list[tuple[str, str]],
    folder: Path,
    expected: dict[str, bytes],
    run: Callable[[Path], int],
) -> Trial:
    """Return the trial whose kills are `noted`: run to the end, and compare."""
    complete = all(name.endswith("/") for name in _differences(contents(folder), expected))
    status = run(folder)
    left = contents(folder)
    differences = _differences(left, expected)
    # Killed at its very end, prune has left all files it should, and refuses to write there again.
    if status and not complete:
        differences.append(f"status {status}")
    strays = tuple(name for name in left if _is_stray(name))
    moments, found = zip(*noted, strict=True)
    return Trial(moments, found, tuple(differences), strays)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files in a folder by name, of JSON the values without wall times."""
    found = {}
    for place in sorted(folder.rglob("*")):
        name = place.relative_to(folder).as_posix()
        if place.is_dir():
            found[f"{name}/"] = b""
            continue
        content = place.read_bytes()
        if place.suffix == ".json":
            content = _timeless(content)
        elif place.suffix == ".jsonl":  # with several processes in no order
            content = b"\n".join(sorted(map(_timeless, content.splitlines())))
        found[name] = content
    return found


def _timeless(content: bytes) -> bytes:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if "seconds" not in k}
        return [without(v) for v in value] if isinstance(value, list) else value

    try:
        return json.dumps(without(json.loads(content))).encode()
    except ValueError:  # only a part of it
        return content


def _differences(left: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Return the files that are missing, too many or of other content.

    Temporary files beside the results are none: a run cannot know those of an earlier one.
    """
    names = sorted(left.keys() | expected.keys())
    return [n for n in names if left.get(n) != expected.get(n) and not _is_stray(n)]


def _is_stray(name: str) -> bool:
    return "/" not in name and TOKEN.search(name) is not None


def state(folder: Path) -> str:
    """Return in words what a run has left so far."""
    said = []
    for journal in sorted(folder.rglob("*.jsonl")):
        *lines, rest = journal.read_bytes().split(b"\n")
        said.append(f"journal of {len(lines)} lines{' and a part' if rest else ''}")
    files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    names = [p.as_posix() for p in files if p.suffix != ".jsonl"]
    working = sum(".rmtspec-work/" in name for name in names)
    if working:
        said.append(f"{working} files at work")
    if len(names) > working:
        said.append(f"{len(names) - working} in place")
    return ", ".join(said) or "nothing there"


def _started(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **ONE_THREAD},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _ended(command: Sequence[str], folder: Path) -> int:
    return _started(command, folder).wait()


def _killed_at(
    command: Sequence[str], folder: Path, writing: bool, seconds: float
) -> tuple[str, str]:
    """Kill the command so long after its start, or its first change; return when, and the state."""
    before = _sizes(folder)
    process = _started(command, folder)
    if writing:
        _wait_for_change(process, folder, before)
    try:
        process.wait(seconds)
        when = "not killed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        when = f"killed {seconds:.3f} s after its {'first change' if writing else 'start'}"
    return when, state(folder)


def _wait_for_change(
    process: subprocess.Popen[bytes], folder: Path, before: dict[Path, int]
) -> None:
    while process.poll() is None and _sizes(folder) == before:
        time.sleep(0.002)


def _sizes(folder: Path) -> dict[Path, int]:
    found = {}
    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
        for place in folder.rglob("*"):
            if place.is_file() and not _is_stray(place.relative_to(folder).as_posix()):
                found[place] = place.stat().st_size
    return found


def arguments_of(checkpoint: Path) -> dict[str, list[str]]:
    """Return the arguments of `rmtspec` that are tried, by what they do."""
    path, prune = str(checkpoint.absolute()), ["--bulk-keep", "0.1", "--report", "report.json"]
    return {
        "analyze": ["analyze", path, "--resume", "scan.jsonl", "--out", "report.json"],
        "factors": ["prune", path, "out", "--as", "factors", *prune],
        "dense": ["prune", path, "out", "--as", "dense", *prune],
    }


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with what both scripts take."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("folder", nargs="?", type=Path, help="a checkpoint; made if left out")
    made.add_argument("--width", type=int, default=512, help="of one that is made (512)")
    made.add_argument("--gb", type=float, default=0.1, help="size of one that is made (0.1)")
    made.add_argument("--what", nargs="+", choices=WHAT, default=WHAT, help="commands to kill")
    made.add_argument("--seed", type=int, default=0, help="of the kills (0)")
    return made


@contextlib.contextmanager
def checkpoint(given: argparse.Namespace) -> Iterator[Path]:
    """Give the checkpoint that was named, or one made for the time being."""
    if given.folder is not None:
        yield given.folder
        return
    from synthetic import make_checkpoint

    with tempfile.TemporaryDirectory() as place:
        make_checkpoint(Path(place, "checkpoint"), given.gb, 3, given.width)
        yield Path(place, "checkpoint")


def verdict(trials: Sequence[Trial]) -> int:
    """Say how many trials differ; return the exit status."""
    different = sum(not trial.equal for trial in trials)
    print(f"{len(trials)} trials, {different} different")
    return 1 if different else 0


def main() -> int:
    """Kill, resume, compare; return 1 where something differs."""
    line = parser(__doc__.partition("\n")[0])
    line.add_argument("--times", type=int, default=20, help="trials with one kill (20)")
    line.add_argument("--rows", type=int, default=5, help="trials with several kills in a row (5)")
    line.add_argument("--kills", type=int, default=3, help="kills in a row (3)")
    line.add_argument("--jobs", type=int, default=1, help="processes (1)")
    given = line.parse_args()
    trials: list[Trial] = []
    with checkpoint(given) as folder:
        for what in given.what:
            arguments = [*arguments_of(folder)[what], "--jobs", str(given.jobs)]
            command = [sys.executable, "-m", "rmtspec.cli", *arguments]
            for times, kills in ((given.times, 1), (given.rows, given.kills)):
                if times:
                    print(f"{what}, {times} trials, kills in each: {kills}")
                    seed = given.seed + kills
                    trials += killed_runs(command, times, seed, kills=kills, say=print)
    return verdict(trials)


if __name__ == "__main__":
    sys.exit(main())
