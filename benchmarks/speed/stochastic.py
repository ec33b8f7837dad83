"""The estimated spectrum of a large matrix against its eigenvalues: time, edge and count.

    python benchmarks/speed/stochastic.py [--sides 4096 8192 16384] [--components 20]

Noise with planted components, float32; one BLAS thread if the environment says so. The exact way
is `rmtspec.spectrum` and `rmtspec.bema`. 16,384 takes 4 GB and five minutes. Writes
results/stochastic.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import rmtspec

RESULTS = Path(__file__).parent / "results" / "stochastic.json"


def planted(side: int, components: int) -> np.ndarray:
    """Return a square matrix of noise with components, float32, a block of rows at a time."""
    rng, strengths = np.random.default_rng(side), np.linspace(2.5, 12.0, components)
    left, right = (np.linalg.qr(rng.standard_normal((side, components)))[0] for _ in range(2))
    W = rng.standard_normal((side, side), dtype=np.float32)
    W += ((left * strengths * np.sqrt(side)) @ right.T).astype(np.float32)
    return W


def compared(side: int, components: int) -> dict[str, Any]:
    """Return seconds, edges and counts of both ways."""
    W = planted(side, components)
    rmtspec.estimate_spectrum(W[:512, :512])
    begin = time.perf_counter()
    estimate = rmtspec.estimate_spectrum(W)
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    fit = rmtspec.bema(rmtspec.spectrum(W))
    exact = time.perf_counter() - begin
    return {
        "side": side, "components": components,
        "estimate_s": seconds, "exact_s": exact, "times_faster": exact / seconds,
        "edge": [estimate.bulk_edge, estimate.bulk_edge_error, fit.bulk_edge],
        "spikes": [estimate.n_spikes, estimate.n_spikes_low, estimate.n_spikes_high],
        "exact_spikes": fit.n_spikes,
    }  # fmt: skip


def main() -> None:
    """Compare at each side; write and print the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--components", type=int, default=20)
    asked, rows = parser.parse_args(), []
    for side in asked.sides:
        rows.append(compared(side, asked.components))
        print(json.dumps(rows[-1]), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
