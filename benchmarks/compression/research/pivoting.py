"""A matrix of rank k in k (m + n - k) numbers instead of k (m + n): the same matrix, exactly.

k of its rows, well chosen, span the others (Zhao et al., Pivoting Factorization, ICML 2025). These
are kept as they are; every other row is a combination of them. Pivots come from a QR
decomposition with column pivoting of the outer factor's transpose, so the combinations stay small.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import nn


class Pivoted(NamedTuple):
    """``rows[others] = mixing @ kept``; ``rows[pivots] = kept``."""

    kept: np.ndarray
    mixing: np.ndarray
    pivots: np.ndarray
    others: np.ndarray


def pivoted(outer: np.ndarray, inner: np.ndarray) -> Pivoted:
    """``outer @ inner`` (m x k, k x n) as k of its own rows and combinations of them."""
    outer, inner = np.asarray(outer, float), np.asarray(inner, float)
    rank = outer.shape[1]
    if rank == 0:
        nothing, all_rows = np.arange(0), np.arange(len(outer))
        return Pivoted(inner, outer, nothing, all_rows)
    _, R, order = scipy.linalg.qr(outer.T, mode="economic", pivoting=True)
    if abs(R[-1, -1]) <= np.finfo(float).eps * max(outer.shape) * abs(R[0, 0]):
        raise ValueError(f"the outer factor has a rank below its {rank} columns")
    # outer.T[:, order] = Q [R1 R2]: the others are (R1^-1 R2)^T times the pivots.
    mixing = scipy.linalg.solve_triangular(R[:, :rank], R[:, rank:]).T
    return Pivoted(outer[order[:rank]] @ inner, mixing, order[:rank], order[rank:])


class PivotedLinear(nn.Module):
    """A linear layer of rank k: ``kept`` gives k outputs, ``mixing`` the others from these."""

    def __init__(self, outer: torch.Tensor, inner: torch.Tensor, bias: torch.Tensor | None = None):
        super().__init__()
        found = pivoted(outer.numpy(force=True), inner.numpy(force=True))
        place = np.argsort(np.concatenate([found.pivots, found.others]))
        self.kept = nn.Parameter(torch.as_tensor(found.kept, dtype=outer.dtype))
        self.mixing = nn.Parameter(torch.as_tensor(found.mixing, dtype=outer.dtype))
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        self.register_buffer("place", torch.as_tensor(place))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = nn.functional.linear(x, self.kept)
        both = torch.cat([first, nn.functional.linear(first, self.mixing)], -1)
        y = both.index_select(-1, self.place)
        return y if self.bias is None else y + self.bias
