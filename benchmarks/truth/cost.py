"""Cost of counting, as a multiple of numpy's eigvalsh of the same Gram matrix in float64.

The two are timed in turns, and the fastest of each is taken; BLAS on one thread. The flip test of
the bulk is made when the verdict is read, and is timed by itself.
"""

import time
from collections.abc import Callable

import numpy as np
from records import Record, Row, generator

import rmtspec

#: rows, columns, planted components of 3 to 10, and whether the rows differ in scale. A scaled
#: matrix of t(3) noise is what "auto" counts twice.
MATRICES = (
    (300, 200, 0, "Gaussian"), (1000, 784, 0, "Gaussian"), (1000, 784, 40, "Gaussian"),
    (1000, 784, 40, "Student t(3)"), (2048, 512, 20, "Gaussian"), (2000, 40, 0, "Gaussian"),
    (2000, 40, 3, "Gaussian"),
)  # fmt: skip
MODELS = ("mp", "equalized", "signflip", "auto")
REPETITIONS = 7


def cost(record: Record, draws: int | None, n_jobs: int) -> None:
    """Fill the record of times; a machine that does other work makes them longer."""
    for n, p, truth, kind in MATRICES:
        cell = {"n": n, "p": p, "components": truth, "kind": kind, "draws": draws or REPETITIONS}
        if not record.has(cell):
            row = {**cell, **_timed(_matrix(cell), cell["draws"])}
            record.add(row, cell)
            print("cost", row, flush=True)


def _matrix(cell: Row) -> np.ndarray:
    rng, n, p = generator(cell, 0), cell["n"], cell["p"]
    if cell["kind"] == "Student t(3)":
        signal = rmtspec.ensembles.spiked(n, p, np.linspace(3, 10, cell["components"]), rng=rng)
        return signal + rng.standard_t(3.0, (n, p)) / 4.0
    if not cell["components"]:
        return rng.standard_normal((n, p))
    return rmtspec.ensembles.spiked(n, p, np.linspace(3, 10, cell["components"]), rng=rng)


def _timed(W: np.ndarray, repetitions: int) -> Row:
    ways: dict[str, Callable[[], object]] = {"eigvalsh": lambda: np.linalg.eigvalsh(W.T @ W)}
    for model in MODELS:
        ways[model] = lambda model=model: rmtspec.fit_noise(W, model=model)
    best = dict.fromkeys([*ways, "flip test"], float("inf"))
    for turn in range(repetitions + 1):  # the first one warms up
        for name, way in ways.items():
            start = time.perf_counter()
            fit = way()
            taken = time.perf_counter() - start
            if turn:
                best[name] = min(best[name], taken)
            if name == "signflip" and turn in (1, 2):
                start = time.perf_counter()
                _ = fit.bulk_pvalue
                best["flip test"] = min(best["flip test"], time.perf_counter() - start)
    base = best.pop("eigvalsh")
    ratios = {f"{name} / eigvalsh": round(taken / base, 2) for name, taken in best.items()}
    counts = {name: way().n_components for name, way in ways.items() if name != "eigvalsh"}
    return {"eigvalsh seconds": round(base, 5), **ratios, "counts": counts}
