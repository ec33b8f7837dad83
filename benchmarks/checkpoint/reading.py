"""Scan a checkpoint with two trees of the package in turn: seconds, peak memory, their ratios.

    python benchmarks/checkpoint/reading.py BASELINE_TREE [ROUNDS]

Each scan is a process of its own; the trees alternate, and the first round is not counted.
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
report = rmtspec.analyze_checkpoint(sys.argv[1], threads=1)
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, 1024 * peak, len(report.rows)]))
"""


def scanned(tree, folder):
    environment = os.environ | {"PYTHONPATH": str(tree), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def main():
    trees = {"before": Path(sys.argv[1]), "after": Path(__file__).parents[2]}
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    found = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        synthetic.make_checkpoint(folder, gigabytes=0.1, shards=3, width=768)
        size = sum(file.stat().st_size for file in folder.iterdir())
        for index in range(rounds + 1):
            for name, tree in trees.items():
                measured = scanned(tree, folder)
                if index:
                    found[name].append(measured)
    seconds = {name: statistics.median(each[0] for each in all_) for name, all_ in found.items()}
    peak = {name: max(each[1] for each in all_) for name, all_ in found.items()}
    record = {
        "bytes": size, "matrices": found["after"][0][2], "rounds": rounds, "seconds": seconds,
        "peak_bytes": peak, "ratio_of_seconds": seconds["after"] / seconds["before"],
        "ratio_of_peaks": peak["after"] / peak["before"],
        "all_seconds": {name: [each[0] for each in all_] for name, all_ in found.items()},
    }  # fmt: skip
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
