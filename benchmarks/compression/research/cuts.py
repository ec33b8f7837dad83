"""The prototype: factors of every layer by predicted loss, one budget over all layers.

A layer W with input moment C and output weight G (a vector D for a diagonal) loses
tr(G (W - W') C (W - W')^T) / 2 when it becomes W'. The best W' of rank k keeps the k largest
singular values of G^(1/2) W C^(1/2); half the sum of the squares of the others is its loss.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import subject
import torch

RIDGE = 1e-3


@dataclass
class Factors:
    """``outer[:, :k] @ inner[:k]`` is the best matrix of rank k; ``tail[k]`` what it loses."""

    outer: torch.Tensor
    inner: torch.Tensor
    tail: torch.Tensor

    def cut(self, rank: int) -> torch.Tensor:
        return self.outer[:, :rank] @ self.inner[:rank]


def ridged(moment: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    moment = moment.double()
    if moment.ndim == 1:
        return moment + ridge * moment.mean()
    return moment + ridge * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)


def factor(weight: torch.Tensor, C: torch.Tensor, G: torch.Tensor, ridge: float = RIDGE) -> Factors:
    """By the Gram matrix of the smaller side, in float64; ``G`` a matrix or a vector."""
    W, C, G = weight.double(), ridged(C, ridge), ridged(G, ridge)
    diagonal = G.ndim == 1
    out, inside = W.shape
    if out <= inside:
        root = G.sqrt().diag() if diagonal else torch.linalg.cholesky(G)
        left = root.T @ W
        square, U = torch.linalg.eigh(left @ C @ left.T)
        square, U = square.flip(0).clamp(min=0), U.flip(1)
        outer = torch.linalg.solve_triangular(root.T, U, upper=True)
        inner = U.T @ left
    else:
        root = torch.linalg.cholesky(C)
        right = W @ root
        weighted = G[:, None] * right if diagonal else G @ right
        square, V = torch.linalg.eigh(right.T @ weighted)
        square, V = square.flip(0).clamp(min=0), V.flip(1)
        outer = right @ V
        inner = torch.linalg.solve_triangular(root.T, V, upper=True).T
    kept = torch.cat([torch.zeros(1, dtype=torch.float64), square.cumsum(0)])
    return Factors(outer.float(), inner.float(), (square.sum() - kept).clamp(min=0) / 2)


def size_of(m: int, n: int, rank: Any, pivoted: bool) -> Any:
    return rank * (m + n - rank) if pivoted else rank * (m + n)


def allocate(
    tails: dict[str, torch.Tensor],
    shapes: dict[str, tuple[int, int]],
    share: float,
    pivoted: bool = False,
) -> dict[str, int | None]:
    """Ranks of least predicted loss at ``share`` of the parameters; None: the layer stays dense.

    ``pivoted``: k rows of a matrix of rank k are kept as they are, the m - k others are
    combinations of them: k (m + n - k) parameters in place of k (m + n), for the same matrix.
    """
    total = sum(m * n for m, n in shapes.values())

    def ranks(price: float) -> tuple[dict[str, int | None], float]:
        chosen: dict[str, int | None] = {}
        size = 0.0
        for name, tail in tails.items():
            m, n = shapes[name]
            sizes = size_of(m, n, torch.arange(len(tail)), pivoted)
            cost = tail + price * sizes
            k = int(cost.argmin())
            dense = bool(price * m * n <= cost[k])
            chosen[name] = None if dense else k
            size += m * n if dense else int(sizes[k])
        return chosen, size

    low, high = 0.0, max(float(t[0]) for t in tails.values())
    for _ in range(60):
        middle = (low * high) ** 0.5 if low > 0 else high / 1e12
        if ranks(middle)[1] > share * total:
            low = middle
        else:
            high = middle
        if low > 0 and high / low < 1 + 1e-6:
            break
    return ranks(high)[0]


class Trial:
    """One way to weigh the layers, measured at several sizes on the same model."""

    def __init__(self, model: Any, ids: dict[str, torch.Tensor]) -> None:
        self.model, self.ids = model, ids
        self.layers = subject.linears(model)
        self.dense = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        self.shapes = {name: tuple(W.shape) for name, W in self.dense.items()}
        self.rows: list[dict[str, Any]] = []

    def factors(
        self,
        moment: Callable[[str], torch.Tensor],
        weight: Callable[[str], torch.Tensor],
        ridge: float = RIDGE,
    ) -> dict[str, Factors]:
        return {
            name: factor(W, moment(name), weight(name), ridge) for name, W in self.dense.items()
        }

    def install(self, weights: dict[str, torch.Tensor]) -> None:
        for name, layer in self.layers.items():
            layer.weight.data.copy_(weights.get(name, self.dense[name]))

    def run(
        self,
        what: str,
        factors: dict[str, Factors],
        shares: Iterable[float] = (0.8, 0.6),
        texts: Iterable[str] = ("wiki",),
        tails: dict[str, torch.Tensor] | None = None,
        pivoted: bool = False,
    ) -> list[dict[str, Any]]:
        """Perplexity at each share; ``tails`` decides the ranks in place of the factors' own."""
        rows = []
        for share in shares:
            start = time.time()
            used = tails or {k: f.tail for k, f in factors.items()}
            ranks = allocate(used, self.shapes, share, pivoted)
            self.install({k: factors[k].cut(r) for k, r in ranks.items() if r is not None})
            row: dict[str, Any] = {"what": what, "share": share}
            row |= {t: round(subject.perplexity(self.model, self.ids[t]), 2) for t in texts}
            row["predicted"] = round(
                sum(float(used[k][r]) for k, r in ranks.items() if r is not None), 4
            )
            row["dense"] = {
                kind: sum(r is None for k, r in ranks.items() if k.endswith(kind))
                for kind in subject.KINDS
            }
            row["seconds"] = round(time.time() - start, 1)
            rows.append(row)
            print({k: v for k, v in row.items() if k != "dense"}, flush=True)
        self.rows += rows
        return rows
