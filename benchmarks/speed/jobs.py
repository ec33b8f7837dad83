"""Where the time of each main job goes: linear algebra, reading, the rest; and its floor.

    python benchmarks/speed/jobs.py

Each job runs in this process, once to load and compile, then timed, then once more under Python's
profiler, whose shares are given: of linear algebra (calls into BLAS and LAPACK, and torch's
products), of reading files, and of everything else. The floor is the bare linear algebra on the
same inputs, timed by itself. Writes results/jobs.json; two minutes.
"""

import cProfile
import json
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from scipy.linalg.blas import dsyrk

import rmtspec
from rmtspec._lapack import eigvalsh
from rmtspec.adapters import torch as rt

RESULTS = Path(__file__).parent / "results" / "jobs.json"
#: Where time counts as linear algebra: (part of a file's name or "~" for built-ins, function).
ALGEBRA = (
    ("scipy/linalg", ""), ("numpy/linalg", ""), ("rmtspec/_lapack", ""),
    ("matrix/eigenvalues.py", "_gram"), ("matrix/eigensystem.py", ""),
    ("matrix/split.py", "_leading"), ("matrix/split.py", "relative_errors"),
    ("matrix/residual_sums.py", "residual_sums"), ("matrix/residual_sums.py", "_scaled_gram"),
    ("matrix/sign_flips.py", "_flipped_spectrum"), ("matrix/sign_flips.py", "largest_square"),
    ("matrix/weighting.py", "applied"), ("_calibration/sums.py", "_rank_update"),
    ("~", "linear"), ("~", "matmul"), ("~", "addmm"), ("~", "mm>"), ("~", "run_backward"),
    ("~", "scaled_dot_product"),
)  # fmt: skip
READING = (("checkpoint/", ""), ("~", "readinto"), ("~", "io.open"), ("_files/", ""))
SIDES = ((4096, 1024), (2048, 2048), (3072, 1024), (1024, 1024), (1024, 512))


def matrices(seed: int) -> dict[str, np.ndarray]:
    """Return noise with a few components, float32."""
    rng = np.random.default_rng(seed)
    made = {}
    for index, (n, p) in enumerate(SIDES):
        W = rng.standard_normal((n, p)) / np.sqrt(n)
        W += (
            3.0
            * np.linalg.qr(rng.standard_normal((n, 5)))[0]
            @ np.linalg.qr(rng.standard_normal((p, 5)))[0].T
        )
        made[f"layers.{index}.weight"] = W.astype(np.float32)
    return made


def bare(arrays: Iterable[np.ndarray]) -> None:
    """Do the Gram matrix and the eigenvalues of each matrix."""
    for W in arrays:
        eigvalsh(dsyrk(1.0, W.astype(np.float64).T, trans=0), overwrite=True)


def encoder() -> Any:
    """Return a BERT-like encoder with random weights and components."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=4, num_attention_heads=12, intermediate_size=1536
    )
    return transformers.BertModel(config).eval()


def jobs(folder: Path) -> dict[str, tuple[Callable[[], Any], Callable[[], Any], str]]:
    """Return for each job a call of it, a call of its floor, and what the floor is."""
    weights = matrices(0)
    file = folder / "model.safetensors"
    save_file(weights, file)
    one = weights["layers.0.weight"]
    model = encoder()
    tokens = torch.randint(0, 1000, (16, 64), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": part} for part in tokens.split(4)]
    layers = [m.matrix() for m in rt.weight_matrices(model) if not m.reason]
    tall = [W if W.shape[0] >= W.shape[1] else W.T for W in map(np.asarray, layers)]

    def passes() -> None:
        for batch in batches:
            output = model(**batch).last_hidden_state
            output.square().sum().backward()

    def calibrated() -> None:
        passes()
        bare(tall)
        for W in tall:
            np.linalg.eigh(dsyrk(1.0, W.astype(np.float64).T, trans=0), UPLO="U")

    return {
        "analyze, 4096 x 1024, noise mp": (
            lambda: rmtspec.analyze(one, noise="mp"), lambda: bare([one]),
            "Gram matrix and eigenvalues",
        ),
        "analyze, 4096 x 1024, noise auto": (
            lambda: rmtspec.analyze(one), lambda: bare([one]), "the same, once",
        ),
        "scan of a file, 5 matrices, noise mp": (
            lambda: rmtspec.analyze_checkpoint(file, noise="mp"), lambda: bare(weights.values()),
            "Gram matrices and eigenvalues",
        ),
        "prune with calibration, encoder of 28 matrices": (
            lambda: rt.prune(model, calibration=batches, gate=None), calibrated,
            "forward and backward passes, eigenvalues and vectors once",
        ),
        "train 2 epochs with a pruner, MLP": (
            lambda: train(pruned=True), lambda: train(pruned=False), "the training without it",
        ),
    }  # fmt: skip


def train(*, pruned: bool) -> None:
    """Train a network on random images, with or without a split after the first epoch."""
    torch.manual_seed(0)
    model = rt.MLP((784, 1000, 500, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = rt.RMTPruner(model, optimizer, every=1, bulk_keep=0.2, gate=None) if pruned else None
    images, labels = torch.randn(6400, 784), torch.randint(0, 10, (6400,))
    for _ in range(2):
        for x, y in zip(images.split(128), labels.split(128), strict=True):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if pruner is not None:
            pruner.step(loss.detach())


def shares(work: Callable[[], Any]) -> dict[str, float]:
    """Return the shares of a call's time by kind, under the profiler."""
    profile = cProfile.Profile()
    profile.runcall(work)
    spent = {"linear algebra": 0.0, "reading": 0.0, "the rest": 0.0}
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        kind = "the rest"
        for label, places in (("linear algebra", ALGEBRA), ("reading", READING)):
            if any(part in file and function in name for part, function in places):
                kind = label
                break
        spent[kind] += own
    whole = sum(spent.values())
    return {kind: seconds / whole for kind, seconds in spent.items()}


def seconds(work: Callable[[], Any], times: int = 3) -> float:
    """Return the median wall time of a call."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def main() -> None:
    """Time and profile every job; write and print the record."""
    torch.set_num_threads(1)
    record = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (job, floor, words) in jobs(Path(folder)).items():
            job(), floor()
            ours, least = seconds(job), seconds(floor)
            record[name] = {
                "seconds": ours, "floor_seconds": least, "floor": words, "ratio": ours / least,
                "shares": shares(job),
            }  # fmt: skip
            print(f"{name}: {ours:.2f} s, floor {least:.2f} s", file=sys.stderr, flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
