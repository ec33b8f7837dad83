"""Analyse, resume and prune a file of 10,000 small tensors with the command, each in a new process.

    python benchmarks/checkpoint/small_tensors.py [--before TREE] [--tensors 10000]

Heads, experts and kernels come by the ten thousand. With --before, a tree of an earlier version is
timed too, in turn. Prints seconds and ratios as JSON. Two minutes, with --before five.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SHAPES = ((16, 16), (32, 32), (64, 64), (64, 32), (128, 64), (48, 16), (64, 16), (128, 32),
          (96, 48), (24, 24))  # fmt: skip
HERE = Path(__file__).resolve().parents[2]


def write(path: Path, count: int) -> None:
    """Write noise, a third of it with one component."""
    rng = np.random.default_rng(0)
    tensors = {}
    for index in range(count):
        n, p = SHAPES[index % len(SHAPES)]
        W = rng.standard_normal((n, p)).astype(np.float32)
        if index % 3 == 0:
            W += 0.5 * np.outer(rng.standard_normal(n), rng.standard_normal(p)).astype(np.float32)
        name = f"layers.{index // len(SHAPES)}.part{index % len(SHAPES)}.weight"
        tensors[name] = W / np.float32(np.sqrt(n))
    save_file(tensors, path)


def seconds(tree: Path, *arguments: str) -> float:
    """Return the wall time of the command in a process of its own."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "rmtspec", *arguments], cwd=tree, check=True, capture_output=True,
        env={**os.environ, **threads, "PYTHONPATH": str(tree)},
    )  # fmt: skip
    return time.perf_counter() - begin


def main() -> None:
    """Time the commands, ours and those of the earlier version in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="a tree of an earlier version")
    parser.add_argument("--tensors", type=int, default=10_000)
    given = parser.parse_args()
    trees = {"now": HERE} | ({"before": given.before.resolve()} if given.before else {})
    record: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        write(file, given.tensors)
        path = str(file)
        for tree in trees.values():  # compiled, cached
            seconds(tree, "analyze", path, "--include", r"^layers\.0\.")
        for step, words in (
            ("analyze", ("analyze", path, "--resume", "JOURNAL")),
            ("resume", ("analyze", path, "--resume", "JOURNAL")),
            ("analyze, 1 thread", ("analyze", path, "--threads", "1")),
            ("analyze, 2 processes", ("analyze", path, "--jobs", "2")),
            ("prune", ("prune", path, "OUT")),
            ("prune, 2 processes", ("prune", path, "OUT 2", "--jobs", "2")),
        ):
            for name, tree in trees.items():
                places = {"JOURNAL": f"{folder}/{name}.jsonl", "OUT": f"{folder}/{name}",
                          "OUT 2": f"{folder}/{name}-2"}  # fmt: skip
                command = [places.get(word, word) for word in words]
                record.setdefault(name, {})[step] = seconds(tree, *command)
    if "before" in record:
        record["ratio"] = {k: record["now"][k] / record["before"][k] for k in record["now"]}
    print(json.dumps({"tensors": given.tensors, "seconds": record}, indent=1))


if __name__ == "__main__":
    main()
