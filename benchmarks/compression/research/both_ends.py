"""Whether the smallest singular values of W are worth keeping at equal rank.

Every third block of SmolLM2: the singular triplets of W by deciles, largest first, and the share of
each in tr(G W C W^T), C the inputs' second moment, G one or the diagonal of the gradients'. Then
two cuts of the same rank, half of all: the largest, or the largest nine tenths of these and as many
of the smallest as make up for the rest.

    python both_ends.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import clipping
import cuts
import numpy as np
import subject
import torch


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    model, _ = subject.load()
    m = clipping.Moments(folder)
    moment, weight = m.best_moment(), m.best_weight()
    rows: list[dict[str, Any]] = []
    for name, layer in subject.linears(model).items():
        if int(name.split(".")[0]) % 3:
            continue
        W, C, D = layer.weight.detach().double(), moment(name), weight(name).double()
        U, S, V = torch.linalg.svd(W, full_matrices=False)
        row: dict[str, Any] = {"layer": name}
        for what, left in (("outputs", torch.ones_like(D)), ("loss", D)):
            own = S.square() * (U.square().T @ left) * ((V @ C) * V).sum(1)
            row[f"deciles, {what}"] = [
                float(part.sum() / own.sum()) for part in own.tensor_split(10)
            ]
            total = float((left[:, None] * (W @ C) * W).sum())
            rank = len(S) // 2
            few = rank // 10
            both = torch.cat([torch.arange(rank - few), torch.arange(len(S) - few, len(S))])
            for cut, kept in (("largest", torch.arange(rank)), ("both ends", both)):
                change = W - (U[:, kept] * S[kept]) @ V[kept]
                row[f"{what} lost, {cut}"] = (
                    float((left[:, None] * (change @ C) * change).sum()) / total
                )
            best = cuts.factor(W, C, left).cut(rank).double()
            row[f"{what} lost, weighed"] = float(
                (left[:, None] * ((W - best) @ C) * (W - best)).sum() / total
            )
        rows.append(row)
    summary: dict[str, Any] = {}
    for what in ("outputs", "loss"):
        deciles = np.array([r[f"deciles, {what}"] for r in rows])
        summary[f"median deciles, {what}"] = np.median(deciles, 0).round(4).tolist()
        summary[f"layers whose last decile passes the one before, {what}"] = int(
            (deciles[:, 9] > deciles[:, 8]).sum()
        )
        pair = [
            np.array([r[f"{what} lost, {c}"] for r in rows])
            for c in ("largest", "both ends", "weighed")
        ]
        summary[f"{what} lost: largest, both ends, weighed"] = [
            round(float(np.median(p)), 4) for p in pair
        ]
        summary[f"layers where both ends lose less, {what}"] = int((pair[1] < pair[0]).sum())
    summary["layers"] = len(rows)
    print(summary)
    subject.record("both_ends", rows, summary=summary)


if __name__ == "__main__":
    main()
