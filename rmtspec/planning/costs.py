"""Measured costs of layers: how long each takes as it is, and split at any rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec._files.reading import read_json
from rmtspec._files.writing import PathLike, json_text
from rmtspec._records import plain
from rmtspec._text import Readable, aligned
from rmtspec.errors import FileError, InvalidValueError
from rmtspec.terms import Form

_SCHEMA = 1
Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one shape of layer costs, in seconds for a forward pass.

    Attributes
    ----------
    dense : float
        As it is.
    ranks : tuple of int
        Ranks that were measured, ascending.
    plain, pivoted : tuple of float
        Seconds at these ranks, as two factors and as pivot rows; made monotone.
    """

    dense: float
    ranks: tuple[int, ...]
    plain: tuple[float, ...]
    pivoted: tuple[float, ...]

    def seconds(self, most: int, form: Form) -> Float64Array:
        """Return the seconds at ranks 1 to `most`, interpolated between those measured."""
        measured = self.pivoted if form is Form.PIVOTED else self.plain
        found: Float64Array = np.interp(np.arange(1.0, most + 1.0), self.ranks, measured)
        return found


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Costs(Readable):
    """A table of costs by shape, measured on one machine: from `measure_costs` of an adapter.

    Attributes
    ----------
    table : dict of (int, int) to Cost
        By (rows, columns) of the matrix.
    settings : dict
        What was measured: rows of the input, dtype, device, threads.
    """

    table: Mapping[Shape, Cost]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of(self, shape: Sequence[int]) -> Cost:
        """Return the cost of a shape.

        Raises
        ------
        InvalidValueError
            It was not measured.
        """
        rows, columns = shape
        if (rows, columns) not in self.table:
            known = ", ".join(f"{r} x {c}" for r, c in list(self.table)[:5])
            raise InvalidValueError(
                f"`costs` has no layer of {rows} x {columns}; it has {known}. Measure the costs of "
                "this model; what is no linear layer is not measured: leave it out with `exclude`."
            )
        return self.table[rows, columns]

    def rank_that_pays(self, shape: Sequence[int], form: str = Form.PLAIN) -> int:
        """Return the largest rank at which the split layer is faster than the dense one; 0 if none.

        Parameters
        ----------
        shape : (int, int)
        form : {"plain", "pivoted"}
        """
        cost = self.of(shape)
        faster = cost.seconds(min(shape), Form(form)) < cost.dense
        return int(np.flatnonzero(faster).max(initial=-1)) + 1

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        rows = [
            {
                "rows": shape[0], "columns": shape[1], "dense": cost.dense, "ranks": cost.ranks,
                "plain": cost.plain, "pivoted": cost.pivoted,
            }
            for shape, cost in self.table.items()
        ]  # fmt: skip
        return {"schema": _SCHEMA, "rows": plain(rows), "settings": plain(dict(self.settings))}

    def save(self, path: PathLike) -> None:
        """Write it as JSON, from which `load` reads it."""
        json_text(self.to_dict(), path)

    @classmethod
    def load(cls, path: PathLike) -> "Costs":
        """Read it from a file that `save` wrote.

        Raises
        ------
        FileError
            The file cannot be read, or holds something else.
        """
        content = read_json(Path(path), "a table of costs", _SCHEMA)
        try:
            table = {
                (int(row["rows"]), int(row["columns"])): Cost(
                    float(row["dense"]), tuple(map(int, row["ranks"])),
                    plain=tuple(map(float, row["plain"])),
                    pivoted=tuple(map(float, row["pivoted"])),
                )
                for row in content["rows"]
            }  # fmt: skip
            return cls(table, dict(content["settings"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FileError(f"{path} holds no table of costs: {error!r}. Measure again.") from error

    def __repr__(self) -> str:
        pairs: list[tuple[str, object]] = []
        for shape, cost in self.table.items():
            words = f"{cost.dense * 1e6:,.0f} us dense; splits pay up to rank "
            words += f"{self.rank_that_pays(shape)} plain, {self.rank_that_pays(shape, 'pivoted')}"
            pairs.append((f"{shape[0]} x {shape[1]}", f"{words} pivoted"))
        pairs.append(("measured", ", ".join(f"{k} {v}" for k, v in self.settings.items())))
        return aligned("Costs", pairs)


def measured_cost(
    dense: float, ranks: Sequence[int], plain: Sequence[float], pivoted: Sequence[float]
) -> Cost:
    """Return the cost from measured seconds; a larger rank is never taken to be faster."""
    rising = [tuple(map(float, np.maximum.accumulate(times))) for times in (plain, pivoted)]
    return Cost(float(dense), tuple(ranks), plain=rising[0], pivoted=rising[1])
