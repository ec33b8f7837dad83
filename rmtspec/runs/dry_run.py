"""What analysing a checkpoint would cost, from its headers alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import joblib

from rmtspec._text import aligned, grouped
from rmtspec.checkpoint.listing import Checkpoint
from rmtspec.checkpoint.stored import StoredMatrix, named_dtype
from rmtspec.errors import InvalidValueError
from rmtspec.planning.selection import Selection, nothing_in
from rmtspec.report.parallel import blas_threads
from rmtspec.runs.costs import Speed, calibrate, cost, seconds

#: Memory of a process that has numpy, scipy and numba loaded and analysed a small matrix.
BASE_BYTES = 200_000_000


@dataclass(frozen=True, slots=True, repr=False)
class DryRun:
    """What a scan would do, and what it would cost.

    Attributes
    ----------
    rows : list of dict
        One per matrix: "name", "kind", "rows", "columns", "dtype", "break_even", "operations"
        (floating point), "seconds" (estimated), "memory" (bytes beyond the file's own pages).
    skipped : list of dict
        "name" and "reason" of what is no matrix, or was left out.
    operations : int
        Of all matrices.
    seconds : float
        Estimated wall time with `n_jobs` processes, if each has a core of its own.
    memory : int
        Estimated peak of all processes, in bytes, mapped pages of the files not counted.
    parameters : int
        Entries of all matrices.
    n_jobs : int
        Processes.
    """

    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    operations: int
    seconds: float
    memory: int
    parameters: int
    n_jobs: int

    def groups(self) -> list[dict[str, Any]]:
        """Return a row for the matrices of each size and kind: how many, and what they cost."""
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in self.rows:
            key = (row["kind"], row["rows"], row["columns"], row["dtype"])
            group = found.setdefault(
                key,
                {
                    "matrices": 0,
                    **{k: row[k] for k in ("kind", "rows", "columns", "dtype", "break_even")},
                    "operations": 0,
                    "seconds": 0.0,
                    "memory": row["memory"],
                },
            )
            group["matrices"] += 1
            group["operations"] += row["operations"]
            group["seconds"] += row["seconds"]
        return sorted(found.values(), key=lambda group: -group["operations"])

    def __repr__(self) -> str:
        pairs: list[tuple[str, object]] = [
            ("matrices", len(self.rows)),
            ("parameters", f"{self.parameters:,}"),
            ("operations", f"{self.operations:.3g}"),
            ("seconds", f"{self.seconds:.3g} (estimated, {self.n_jobs} processes)"),
            ("memory", f"{self.memory / 1e9:.2g} GB (estimated)"),
        ]
        pairs += [("skipped", f"{names}: {reason}") for reason, names in grouped(self.skipped)]
        return aligned("DryRun", pairs)


def dry_run(
    listed: Checkpoint,
    selection: Selection,
    *,
    n_jobs: int = 1,
    threads: int | None = None,
    speed: Speed | None = None,
) -> DryRun:
    """Return what analysing the chosen matrices would cost on this machine.

    `speed` is measured in half a second where it is not given, with as many BLAS threads as each
    process would have. No tensor is read.
    """
    chosen, left_out, _ = selection.choose(listed.matrices)
    skipped = [*listed.skipped, *left_out]
    if not chosen:
        raise InvalidValueError(nothing_in(listed.path, skipped, selection.unmet))
    if threads is None and n_jobs > 1:
        threads = max(1, joblib.cpu_count() // n_jobs)
    with blas_threads(threads):
        measured = speed or calibrate()
    rows = [_row(matrix, measured) for matrix in chosen.values()]
    total = sum(row["seconds"] for row in rows)
    longest = max(row["seconds"] for row in rows)
    largest = sorted((row["memory"] for row in rows), reverse=True)[:n_jobs]
    return DryRun(
        rows,
        skipped,
        operations=sum(row["operations"] for row in rows),
        seconds=max(longest, total / n_jobs),
        memory=n_jobs * BASE_BYTES + sum(largest) + (BASE_BYTES if n_jobs > 1 else 0),
        parameters=sum(row["rows"] * row["columns"] for row in rows),
        n_jobs=n_jobs,
    )


def _row(matrix: StoredMatrix, speed: Speed) -> dict[str, Any]:
    rows, columns = matrix.sides
    found = cost(rows, columns)
    return {
        "name": matrix.name,
        "kind": matrix.kind,
        "rows": rows,
        "columns": columns,
        "dtype": named_dtype(matrix.tensor.numpy_name).name,
        "break_even": rows * columns / (rows + columns),
        "operations": found.operations,
        "seconds": seconds(rows, columns, speed, matrix.itemsize),
        "memory": found.memory,
    }


def operations_of(matrices: Iterable[StoredMatrix]) -> dict[str, int]:
    """Return the floating-point operations of each matrix by name."""
    return {matrix.name: cost(*matrix.sides).operations for matrix in matrices}
