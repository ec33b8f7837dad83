"""Nets whose noise is known, because their initialisation is: does the count agree?

A net of 784-1000-500-10 is trained on MNIST. What survives of its initialisation in each weight is
the initialisation itself without weight decay, and (1 - lr decay / (1 - momentum))^steps of it with
SGD's weight decay. Its entries are uniform and independent, so its spectrum ends at sd (sqrt(n) +
sqrt(p)): the truth is the number of singular values of the trained weight above that edge, with the
Tracy-Widom margin of level .1.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from records import SEED, Record, Row

import rmtspec

DIMS = (784, 1000, 500, 10)
SGD = {"name": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0}
OPTIMIZERS = (
    SGD, {**SGD, "name": "SGD, decay 5e-4", "weight_decay": 5e-4}, {"name": "Adam", "lr": 1e-3}
)  # fmt: skip
EPOCHS, BATCH = 4, 128


def known_nets(record: Record, draws: int | None, n_jobs: int) -> None:
    """Train each net and count in its two large layers."""
    record.packages = ("torch",)
    for options in OPTIMIZERS:
        cells = [{"optimizer": options["name"], "epochs": EPOCHS, "layer": i} for i in (0, 1)]
        if all(record.has(cell) for cell in cells):
            continue
        weights, survives, accuracy = _trained(options)
        for cell, W in zip(cells, weights, strict=True):
            settings = {key: value for key, value in options.items() if key != "name"}
            row = {**cell, "settings": settings, "batch": BATCH, "rows": W.shape[0],
                   "columns": W.shape[1], "survives": round(survives, 4),
                   "test accuracy": accuracy, **_counted(W, survives)}  # fmt: skip
            record.add(row, cell)
            print("known_nets", row, flush=True)


def _trained(options: Row) -> tuple[list[np.ndarray], float, float]:
    """Return two weights, the share of the initialisation that they hold, and the accuracy."""
    import torch
    from torch import nn

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import datasets

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(SEED)
    inner, middle, outer = (nn.Linear(*pair) for pair in itertools.pairwise(DIMS))
    net = nn.Sequential(inner, nn.ReLU(), middle, nn.ReLU(), outer)
    kinds: dict[str, Any] = {"Adam": torch.optim.Adam}
    settings = {key: value for key, value in options.items() if key != "name"}
    optimizer = kinds.get(options["name"], torch.optim.SGD)(net.parameters(), **settings)
    mnist = datasets.load("mnist")
    images, tests = (
        torch.from_numpy(each).flatten(1).float().div_(255)
        for each in (mnist.train_images, mnist.test_images)
    )
    labels = torch.from_numpy(mnist.train_labels).long()
    steps = 0
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
            steps += 1
    with torch.no_grad():
        right = net(tests).argmax(1).numpy() == mnist.test_labels
    shrunk = 1.0 - options["lr"] * options.get("weight_decay", 0.0) / (
        1.0 - options.get("momentum", 0.0)
    )
    weights = [layer.weight.detach().numpy().astype(np.float64) for layer in (inner, middle)]
    return weights, shrunk**steps, float(right.mean())


def _counted(W: np.ndarray, survives: float) -> Row:
    """Return the truth and the counts; PyTorch draws entries from U(-1/sqrt(m), 1/sqrt(m))."""
    n, p = max(W.shape), min(W.shape)
    deviation = survives / np.sqrt(3.0 * W.shape[1])
    squares = np.square(np.linalg.svd(W, compute_uv=False)) / deviation**2
    a, b = np.sqrt(n), np.sqrt(p)
    margin = rmtspec.TracyWidom(1).isf(0.1) * (a + b) * (1 / a + 1 / b) ** (1 / 3)
    fits = {
        f"{model} {beta:g}": rmtspec.fit_noise(W, model=model, beta=beta)
        for model in ("mp", "equalized", "signflip", "auto")
        for beta in (0.1, 0.01)
    }
    auto = fits["auto 0.1"]
    return {
        "truth": int(np.sum(squares > (a + b) ** 2 + margin)),
        "above the bare edge": int(np.sum(squares > (a + b) ** 2)),
        **{name: fit.n_components for name, fit in fits.items()},
        "at_least": auto.at_least, "share": round(auto.energy_share, 4),
        "ks": round(auto.bulk_ks, 5), "bulk p-value": auto.bulk_pvalue,
        "verdict": str(auto.verdict), "model used": auto.model,
    }  # fmt: skip
