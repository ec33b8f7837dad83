"""Several ways to train one net, over the same seeds, in one table."""

import argparse
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from training import Images, Setup, read_record, terminal_line, train

Record = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """A name for the table, the method with its options, and what else differs."""

    name: str
    method: str = "split"
    options: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)


#: Makes or reads the run of a way and a seed; None where there is none.
Runs = Callable[[Way, int], Record | None]


def runner(
    example: str, dims: tuple[int, ...], epochs: int, given: argparse.Namespace, images: Images
) -> Runs:
    """Return a function that trains the net in one way with one seed."""

    def run(way: Way, seed: int) -> Record:
        setup = Setup(
            example, dims, epochs, seed=seed, output_relu=given.output_relu, device=given.device,
            threads=given.threads, method=way.method, options=way.options, **way.other,
        )  # fmt: skip
        return train(setup, images, given.results, given.states, say=terminal_line)

    return run


def reader(
    example: str, dims: tuple[int, ...], epochs: int, results: Path, *, output_relu: bool = False
) -> Runs:
    """Return a function that reads the record of a run, None where it was not made."""

    def run(way: Way, seed: int) -> Record | None:
        setup = Setup(
            example, dims, epochs, seed=seed, output_relu=output_relu, method=way.method,
            options=way.options, **way.other,
        )  # fmt: skip
        return read_record(results / f"{setup.name}.json")

    return run


def collect(ways: Iterable[Way], run: Runs, seeds: Iterable[int]) -> dict[str, list[Record]]:
    """Return the records of each way, those that there are."""
    listed = list(seeds)
    found = {way.name: [run(way, seed) for seed in listed] for way in ways}
    return {name: kept for name, each in found.items() if (kept := [r for r in each if r])}


def rows(table: dict[str, list[Record]]) -> list[dict[str, Any]]:
    """Return a row for each way: means over its seeds.

    The worst fall is from one epoch to the next after the first split, of all seeds.
    """
    made = []
    for name, records in table.items():
        accuracies = [record["test_accuracy"] for record in records]
        made.append(
            {
                "training": name,
                "seeds": len(records),
                "parameters": f"{statistics.mean(r['parameters'] for r in records):,.0f}",
                "test accuracy, %": round(statistics.mean(accuracies), 2),
                "spread": round(max(accuracies) - min(accuracies), 2),
                "worst fall": round(max(map(worst_fall, records)), 2),
                "train accuracy, %": round(
                    statistics.mean(r["train_accuracy"] for r in records), 2
                ),
            }
        )
    return made


def print_table(table: dict[str, list[Record]]) -> None:
    """Print the rows in columns."""
    listed = rows(table)
    widths = {key: max(len(key), *(len(str(row[key])) for row in listed)) for key in listed[0]}
    for row in ({key: key for key in widths}, *listed):
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))


def worst_fall(record: Record) -> float:
    """Return the largest fall of the test accuracy between epochs from the first split on."""
    rows = record["epochs"]
    first = next((i for i, row in enumerate(rows) if changed(row)), 0)
    curve = [row["test_accuracy"] for row in rows[first:]]
    return max((a - b for a, b in pairwise(curve)), default=0.0)


def changed(row: dict[str, Any]) -> bool:
    """Tell whether anything was split or truncated after an epoch."""
    listed = row.get("change", {}).get("matrices", ())
    return any(matrix["action"] != "keep" for matrix in listed)
