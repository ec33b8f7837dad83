"""Pairs of matrices with loss weights: hidden units chosen, the outer matrix fitted anew.

Hidden units h with moment C feed W; G weighs the outputs of W. When units B leave, the others stand
in for them as well as a linear fit can: with P = C^-1 over the units still there, the loss grows by
tr(P_BB^-1 W_B^T G W_B) / 2, W becomes W_S - W_B P_BB^-1 P_BS, and P becomes
P_SS - P_SB P_BB^-1 P_BS. Units are taken out a few at a time, the cheapest first; the sum of the
growths is a curve of loss against size that compares with that of low-rank factors.
"""

from dataclasses import dataclass

import cuts
import torch


@dataclass
class Elimination:
    """``order``: groups, first to leave first; ``loss[i]``: predicted when i have left."""

    order: torch.Tensor
    loss: torch.Tensor


def eliminate(
    weight: torch.Tensor,
    C: torch.Tensor,
    G: torch.Tensor,
    *,
    members: torch.Tensor | None = None,
    step: int = 16,
    ridge: float = cuts.RIDGE,
) -> Elimination:
    """``members`` (groups, units) lists units that can only leave together; default: one each."""
    W, C, G = weight.double(), cuts.ridged(C, ridge), cuts.ridged(G, ridge)
    if members is None:
        members = torch.arange(len(C))[:, None]
    P = torch.linalg.inv(C)
    order: list[int] = []
    loss = [0.0]
    here = list(range(len(members)))
    width = members.shape[1]
    left = members.clone()  # where the units of each group are in P and W now
    while len(here) > 1:
        weighed = G[:, None] * W if G.ndim == 1 else G @ W
        if width == 1:
            growth = (W * weighed).sum(0) / P.diagonal() / 2
        else:
            inner = torch.stack([torch.linalg.inv(P[g][:, g]) for g in left])
            outer = torch.stack([W[:, g].T @ weighed[:, g] for g in left])
            growth = (inner * outer).sum((1, 2)) / 2
        count = min(step, len(here) - 1)
        going = growth.argsort()[:count]
        B = left[going].flatten()
        stays = torch.ones(len(P), dtype=torch.bool)
        stays[B] = False
        fit = torch.linalg.solve(P[B][:, B], torch.cat([W[:, B].T, P[B][:, stays]], 1))
        total = float((fit[:, : len(W)] * weighed[:, B].T).sum()) / 2
        W = W[:, stays] - W[:, B] @ fit[:, len(W) :]
        P = P[stays][:, stays] - P[stays][:, B] @ fit[:, len(W) :]
        gone = set(going.tolist())
        order += [here[i] for i in going.tolist()]
        loss += [loss[-1] + total * (i + 1) / count for i in range(count)]
        here = [g for i, g in enumerate(here) if i not in gone]
        renumber = torch.cumsum(stays, 0) - 1
        left = renumber[left[[i for i in range(len(left)) if i not in gone]]]
    return Elimination(torch.tensor(order), torch.tensor(loss, dtype=torch.float64))


def refit(
    weight: torch.Tensor, C: torch.Tensor, kept: torch.Tensor, ridge: float = cuts.RIDGE
) -> torch.Tensor:
    """``weight`` with zeros for the units that left and the best fit for those kept."""
    C = cuts.ridged(C, ridge)
    fitted = torch.linalg.solve(C[kept][:, kept], C[kept] @ weight.double().T).T
    whole = torch.zeros_like(weight)
    whole[:, kept] = fitted.to(weight.dtype)
    return whole
