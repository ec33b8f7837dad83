"""All examples at the paper's full length, several runs at a time: what is missing is run.

    python benchmarks/paper/full_length.py --device cuda --jobs 14 --seeds 0 1 2

Each run is a process of its own. They come in the order of what they say about the paper: first
the published nets of the first seed. With --seconds all of them stop in time, and go on when the
same is called again.
"""

import argparse
import concurrent.futures
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from command import parser

#: Longest first, so that none begins when the others end.
ORDER = ("4.4", "4.5", "4.7", "4.3", "4.6")
#: Seconds before the deadline in which no run begins, and after it until a run is killed.
MARGIN = 15.0


class Run(NamedTuple):
    """One run of an example."""

    example: str
    method: str
    output_relu: bool
    seed: int


def runs(seeds: Sequence[int]) -> Iterator[Run]:
    """Yield the runs: per seed as published, then with linear outputs; then the rest."""
    for seed in seeds:
        for relu, methods in ((True, ("unsplit", "paper")), (False, ("unsplit", "edge"))):
            for example in ORDER:
                for method in methods:
                    # Example 4.5 is the net of 4.4 with another cutoff.
                    if example != "4.5" or method == "paper":
                        yield Run(example, method, relu, seed)
    for seed in seeds:
        for example in ORDER:
            if example != "4.5":
                yield Run(example, "paper", False, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the runs, as many at a time as asked for."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options.add_argument("--logs", type=Path, help="folder with a file for each run's lines")
    given = options.parse_args(arguments)
    until = None if given.seconds is None else time.monotonic() + given.seconds
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        done = [pool.submit(_start, run, given, until) for run in runs(given.seeds)]
        failed = [text for each in done if (text := each.result())]
    for text in failed:
        print(text, file=sys.stderr)
    sys.exit(bool(failed))


def _start(run: Run, given: argparse.Namespace, until: float | None) -> str:
    """Return what went wrong in a run, or ""."""
    remaining = None if until is None else until - time.monotonic()
    if remaining is not None and remaining < MARGIN:
        return ""
    script = Path(__file__).with_name(f"example_{run.example.replace('.', '_')}.py")
    command = [sys.executable, str(script), "--methods", run.method, "--seeds", str(run.seed)]
    command += ["--output-relu"] if run.output_relu else []
    command += ["--device", given.device, "--threads", str(given.threads)]
    command += ["--results", str(given.results), "--states", str(given.states)]
    command += ["--data", str(given.data)] if given.data else []
    command += ["--epochs", str(given.epochs)] if given.epochs else []
    command += ["--seconds", str(remaining)] if remaining is not None else []
    name = f"{run.example}-{run.method}-{'relu' if run.output_relu else 'linear'}-{run.seed}"
    one = str(given.threads)
    threads = {"OMP_NUM_THREADS": one, "OPENBLAS_NUM_THREADS": one, "MKL_NUM_THREADS": one}
    lines = subprocess.DEVNULL
    if given.logs:
        given.logs.mkdir(parents=True, exist_ok=True)
        lines = os.open(given.logs / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        limit = None if remaining is None else remaining + MARGIN
        ended = subprocess.run(
            command, stdout=lines, stderr=lines, env=os.environ | threads, timeout=limit,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{name}: killed, {MARGIN:g} s after the deadline"
    finally:
        if given.logs:
            os.close(lines)
    return f"{name}: ended with {ended.returncode}" if ended.returncode else ""


if __name__ == "__main__":
    main()
