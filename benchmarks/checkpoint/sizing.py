"""The cost of scanning a language model: measured for a synthetic one, computed for larger ones.

    python benchmarks/checkpoint/sizing.py

reads results/scan.json, which scan.py wrote, and prints a table. The computed rows scale the
measured seconds by the number of floating-point operations.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtspec.runs.costs import cost
from rmtspec.runs.dry_run import BASE_BYTES

RESULTS = Path(__file__).parent / "results"
Shape = tuple[int, int]


@dataclass(frozen=True)
class Transformer:
    """Sizes of a decoder like Llama: separate embedding and head; gate, up and down."""

    name: str
    layers: int
    width: int
    hidden: int
    keys: int  # rows of k, and of v: their heads times the head size
    words: int

    def shapes(self) -> Iterator[tuple[int, Shape]]:
        """Yield the number of matrices of each shape."""
        yield 2 * self.layers, (self.width, self.width)
        yield 2 * self.layers, (self.keys, self.width)
        yield 3 * self.layers, (self.hidden, self.width)
        yield 2, (self.words, self.width)


MODELS = (
    Transformer("7B (32 layers of 4096)", 32, 4096, 11008, 4096, 32000),
    Transformer("70B (80 layers of 8192)", 80, 8192, 28672, 1024, 32000),
)


def computed(model: Transformer, rate: float, *, processes: int = 1) -> dict[str, Any]:
    """Return the row of a model, at `rate` operations per second of each process."""
    operations = sum(count * cost(*shape).operations for count, shape in model.shapes())
    parameters = sum(count * rows * columns for count, (rows, columns) in model.shapes())
    memory = max(cost(*shape).memory for _, shape in model.shapes()) + BASE_BYTES
    return {
        "checkpoint": model.name,
        "": "computed",
        "bf16, GB": round(2 * parameters / 1e9, 1),
        "operations": f"{operations:.2g}",
        "processes": processes,
        "time": hours(operations / rate / processes),
        "memory, GB": round(memory * processes / 1e9, 1),
    }


def measured(scan: dict[str, Any]) -> dict[str, Any]:
    """Return the row of the synthetic checkpoint."""
    return {
        "checkpoint": "synthetic, widths 2048 and 4096",
        "": "measured",
        "bf16, GB": round(scan["checkpoint"]["bytes"] / 1e9, 1),
        "operations": f"{operations_of(scan):.2g}",
        "processes": 1,
        "time": hours(scan["seconds"]["scan"]),
        "memory, GB": round(scan["memory"]["peak"] / 1e9, 1),
    }


def operations_of(scan: dict[str, Any]) -> int:
    """Return the floating-point operations of the scan that was measured."""
    return sum(count * cost(*shape).operations for count, shape in scan["checkpoint"]["shapes"])


def table(scan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all rows."""
    rate = operations_of(scan) / scan["seconds"]["scan"]
    rows = [measured(scan)]
    for model in MODELS:
        rows += [computed(model, rate, processes=count) for count in (1, 16)]
    return rows


def beside(scan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cost of the scan relative to reading, Gram matrices and eigenvalues alone."""
    seconds, processor, memory = scan["seconds"], scan["cpu_seconds"], scan["memory"]
    limits = scan["limits"]
    return [
        {
            "": "processor time, relative to reading, Gram matrices and eigvalsh alone",
            "measured": processor["scan"] / processor["bare"],
            "limit": f"at most {limits['ratio']}",
        },
        {
            "": "wall time, relative to the same",
            "measured": seconds["scan"] / seconds["bare"],
            "limit": f"at most {limits['ratio']}",
        },
        {
            "": "peak memory, GB",
            "measured": memory["peak"] / 1e9,
            "limit": f"at most {memory['limit'] / 1e9:.2f}: 0.5 and 4 p² of 8 bytes",
        },
        {
            "": "two processes, times as fast as one",
            "measured": seconds["scan"] / seconds["scan_2_jobs"],
            "limit": f"at least {limits['speedup']}, on two free cores",
        },
    ]


def hours(seconds: float) -> str:
    """Return a time in a suitable unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main() -> None:
    """Print the table."""
    rows = table(json.loads((RESULTS / "scan.json").read_text("utf-8")))
    for row in ({key: key for key in rows[0]}, *rows):
        print(
            "  ".join(f"{value!s:<{32 if i == 0 else 10}}" for i, value in enumerate(row.values()))
        )


if __name__ == "__main__":
    main()
