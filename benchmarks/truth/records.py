"""Records of the benchmarks: one JSON file a part, in which each finished cell is kept."""

import functools
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed

import rmtspec
from rmtspec._records import plain, versions

RESULTS = Path(__file__).parent / "results"
#: All draws come from this seed, the cell and the number of the draw.
SEED = 12
#: Modules of rmtspec.matrix that decide the figures; a digest of them is in every row.
_CODE = (
    "bema", "eigensystem", "entries", "equalize", "fit_test", "flip_test", "noise", "screen",
    "separation", "sign_flips", "thresholds",
)  # fmt: skip
Row = dict[str, Any]


class Record:
    """The rows of one part, read and gone on with: a cell that is there is not run again."""

    def __init__(
        self, part: str, conditions: Row, folder: Path = RESULTS, *, stale: bool = False
    ) -> None:
        #: Whether rows that other code made are run again.
        self._stale = stale
        #: Packages, besides the usual ones, whose versions are recorded if they are installed.
        self.packages: tuple[str, ...] = ()
        self.file = folder / f"{part}.json"
        self._head = {"part": part, "conditions": {"seed": SEED, **conditions}}
        self.rows: list[Row] = []
        if self.file.is_file():
            self.rows = json.loads(self.file.read_text("utf-8"))["rows"]

    def has(self, cell: Row) -> bool:
        """Tell whether a row of this cell, with as many draws or more, is there."""
        draws = cell.get("draws", 0)
        return any(
            _same(row, cell)
            and row.get("draws", 0) >= draws
            and (not self._stale or row.get("code") == code())
            for row in self.rows
        )

    def add(self, row: Row, cell: Row) -> None:
        """Put a row in the place of that of the same cell, and write the file."""
        row = {**row, "code": code()}
        places = [i for i, old in enumerate(self.rows) if _same(old, cell)]
        if places:
            self.rows[places[0]] = row
        else:
            self.rows.append(row)
        lines = ",\n ".join(json.dumps(plain(each)) for each in self.rows)
        head = json.dumps({**self._head, "versions": versions(*self._installed())}, indent=1)[:-2]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(f'{head},\n "rows": [\n {lines}\n ]\n}}\n', "utf-8")

    def _installed(self) -> list[str]:
        there = {distribution.name for distribution in distributions()}
        return [name for name in self.packages if name in there]


@functools.cache
def code() -> str:
    """Return a digest of the modules that decide the figures."""
    folder = Path(rmtspec.__file__).parent / "matrix"
    content = b"".join((folder / f"{name}.py").read_bytes() for name in _CODE)
    return hashlib.sha256(content).hexdigest()[:12]


def fill(
    record: Record,
    cells: Iterable[Row],
    one: Callable[[Row, int], Row],
    reduced: Callable[[list[Row]], Row],
    n_jobs: int,
) -> None:
    """Run the draws of every cell that is missing, and keep what they come to."""
    for cell in cells:
        if record.has(cell):
            continue
        work = (delayed(one)(cell, draw) for draw in range(cell["draws"]))
        row = {**cell, **reduced(Parallel(n_jobs=n_jobs)(work))}
        record.add(row, cell)
        print(record.file.stem, json.dumps(row), flush=True)


def generator(cell: Row, draw: int) -> np.random.Generator:
    """Return the generator of a draw, which does not depend on what ran before."""
    name = json.dumps({key: cell[key] for key in sorted(cell) if key != "draws"})
    return np.random.default_rng([SEED, zlib.crc32(name.encode()), draw])


def mean_of(found: list[Row], key: str) -> float:
    """Return the mean of one number over draws, to four digits."""
    return round(float(np.mean([row[key] for row in found])), 4)


def _same(row: Row, cell: Row) -> bool:
    return all(row.get(key) == value for key, value in cell.items() if key != "draws")
