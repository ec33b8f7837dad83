"""Cost of counting, as a multiple of numpy's eigvalsh of the same Gram matrix in float64.

The two are timed in turns, and the fastest of each is taken; BLAS on one thread. The ratio is the
median over several matrices, since a false component costs a round more. The flip test of the bulk
is made when the verdict is read, and is timed by itself.
"""

import time
from collections.abc import Callable

import numpy as np
from noise_kinds import planted, student_3
from records import Record, Row, generator

import rmtspec

#: rows, columns, planted components of strength 3 to 10, and the noise.
MATRICES = (
    (300, 200, 0, "Gaussian"), (1000, 784, 0, "Gaussian"), (1000, 784, 40, "Gaussian"),
    (1000, 784, 40, "Student t(3)"), (2048, 512, 20, "Gaussian"), (2000, 40, 0, "Gaussian"),
    (2000, 40, 3, "Gaussian"),
)  # fmt: skip
MODELS = ("mp", "equalized", "signflip", "auto")
#: Matrices of each kind, of whose ratios the median is taken, and repetitions for each.
EACH, REPETITIONS = 3, 5


def cost(record: Record, draws: int | None, n_jobs: int) -> None:
    """Fill the record of times; a machine that does other work makes them longer."""
    for n, p, truth, kind in MATRICES:
        cell = {"n": n, "p": p, "components": truth, "kind": kind, "draws": draws or EACH}
        if not record.has(cell):
            timed = [_timed(_matrix(cell, draw)) for draw in range(cell["draws"])]
            middle = {name: float(f"{np.median([row[name] for row in timed]):.3g}")
                      for name in timed[0]}  # fmt: skip
            row = {**cell, "repetitions": REPETITIONS, **middle}
            record.add(row, cell)
            print("cost", row, flush=True)


def _matrix(cell: Row, draw: int) -> np.ndarray:
    rng, n, p = generator(cell, draw), cell["n"], cell["p"]
    if cell["kind"] == "Student t(3)":
        strengths = np.linspace(3.0, 10.0, cell["components"])
        return planted(student_3(n, p, rng), strengths, rng)
    if not cell["components"]:
        return rng.standard_normal((n, p))
    return rmtspec.ensembles.spiked(n, p, np.linspace(3, 10, cell["components"]), rng=rng)


def _timed(W: np.ndarray) -> Row:
    """Return the seconds of eigvalsh, and the ratios of the models and the flip test to them."""
    ways: dict[str, Callable[[], object]] = {"eigvalsh": lambda: np.linalg.eigvalsh(W.T @ W)}
    for model in MODELS:
        ways[model] = lambda model=model: rmtspec.fit_noise(W, model=model)
    best = dict.fromkeys([*ways, "flip test"], float("inf"))
    for turn in range(REPETITIONS + 1):  # the first one warms up
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
    ratios = {f"{name} / eigvalsh": taken / base for name, taken in best.items()}
    return {"eigvalsh seconds": base, **ratios}
