"""Kill `rmtspec analyze --resume` and `rmtspec prune`, resume them, and check the results.

    python benchmarks/checkpoint/kill.py [FOLDER] [--times 20] [--rows 5] [--seed 0]

Each trial starts in an empty folder and is killed (SIGKILL, the whole process group) once or
several times in a row, at random moments, mostly after it has begun to write. The same command then
runs to its end, and the result is compared with that of an unbroken run: all files byte for byte,
except for the wall times in JSON (keys that contain "seconds"). The exit status is 1 if a trial
differs. kill_points.py covers the places that random moments miss.
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
#: Occurs in the names of temporary files, which are renamed when complete.
TOKEN = re.compile(r"(?<=\.rmtspec-)[0-9a-f]{16}(?=\.tmp$)")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Trial:
    """The outcome of one fresh start, its kills and its last run.

    Attributes
    ----------
    moments : tuple of str
        When it was killed; "not killed" if it ended first.
    states : tuple of str
        What was on disk after each kill.
    differences : tuple of str
        Files that differ from those of the unbroken run, or a bad exit status.
    strays : tuple of str
        Temporary files left next to the results.
    """

    moments: tuple[str, ...]
    states: tuple[str, ...]
    differences: tuple[str, ...]
    strays: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether the result is that of the unbroken run."""
        return not self.differences

    def __str__(self) -> str:
        kills = "; ".join(f"{m}: {s}" for m, s in zip(self.moments, self.states, strict=True))
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
    """Kill a command at random moments, resume it, and compare the results.

    Parameters
    ----------
    command : sequence of str
        Run in a fresh folder for each trial; it reads from absolute paths and writes to relative
        ones.
    times : int
        Number of trials. In a fifth of them the first kill comes before anything is written, which
        takes most of the time with a small checkpoint. In the others it comes later, at one random
        moment in each of as many equal parts of the remaining time of the unbroken run, divided by
        `kills`.
    seed : int
        Seed of the moments.
    kills : int
        Number of kills in a row, each of the run that resumes the previous one.
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
    """Return the result of an unbroken run, its seconds until it first writes, and the rest."""
    expected = unbroken(place / "first", lambda folder: _ended(command, folder))  # fills caches
    times = [time.perf_counter()]

    def timed(folder: Path) -> int:
        process = _started(command, folder)
        _wait_for_change(process, folder, {})
        times.append(time.perf_counter())
        return process.wait()

    differ = _differences(unbroken(place / "second", timed), expected)
    if differ:
        raise SystemExit(f"two unbroken runs differ: {', '.join(differ)}")
    return expected, times[1] - times[0], time.perf_counter() - times[1]


def unbroken(folder: Path, run: Callable[[Path], int]) -> dict[str, bytes]:
    """Return what an unbroken run leaves in a new folder."""
    folder.mkdir()
    status = run(folder)
    if status:
        raise SystemExit(f"an unbroken run failed with status {status}")
    left = contents(folder)
    strays = [name for name in left if TOKEN.search(name)]
    if strays:
        raise SystemExit(f"an unbroken run left temporary files: {', '.join(strays)}")
    return left


def concluded(
    noted: list[tuple[str, str]],
    folder: Path,
    expected: dict[str, bytes],
    run: Callable[[Path], int],
) -> Trial:
    """Run to the end after the `noted` kills, compare, and return the trial."""
    complete = all(name.endswith("/") for name in _differences(contents(folder), expected))
    status = run(folder)
    left = contents(folder)
    differences = _differences(left, expected)
    # If prune is killed at its very end, all files are complete, and it refuses to replace them.
    if status and not complete:
        differences.append(f"status {status}")
    strays = tuple(name for name in left if _is_stray(name))
    moments, states = zip(*noted, strict=True)
    return Trial(moments, states, tuple(differences), strays)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of the files in a folder by name, JSON without wall times."""
    files = {}
    for place in sorted(folder.rglob("*")):
        name = place.relative_to(folder).as_posix()
        if place.is_dir():
            files[f"{name}/"] = b""
            continue
        content = place.read_bytes()
        if place.suffix == ".json":
            content = _timeless(content)
        elif place.suffix == ".jsonl":  # in any order if there are several processes
            content = b"\n".join(sorted(map(_timeless, content.splitlines())))
        files[name] = content
    return files


def _timeless(content: bytes) -> bytes:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            # The checksum of a journal's line is over its wall times too.
            return {k: without(v) for k, v in value.items() if "seconds" not in k and k != "crc32"}
        return [without(v) for v in value] if isinstance(value, list) else value

    try:
        return json.dumps(without(json.loads(content))).encode()
    except ValueError:  # incomplete
        return content


def _differences(left: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Return the files that are missing, unexpected or different.

    Temporary files next to the results do not count: a run does not know those of an earlier one.
    """
    names = sorted(left.keys() | expected.keys())
    return [n for n in names if left.get(n) != expected.get(n) and not _is_stray(n)]


def _is_stray(name: str) -> bool:
    return "/" not in name and TOKEN.search(name) is not None


def state(folder: Path) -> str:
    """Describe what a run has left so far."""
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
    """Kill the command some seconds after its start or its first change; return when, and state."""
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
    sizes = {}
    with contextlib.suppress(FileNotFoundError):  # removed in the meantime
        for place in folder.rglob("*"):
            if place.is_file() and not _is_stray(place.relative_to(folder).as_posix()):
                sizes[place] = place.stat().st_size
    return sizes


def arguments_of(checkpoint: Path) -> dict[str, list[str]]:
    """Return the arguments of `rmtspec` to test, by the name of the test."""
    path = str(checkpoint.absolute())
    # Without the gate, whose analysis takes most of the time: what is killed here is the writing.
    prune = ["--gate", "none", "--bulk-keep", "0.1", "--report", "report.json"]
    return {
        "analyze": ["analyze", path, "--resume", "scan.jsonl", "--out", "report.json"],
        "factors": ["prune", path, "out", "--as", "factors", *prune],
        "dense": ["prune", path, "out", "--as", "dense", *prune],
    }


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of both scripts."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument(
        "folder", nargs="?", type=Path, help="a checkpoint; one is made if left out"
    )
    options.add_argument("--width", type=int, default=512, help="width of the one made (512)")
    options.add_argument("--gb", type=float, default=0.1, help="size of the one made (0.1)")
    options.add_argument("--what", nargs="+", choices=WHAT, default=WHAT, help="commands to kill")
    options.add_argument("--seed", type=int, default=0, help="seed of the kills (0)")
    return options


@contextlib.contextmanager
def checkpoint(given: argparse.Namespace) -> Iterator[Path]:
    """Yield the given checkpoint, or a temporary one."""
    if given.folder is not None:
        yield given.folder
        return
    from synthetic import make_checkpoint

    with tempfile.TemporaryDirectory() as place:
        make_checkpoint(Path(place, "checkpoint"), given.gb, 3, given.width)
        yield Path(place, "checkpoint")


def verdict(trials: Sequence[Trial]) -> int:
    """Print how many trials differ; return the exit status."""
    different = sum(not trial.equal for trial in trials)
    print(f"{len(trials)} trials, {different} different")
    return 1 if different else 0


def main() -> int:
    """Kill, resume, compare; return 1 if something differs."""
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
