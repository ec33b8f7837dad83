"""Redraw what the documentation says of noise: levels, power, cost, real layers, known nets.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/truth/run.py

Half an hour on one core. Each part goes on with its record in ``benchmarks/truth/results``: a cell
that is there is not run again, unless ``--draws`` asks for more of it, or other code made it and
``--stale`` is given. The parts "layers" and "known_nets" need the packages of
``requirements/models.txt`` and the folder ``RMTSPEC_DATA`` (models/, mnist/); what is not there is
left out, and said.
"""

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from records import RESULTS, Record

#: Module of each part, in the order in which they are run.
PARTS = {
    "level": "level", "flips": "level", "correlated": "level", "power": "power", "exact": "power",
    "cost": "cost", "layers": "layers", "known_nets": "known_nets",
}  # fmt: skip


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)}; all by default")  # fmt: skip
    parser.add_argument("--draws", type=int, help="draws a cell, in place of each part's own")
    parser.add_argument("--stale", action="store_true", help="also redo rows that other code made")
    parser.add_argument("--jobs", type=int, default=1, help="processes; 1 by default")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    given = parser.parse_args()
    for part in given.parts:
        module: Any = import_module(PARTS[part])
        run: Callable[[Record, int | None, int], None] = getattr(module, part)
        run(Record(part, {"threads": 1, "source": f"{PARTS[part]}.py"}, given.results,
                   stale=given.stale), given.draws, given.jobs)  # fmt: skip


if __name__ == "__main__":
    main()
