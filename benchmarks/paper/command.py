"""The command line of the examples: which runs, how long, where; prints a table at the end.

Without --epochs as long as in the paper. Three runs for each seed: the net as it is, the paper's
algorithm, and all of the bulk removed once with the step matched.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
from training import Images, Setup, terminal_line, train

RESULTS = Path(__file__).parent / "results"
#: The best schedule that was found: all of the bulk removed once, spikes counted once, as the paper
#: does (refining finds one to four more).
EDGE = {"bulk_keep": 0.0, "refine": False}


@dataclass(frozen=True)
class Example:
    """One of the paper's examples.

    Attributes
    ----------
    number : str
        As in the paper.
    dims : tuple of int
        Widths of the net.
    paper_epochs : int
        How long the paper trained.
    fit_cutoff : float
        The paper's gamma.
    edge_after : int
        The epoch after which the bulk is removed in the best schedule that was found.
    """

    number: str
    dims: tuple[int, ...]
    paper_epochs: int
    fit_cutoff: float
    edge_after: int = 2

    def options(self, method: str) -> dict[str, Any]:
        """Return the options of a method for this example."""
        if method == "paper":
            # Every three epochs, 45 % of the bulk kept, a fresh optimizer, steps as they come.
            return {
                "every": 3,
                "fit_cutoff": self.fit_cutoff,
                "fresh_optimizer": True,
                "match_step": False,
            }
        return {"every": [self.edge_after], **EDGE} if method == "edge" else {}


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with what all experiments take."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--epochs", type=_count)
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    made.add_argument("--threads", type=_count, default=1)
    made.add_argument("--output-relu", action=argparse.BooleanOptionalAction, default=False)
    made.add_argument("--results", type=Path, default=RESULTS, help="JSON files, one per run")
    made.add_argument("--states", type=Path, default=_cache(), help="checkpoints, to resume from")
    made.add_argument("--data", type=Path, help="folder with the four MNIST files")
    made.add_argument(
        "--seconds", type=float, help="stop after the epoch in which so many seconds are over"
    )
    made.add_argument("--download", action="store_true", help="fetch them if they are missing")
    return made


def images(arguments: argparse.Namespace) -> Images:
    """Return MNIST on the device of the run."""
    dataset = datasets.load("mnist", folder=arguments.data, download=arguments.download)
    return Images(dataset, arguments.device)


def main(example: Example, arguments: Sequence[str] | None = None) -> None:
    """Run an example with the methods asked for."""
    options = parser(f"Example {example.number}: {list(example.dims)}.")
    choices = ("unsplit", "paper", "edge")
    options.add_argument("--methods", nargs="+", choices=choices, default=list(choices))
    given = options.parse_args(arguments)
    until = None if given.seconds is None else time.monotonic() + given.seconds
    loaded = images(given)
    records = []
    for seed in given.seeds:
        for method in sorted(set(given.methods), key=choices.index):
            setup = Setup(
                example=example.number,
                dims=example.dims,
                epochs=given.epochs or example.paper_epochs,
                seed=seed,
                output_relu=given.output_relu,
                device=given.device,
                threads=given.threads,
                method=method,
                options=example.options(method),
            )
            place = given.results, given.states
            records.append(train(setup, loaded, *place, say=terminal_line, until=until))
    print_table(records)


def print_table(records: list[dict[str, Any]]) -> None:
    """Print a line per run."""
    print("method       seed  epochs   test %   peak %  train %   parameters   seconds  dead")
    for record in records:
        setup, last = record["setup"], record["epochs"][-1]
        print(
            f"{setup['method']:12} {setup['seed']:4} {len(record['epochs']):7} "
            f"{record['test_accuracy']:8.2f} {record['peak_test_accuracy']:8.2f} "
            f"{record['train_accuracy']:8.2f} {record['parameters']:12,} "
            f"{record['seconds']:9.0f} {last['dead_outputs']:5}"
        )


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rmtspec" / "paper"


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number
