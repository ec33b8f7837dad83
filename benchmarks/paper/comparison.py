"""Several ways to train one net, over the same seeds, in one table."""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from training import Images, Setup, terminal_line, train

Record = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """A name for the table, the method with its options, and what else differs."""

    name: str
    method: str = "split"
    options: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)


def runner(
    example: str, dims: tuple[int, ...], epochs: int, given: argparse.Namespace, images: Images
) -> Callable[[Way, int], Record]:
    """Return a function that trains the net in one way with one seed."""

    def run(way: Way, seed: int) -> Record:
        setup = Setup(
            example, dims, epochs, seed=seed, output_relu=given.output_relu, device=given.device,
            threads=given.threads, method=way.method, options=way.options, **way.other,
        )  # fmt: skip
        return train(setup, images, given.results, given.states, say=terminal_line)

    return run


def print_head() -> None:
    """Print the names of the columns."""
    print(f"{'':42} parameters   test %  spread   worst fall  train %  seconds")


def print_row(name: str, records: list[Record]) -> None:
    """Print means over the seeds; the worst fall is from one epoch to the next after a split."""
    accuracies = [record["test_accuracy"] for record in records]
    print(
        f"{name:42} {statistics.mean(r['parameters'] for r in records):10,.0f} "
        f"{statistics.mean(accuracies):8.2f} {max(accuracies) - min(accuracies):7.2f} "
        f"{max(map(worst_fall, records)):12.2f} "
        f"{statistics.mean(r['train_accuracy'] for r in records):8.2f} "
        f"{statistics.mean(r['seconds'] for r in records):8.0f}",
        flush=True,
    )


def worst_fall(record: Record) -> float:
    """Return the largest fall of the test accuracy between epochs from the first split on."""
    rows = record["epochs"]
    first = next((i for i, row in enumerate(rows) if _changed(row)), 0)
    curve = [row["test_accuracy"] for row in rows[first:]]
    return max((a - b for a, b in pairwise(curve)), default=0.0)


def _changed(row: dict[str, Any]) -> bool:
    listed = row.get("change", {}).get("matrices", ())
    return any(matrix["action"] != "keep" for matrix in listed)
