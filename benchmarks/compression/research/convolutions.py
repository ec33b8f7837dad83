"""Two ways to split a convolution at equal size: k x k then 1 x 1, or k x 1 then 1 x k.

ResNet-56 (CIFAR-10 weights) on 32 x 32 pieces of the photographs that scikit-learn brings. Every
3 x 3 convolution alone: the share of the energy of its outputs that is lost, its inputs being those
of the whole network.

- k x k then 1 x 1: the best matrix of rank r of out x (in k k) on the inputs' second moment.
- k x 1 then 1 x k: the best one of (in k) x (out k) without inputs, its second half then fitted to
  the outputs by least squares with the inputs' second moment.

    python convolutions.py
"""

import os
from pathlib import Path
from typing import Any

import cuts
import numpy as np
import subject
import torch
from photographs import photographs
from safetensors.torch import load_file
from torch.nn import functional

SHARES = (0.75, 0.5, 0.25)


def inputs_of(weights: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, Any]:
    """Inputs and strides of every 3 x 3 convolution; shortcuts are padded with zeros."""
    found: dict[str, Any] = {}

    def convolve(name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        found[name] = (x, stride)
        return functional.conv2d(x, weights[name], stride=stride, padding=1)

    def normalise(name: str, x: torch.Tensor) -> torch.Tensor:
        part = (weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *part)

    x = functional.relu(normalise("bn1", convolve("conv1.weight", x, 1)))
    blocks = sorted(
        {tuple(k.split(".")[:2]) for k in weights if k.startswith("layer")},
        key=lambda b: (b[0], int(b[1])),
    )
    for layer, number in blocks:
        at = f"{layer}.{number}"
        stride = 2 if number == "0" and layer != "layer1" else 1
        y = functional.relu(normalise(f"{at}.bn1", convolve(f"{at}.conv1.weight", x, stride)))
        y = normalise(f"{at}.bn2", convolve(f"{at}.conv2.weight", y, 1))
        if stride == 2:
            extra = (y.shape[1] - x.shape[1]) // 2
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
        x = functional.relu(x + y)
    return found


def moment(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Second moment of the 3 x 3 patches, (in 9) x (in 9)."""
    patches = functional.unfold(x, 3, padding=1, stride=stride)
    return torch.einsum("bpl,bql->pq", patches.double(), patches.double()) / (
        len(x) * patches.shape[2]
    )


def lost(W: torch.Tensor, other: torch.Tensor, C: torch.Tensor) -> float:
    change = (W - other).flatten(1)
    W = W.flatten(1)
    return float(((change @ C) * change).sum() / ((W @ C) * W).sum())


def plain(W: torch.Tensor, C: torch.Tensor, rank: int) -> torch.Tensor:
    """k x k then 1 x 1: ``rank`` (9 in + out) numbers."""
    ones = torch.ones(len(W), dtype=torch.float64)
    return cuts.factor(W.flatten(1), C, ones, 1e-6).cut(rank).double().view_as(W)


def spatial(W: torch.Tensor, C: torch.Tensor, rank: int, fitted: bool) -> torch.Tensor:
    """k x 1 then 1 x k: ``rank`` (3 in + 3 out) numbers."""
    out, inside, height, width = W.shape
    matrix = W.permute(1, 2, 0, 3).reshape(inside * height, out * width)
    U, S, V = torch.linalg.svd(matrix, full_matrices=False)
    first = U[:, :rank].T.reshape(rank, inside, height)
    if not fitted:
        second = (S[:rank, None] * V[:rank]).reshape(rank, out, width)
        return torch.einsum("ria,rob->oiab", first, second)
    # The outputs are linear in the second half: its inputs are T times the patch.
    T = torch.einsum("ria,bc->rbiac", first, torch.eye(width, dtype=W.dtype))
    T = T.reshape(rank * width, inside * height * width)
    inner = cuts.ridged(T @ C @ T.T, 1e-9)
    second = torch.linalg.solve(inner, T @ C @ W.flatten(1).T).T
    return (second @ T).view_as(W)


def main() -> None:
    torch.set_num_threads(1)
    data = Path(os.environ["RMTSPEC_DATA"])
    weights = load_file(data / "models" / "resnet56-cifar10.safetensors")
    rows = []
    for name, (x, stride) in inputs_of(weights, photographs()).items():
        W, C = weights[name].double(), moment(x, stride)
        out, inside = W.shape[:2]
        for share in SHARES:
            size = share * W.numel()
            r = max(1, int(size / (9 * inside + out)))
            s = max(1, int(size / (3 * inside + 3 * out)))
            s = min(s, 3 * min(inside, out))
            r = min(r, out)
            row: dict[str, Any] = {"layer": name, "share": share, "ranks": [r, s]}
            row["k x k, 1 x 1"] = lost(W, plain(W, C, r), C)
            row["k x 1, 1 x k"] = lost(W, spatial(W, C, s, False), C)
            row["k x 1, 1 x k, fitted"] = lost(W, spatial(W, C, s, True), C)
            white = torch.eye(len(C), dtype=C.dtype)
            row["white: k x k, 1 x 1"] = lost(W, plain(W, white, r), white)
            row["white: k x 1, 1 x k"] = lost(W, spatial(W, white, s, False), white)
            rows.append(row)
    summary = {
        str(share): {
            key: round(float(np.median([r[key] for r in rows if r["share"] == share])), 4)
            for key in rows[0]
            if key.startswith(("k x", "white"))
        }
        | {
            "layers where k x 1, 1 x k fitted loses less": sum(
                r["k x 1, 1 x k, fitted"] < r["k x k, 1 x 1"] for r in rows if r["share"] == share
            ),
            "layers": sum(r["share"] == share for r in rows),
        }
        for share in SHARES
    }
    for share, row in summary.items():
        print(share, row)
    subject.record("convolutions", rows, medians=summary)


if __name__ == "__main__":
    main()
