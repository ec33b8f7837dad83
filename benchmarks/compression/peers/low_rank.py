"""Low-rank peers with uniform ranks, from their published formulas: SVD, ASVD, FWSVD, SVD-LLM.

Each keeps the same share of the parameters of every layer. None of them uses rmtspec.

- SVD: the best approximation of the weight.
- ASVD (Yuan et al., 2023): columns scaled by the mean absolute input to the power alpha = .5.
- FWSVD (Hsu et al., ICLR 2022): rows scaled by the root of their Fisher information, the sum of
  squared gradients of the weights in a row.
- SVD-LLM (Wang et al., ICLR 2025): whitening by the Cholesky factor of X X^T; and its sequential
  update, which whitens by the inputs that the compressed model has so far.
"""

import contextlib
import copy

import torch
from torch import nn


def rank_for(share, rows, columns):
    """Return the rank at which two factors take that share of the parameters."""
    return max(1, int(share * rows * columns / (rows + columns)))


class TwoLinear(nn.Module):
    """Two linear layers in place of one."""

    def __init__(self, left, right, bias):
        super().__init__()
        self.first = nn.Linear(right.shape[1], right.shape[0], bias=False)
        self.second = nn.Linear(left.shape[1], left.shape[0], bias=bias is not None)
        with torch.no_grad():
            self.first.weight.copy_(right)
            self.second.weight.copy_(left)
            if bias is not None:
                self.second.bias.copy_(bias)

    def forward(self, x):
        return self.second(self.first(x))


def truncated(weight, rank, *, left=None, right=None):
    """Return factors of the best approximation of left @ weight @ right, in the weight's units.

    `left` is a vector (a diagonal), `right` a vector or a lower triangular matrix.
    """
    scaled = weight.double()
    scaled = scaled if left is None else left[:, None] * scaled
    if right is not None:
        scaled = scaled * right if right.ndim == 1 else scaled @ right
    u, s, v = torch.linalg.svd(scaled, full_matrices=False)
    outer, inner = u[:, :rank] * s[:rank].sqrt(), s[:rank, None].sqrt() * v[:rank]
    outer = outer if left is None else outer / left[:, None]
    if right is not None and right.ndim == 1:
        inner = inner / right
    elif right is not None:
        inner = torch.linalg.solve_triangular(right, inner, upper=False, left=False)
    return outer, inner


def whitening(moment):
    """Return the Cholesky factor of a second moment, which is made positive as SVD-LLM does."""
    least = float(torch.linalg.eigvalsh(moment)[0])
    if least <= 0:
        moment = moment + (1e-6 - least) * torch.eye(len(moment), dtype=moment.dtype)
    return torch.linalg.cholesky(moment)


def compressed(model, layers, share, *, lefts=None, rights=None):
    """Return a copy of the model with each layer in two, by the scales of its sides."""
    small = copy.deepcopy(model)
    for name in layers:
        layer = small.get_submodule(name)
        rank = rank_for(share, *layer.weight.shape)
        sides = {
            "left": None if lefts is None else lefts[name],
            "right": None if rights is None else rights[name],
        }
        outer, inner = truncated(layer.weight.detach(), rank, **sides)
        parent, _, child = name.rpartition(".")
        setattr(small.get_submodule(parent), child, TwoLinear(outer, inner, layer.bias))
    return small


def fisher_rows(model, layers, batches):
    """Return the root of the sum of squared weight gradients in each row, by layer."""
    weights = {name: model.get_submodule(name).weight for name in layers}
    sums = {name: torch.zeros(len(weight), dtype=torch.float64) for name, weight in weights.items()}
    for batch in batches:
        ids = batch["input_ids"]
        loss = model(**batch, labels=ids).loss
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            sums[name] += gradient.double().square().sum(1)
    return {name: (total / len(batches)).sqrt().clamp_min(1e-12) for name, total in sums.items()}


@torch.no_grad()
def mean_inputs(model, layers, batches):
    """Return the mean absolute inputs by layer."""
    sums, counts = {}, {}

    def note(name):
        def hook(layer, inputs):
            rows = inputs[0].double().abs().flatten(0, -2)
            sums[name] = sums.get(name, 0.0) + rows.sum(0)
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(note(n)) for n in layers]
    for batch in batches:
        model(**batch)
    for handle in handles:
        handle.remove()
    return {name: sums[name] / counts[name] for name in layers}


@torch.no_grad()
def sequential(model, blocks, share, batches):
    """SVD-LLM with sequential update: each block is whitened by what the compressed ones before
    it put out. `blocks` is the path of the list of blocks."""
    small = copy.deepcopy(model)
    for number in range(len(small.get_submodule(blocks))):
        path = f"{blocks}.{number}"
        block = small.get_submodule(path)
        layers = [f"{path}.{n}" for n, m in block.named_modules() if isinstance(m, nn.Linear)]
        moments = second_moments(small, layers, batches)
        for name in layers:
            layer = small.get_submodule(name)
            right = whitening(moments[name])
            rank = rank_for(share, *layer.weight.shape)
            outer, inner = truncated(layer.weight, rank, right=right)
            parent, _, child = name.rpartition(".")
            setattr(small.get_submodule(parent), child, TwoLinear(outer, inner, layer.bias))
    return small


@torch.no_grad()
def second_moments(model, layers, batches):
    """Return X X^T / count of the inputs by layer; the last layer ends the forward pass."""
    sums, last = {}, layers[-1]

    class EnoughError(Exception):
        """The layers have been reached."""

    def note(name):
        def hook(layer, inputs):
            rows = inputs[0].double().flatten(0, -2)
            sums[name] = sums.get(name, 0.0) + rows.T @ rows / len(rows)
            if name == last:
                raise EnoughError

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(note(n)) for n in layers]
    for batch in batches:
        with contextlib.suppress(EnoughError):
            model(**batch)
    for handle in handles:
        handle.remove()
    return {name: sums[name] / len(batches) for name in layers}
