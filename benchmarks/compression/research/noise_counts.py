"""What a noise model's count says about the rank that the loss wants.

For every third block of SmolLM2: components of ``rmtspec.fit_noise`` on W and on D^(1/2) W C^(1/2),
against the ranks that the loss budget gives at .8 and .6; a layer that stays dense counts as its
full rank.

    python noise_counts.py FOLDER
"""

import sys
import time
from pathlib import Path
from typing import Any

import clipping
import cuts
import numpy as np
import scipy.stats
import subject
import torch

import rmtspec


def whitened(weight: torch.Tensor, C: torch.Tensor, D: torch.Tensor) -> np.ndarray:
    C, D = cuts.ridged(C), cuts.ridged(D)
    values, vectors = torch.linalg.eigh(C)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return (D.sqrt()[:, None] * weight.double() @ root).numpy()


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    model, _ = subject.load()
    dense = {k: layer.weight.detach() for k, layer in subject.linears(model).items()}
    shapes = {k: tuple(W.shape) for k, W in dense.items()}
    m = clipping.Moments(folder)
    moment, weight = m.best_moment(), m.best_weight()
    tails = torch.load(folder / "tails.pt")
    ranks = {share: cuts.allocate(tails, shapes, share) for share in (0.8, 0.6)}
    rows: list[dict[str, Any]] = []
    for name, W in dense.items():
        if int(name.split(".")[0]) % 3:
            continue
        start = time.time()
        full = min(shapes[name])
        row: dict[str, Any] = {
            "layer": name,
            "count of W": rmtspec.fit_noise(W.double().numpy()).n_components,
            "count of D^(1/2) W C^(1/2)": rmtspec.fit_noise(
                whitened(W, moment(name), weight(name))
            ).n_components,
        }
        for share, given in ranks.items():
            row[f"rank at {share}"] = full if given[name] is None else given[name]
            row[f"share of full rank at {share}"] = row[f"rank at {share}"] / full
        row["full rank"] = full
        row["seconds"] = round(time.time() - start, 1)
        rows.append(row)
        print(row, flush=True)
        subject.record("noise_counts", rows, correlations=correlations(rows))


def correlations(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Spearman correlations of the counts with the ranks, as they are and as shares."""
    found = {}
    if len(rows) < 3:
        return found
    full = np.array([r["full rank"] for r in rows])
    for key in ("count of W", "count of D^(1/2) W C^(1/2)"):
        counts = np.array([r[key] for r in rows])
        for share in (0.8, 0.6):
            wanted = np.array([r[f"rank at {share}"] for r in rows])
            found[f"{key}, rank at {share}"] = scipy.stats.spearmanr(counts, wanted)[0]
            found[f"{key}, both as shares of the full rank, at {share}"] = scipy.stats.spearmanr(
                counts / full, wanted / full
            )[0]
    return {k: round(float(v), 3) for k, v in found.items()}


if __name__ == "__main__":
    main()
