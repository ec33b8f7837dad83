"""The cost of analysing a checkpoint, from its headers alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import joblib

from rmtspec._text import Readable, aligned, counted, grouped
from rmtspec.checkpoint.listing import Checkpoint
from rmtspec.checkpoint.stored import StoredMatrix, named_dtype
from rmtspec.errors import InvalidValueError
from rmtspec.planning.selection import Selection, nothing_in
from rmtspec.report.parallel import blas_threads
from rmtspec.runs.costs import Speed, calibrate, cost, seconds

#: Memory of a process that has loaded numpy, scipy and numba and analysed a small matrix.
BASE_BYTES = 200_000_000


@dataclass(frozen=True, slots=True, repr=False)
class DryRun(Readable):
    """The matrices that a scan would analyse, and what it would cost.

    Attributes
    ----------
    rows : list of dict
        One per matrix: "name", "kind", "rows", "columns", "dtype", "break_even", "operations"
        (floating-point), "seconds" (estimated), "memory" (bytes besides the mapped file).
    skipped : list of dict
        "name" and "reason" of everything that is not a matrix or was left out.
    operations : int
        Total over all matrices.
    seconds : float
        Estimated wall time with `n_jobs` processes, if each has its own core.
    memory : int
        Estimated peak of all processes in bytes, without the mapped pages of the files.
    parameters : int
        Number of entries of all matrices.
    n_jobs : int
        Number of processes.
    noise : str
        The noise model.
    """

    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    operations: int
    seconds: float
    memory: int
    parameters: int
    n_jobs: int
    noise: str = "mp"

    def groups(self) -> list[dict[str, Any]]:
        """Return one row per size and kind: the number of matrices, and what they cost."""
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in self.rows:
            same = {key: row[key] for key in ("kind", "rows", "columns", "dtype", "break_even")}
            empty = {"matrices": 0, **same, "operations": 0, "seconds": 0.0}
            group = groups.setdefault(tuple(same.values()), {**empty, "memory": row["memory"]})
            group["matrices"] += 1
            group["operations"] += row["operations"]
            group["seconds"] += row["seconds"]
        return sorted(groups.values(), key=lambda group: -group["operations"])

    def __repr__(self) -> str:
        processes = counted(self.n_jobs, "process", "processes")
        pairs: list[tuple[str, object]] = [
            ("matrices", len(self.rows)), ("parameters", f"{self.parameters:,}"),
            ("operations", f"{self.operations:.3g}"),
            ("seconds", f"{self.seconds:.3g} (estimated, {processes})"),
            ("memory", f"{self.memory / 1e9:.2g} GB (estimated)"),
        ]  # fmt: skip
        pairs += [("skipped", f"{names}: {reason}") for reason, names in grouped(self.skipped)]
        return aligned("DryRun", pairs)


def dry_run(
    listed: Checkpoint,
    selection: Selection,
    *,
    n_jobs: int = 1,
    threads: int | None = None,
    speed: Speed | None = None,
    noise: str = "mp",
    method: str = "auto",
) -> DryRun:
    """Return what analysing the selected matrices would cost on this machine; no tensor is read.

    If `speed` is not given, it is measured in half a second, with as many BLAS threads as each
    process would have.
    """
    chosen, left_out, _ = selection.choose(listed.matrices)
    skipped = [*listed.skipped, *left_out]
    if not chosen:
        raise InvalidValueError(nothing_in(listed.path, skipped, selection.unmet))
    if threads is None and n_jobs > 1:
        threads = max(1, joblib.cpu_count() // n_jobs)
    with blas_threads(threads):  # how many there are decides how eigenvalues are found
        measured = speed or calibrate()
        rows = [_row(matrix, measured, noise, method) for matrix in chosen.values()]
    total = sum(row["seconds"] for row in rows)
    longest = max(row["seconds"] for row in rows)
    largest = sorted((row["memory"] for row in rows), reverse=True)[:n_jobs]
    processes = n_jobs + (n_jobs > 1)  # the parent too
    return DryRun(
        rows, skipped, operations=sum(row["operations"] for row in rows),
        seconds=max(longest, total / n_jobs), memory=processes * BASE_BYTES + sum(largest),
        parameters=sum(row["rows"] * row["columns"] for row in rows), n_jobs=n_jobs,
        noise=noise,
    )  # fmt: skip


def _row(matrix: StoredMatrix, speed: Speed, noise: str, method: str) -> dict[str, Any]:
    rows, columns = matrix.sides
    needed = cost(rows, columns, noise, method)
    time = seconds(rows, columns, speed, matrix.itemsize, noise=noise, method=method)
    return {
        "name": matrix.name, "kind": matrix.kind, "rows": rows, "columns": columns,
        "dtype": named_dtype(matrix.tensor.numpy_name).name,
        "break_even": rows * columns / (rows + columns), "operations": needed.operations,
        "seconds": time, "memory": needed.memory,
    }  # fmt: skip


def operations_of(matrices: Iterable[StoredMatrix]) -> dict[str, int]:
    """Return the number of floating-point operations of each matrix by name."""
    return {matrix.name: cost(*matrix.sides).operations for matrix in matrices}
