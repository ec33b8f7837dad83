"""Small networks and runs that the tests of the pruner train."""

import torch
from torch import nn
from transformers import pytorch_utils

from rmtspec.adapters import torch as rt

DIMS = [40, 60, 50, 20]


def network(dims=DIMS, seed=0):
    torch.manual_seed(seed)
    return rt.MLP(dims)


def conv1d_of_transformers(outputs, inputs):
    return pytorch_utils.Conv1D(outputs, inputs)


def pruner_of(model, optimizer, **options):
    """Return a pruner that acts after every epoch and splits what `ranks` names, nothing else."""
    return rt.RMTPruner(model, optimizer, **{"every": 1, "fit_cutoff": 1e-12, **options})


def give_gradients(model, seed=0):
    """Give every parameter a gradient that depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = values.to(parameter)


def gradients_of_product(layer, towards, power=1):
    """Return the gradients of <towards, product of the factors to that power>, by autograd.

    Made of the layer's own `weight`, and so in the layout of its parameters.
    """
    inner, outer = (
        (factor.weight.detach() ** power).requires_grad_() for factor in (layer.inner, layer.outer)
    )
    (layer._product(inner, outer) * towards).sum().backward()
    return inner.grad, outer.grad


class Clusters:
    """Ten clouds of points in 64 dimensions: batches to train on, others to test with."""

    def __init__(self, count=1200, spread=2.6, seed=0):
        generator = torch.Generator().manual_seed(seed)
        centers = torch.randn(10, 64, generator=generator)
        labels = torch.randint(10, (2 * count,), generator=generator)
        points = centers[labels] + spread * torch.randn(2 * count, 64, generator=generator)
        self.points, self.labels = points[:count], labels[:count]
        self.test_points, self.test_labels = points[count:], labels[count:]

    def batches(self, epoch, size=100):
        order = torch.randperm(
            len(self.points), generator=torch.Generator().manual_seed(1000 + epoch)
        )
        for chosen in order.split(size):
            yield self.points[chosen], self.labels[chosen]

    def accuracy(self, model):
        model.eval()
        with torch.no_grad():
            right = (model(self.test_points).argmax(1) == self.test_labels).float().mean()
        model.train()
        return float(right)

    def epoch(self, model, optimizer, number, *, each_batch=None):
        """Train one epoch, and return its mean loss."""
        losses = []
        for points, labels in self.batches(number):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(points), labels)
            loss.backward()
            optimizer.step()
            if each_batch is not None:
                each_batch()
            losses.append(float(loss.detach()))
        return sum(losses) / len(losses)
