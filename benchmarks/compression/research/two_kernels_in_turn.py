"""Does it pay to fit both kernels of a spatial split in turn, and not the second alone?

ResNet-56 on the photographs of `convolutions`. The split of `rmtspec.matrix.spatial` chooses the
k x 1 kernel by a singular value decomposition and fits the 1 x k one to the second moment of the
patches. Here each is then fitted with the other held, which is least squares both times: for the
first, sum over (s, q) of A[(r, p), (s, q)] V[s, q] = B[r, p], whose matrix of side rank * in * k
is solved as it is, so only layers of 16 and 32 channels are tried.

    python two_kernels_in_turn.py
"""

import os
from pathlib import Path
from typing import Any

import convolutions
import numpy as np
import subject
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from rmtspec.matrix.spatial import spatial_split
from rmtspec.matrix.split import split

LAYERS = ("layer1.3.conv1", "layer1.7.conv2", "layer2.4.conv2", "layer2.6.conv1")
SHARES = (0.75, 0.5, 0.25)
SWEEPS = (0, 1, 2, 4)
PHOTOGRAPHS = 64
Array = NDArray[np.float64]


def swept(W: Array, C: Array, V: Array, U: Array) -> tuple[Array, Array]:
    """Fit V (rank, in k) given U (out, rank, k), then U given V."""
    (out, rank, width), side = U.shape, V.shape[1]
    moment = C.reshape(side, width, side, width)
    seen = (W @ C).reshape(out, side, width)
    gram = np.einsum("orb,osc->rbsc", U, U, optimize=True)
    A = np.einsum("rbsc,pbqc->rpsq", gram, moment, optimize=True).reshape(rank * side, -1)
    A.flat[:: len(A) + 1] += 1e-10 * np.trace(A) / len(A)
    B = np.einsum("orb,opb->rp", U, seen, optimize=True)
    V = np.linalg.solve(A, B.ravel()).reshape(rank, side)
    T = np.einsum("rp,bc->rbpc", V, np.eye(width)).reshape(rank * width, -1)
    inner = T @ C @ T.T
    inner.flat[:: len(inner) + 1] *= 1.0 + 1e-9
    return V, np.linalg.solve(inner, T @ C @ W.T).T.reshape(out, rank, width)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(os.environ["RMTSPEC_DATA"]) / "models"
    weights = load_file(folder / "resnet56-cifar10.safetensors")
    inputs = convolutions.inputs_of(weights, convolutions.photographs(PHOTOGRAPHS))
    rows = []
    for layer in LAYERS:
        kernel = weights[f"{layer}.weight"].double().numpy()
        out, inside, height, width = kernel.shape
        W, C = kernel.reshape(out, -1), convolutions.moment(*inputs[f"{layer}.weight"]).numpy()
        C = C + 1e-3 * np.trace(C) / len(C) * np.eye(len(C))
        total = np.vdot(W @ C, W)

        def lost(product: Array, W: Array = W, C: Array = C, total: float = total) -> float:
            return float(np.vdot((W - product) @ C, W - product) / total)

        for share in SHARES:
            size = share * kernel.size
            found = split(W, max(1, int(size / (W.shape[1] + out))), input_moment=C)
            row: dict[str, Any] = {"layer": layer, "share": share}
            row["k x k, 1 x 1"] = lost(found.outer @ found.inner)
            rank = int(size / (height * inside + width * out))
            pair = spatial_split(W, (height, width), rank, C)
            V, U = pair.inner, pair.outer.reshape(out, rank, width)
            for sweep in range(max(SWEEPS) + 1):
                if sweep:
                    V, U = swept(W, C, V, U)
                if sweep in SWEEPS:
                    product = np.einsum("orb,rp->opb", U, V).reshape(out, -1)
                    row[f"{sweep} sweeps"] = lost(product)
            rows.append(row)
            print(row, flush=True)
    ratios = {
        f"{sweep} sweeps": round(
            float(np.median([r[f"{sweep} sweeps"] / r["0 sweeps"] for r in rows])), 3
        )
        for sweep in SWEEPS
    }
    print(ratios)
    subject.record("two_kernels_in_turn", rows, medians=ratios, photographs=PHOTOGRAPHS)


if __name__ == "__main__":
    main()
