"""Scan and prune a checkpoint with two trees of the package in turn: seconds, peak memory, ratios.

    python benchmarks/checkpoint/reading.py BASELINE_TREE [ROUNDS]

Each run is a process of its own; the trees alternate, and the first round is not counted.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import synthetic

RECORD = Path(__file__).with_name("results") / "reading.json"
PROGRAM = """
import json, resource, sys, time
import rmtspec
began = time.perf_counter()
{job}
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, 1024 * peak, len(report.rows)]))
"""
JOBS = {
    "scan": 'report = rmtspec.analyze_checkpoint(sys.argv[1], noise="mp", threads=1)',
    "prune": (
        "report = rmtspec.prune_checkpoint("
        'sys.argv[1], sys.argv[2], noise="mp", rule="bema", gate=None, bulk_keep=0.0, threads=1)'
    ),
}


def measured(tree, job, folder):
    environment = os.environ | {"PYTHONPATH": str(tree), "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(job=job), str(folder), f"{place}/out"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    return json.loads(done.stdout)


def compared(trees, job, folder, rounds):
    """Return what both trees took for a job, and the ratios."""
    found = {name: [] for name in trees}
    for index in range(rounds + 1):
        for name, tree in trees.items():
            taken = measured(tree, job, folder)
            if index:
                found[name].append(taken)
    seconds = {name: statistics.median(each[0] for each in all_) for name, all_ in found.items()}
    peak = {name: max(each[1] for each in all_) for name, all_ in found.items()}
    return {
        "matrices": found["after"][0][2], "seconds": seconds, "peak_bytes": peak,
        "ratio_of_seconds": seconds["after"] / seconds["before"],
        "ratio_of_peaks": peak["after"] / peak["before"],
        "all_seconds": {name: [each[0] for each in all_] for name, all_ in found.items()},
    }  # fmt: skip


def main():
    trees = {"before": Path(sys.argv[1]), "after": Path(__file__).parents[2]}
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        synthetic.make_checkpoint(folder, gigabytes=0.1, shards=3, width=768)
        size = sum(file.stat().st_size for file in folder.iterdir())
        jobs = {name: compared(trees, job, folder, rounds) for name, job in JOBS.items()}
    record = {"bytes": size, "rounds": rounds, "jobs": jobs}
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    for name, job in jobs.items():
        print(f"{name}: {job['ratio_of_seconds']:.3f} time, {job['ratio_of_peaks']:.4f} memory")


if __name__ == "__main__":
    main()
