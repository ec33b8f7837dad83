"""The steps of an epoch on a GPU: one is recorded as a CUDA graph, the others replay it.

A step of these nets is about forty small kernels. Launched one by one from Python they cost more
time than they run.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

#: Steps before one is recorded: they allocate what it takes, the optimizer's state included.
WARM_UP = 3
#: Takes a step, and returns what repeats it; the step itself need not be run.
Record = Callable[[Callable[[], None]], Callable[[], Any]]


class ReplayedSteps:
    """Trains epochs on one model and optimizer, and records anew whenever either was changed.

    Every step is one of the training, those before the recording included; the order of the
    operations is that of a plain loop.

    Parameters
    ----------
    model, optimizer
        On the device of the images.
    images, labels : torch.Tensor
        The training set, shapes (number, pixels) and (number,).
    batch : int
        Images in a step; the last step of an epoch may have fewer.
    record : callable, optional
        Instead of a CUDA graph.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        batch: int,
        record: Record | None = None,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._images, self._labels, self._batch = images, labels, batch
        self._record = record or _cuda_graph
        self._order = torch.zeros(len(images), dtype=torch.long, device=images.device)
        self._start = torch.zeros((), dtype=torch.long, device=images.device)
        self._within = torch.arange(batch, device=images.device)
        self._loss_sum = torch.zeros((), device=images.device)
        self._correct = torch.zeros((), device=images.device)
        self._replay: Callable[[], Any] | None = None
        self._recorded: list[Any] = []
        self.recordings = 0

    def epoch(self, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on the images in this order; return the sum of the losses, and the correct ones."""
        self._order.copy_(order)
        for tensor in (self._start, self._loss_sum, self._correct):
            tensor.zero_()
        steps, rest = divmod(len(order), self._batch)
        if self._replay is None or not self._same():
            self._replay = None  # frees the memory of the old recording
            warm = min(WARM_UP, steps)
            for _ in range(warm):
                self._step(self._batch)
            steps -= warm
            self._replay = self._record(lambda: self._step(self._batch))
            self._recorded = self._fixed()
            self.recordings += 1
        for _ in range(steps):
            self._replay()
        if rest:
            self._step(rest)
        return self._loss_sum, self._correct

    def _step(self, size: int) -> None:
        batch = self._order[self._start + self._within[:size]]
        labels = self._labels[batch]
        outputs = self._model(self._images[batch])
        loss = nn.functional.cross_entropy(outputs, labels)
        self._loss_sum += loss.detach() * size
        self._correct += (outputs.argmax(1) == labels).sum()
        self._start += size
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()

    def _fixed(self) -> list[Any]:
        """Return what a recording holds on to: parameters, the optimizer's state, its rates."""
        groups = self._optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        states = [self._optimizer.state.get(parameter, {}) for parameter in parameters]
        return [
            *parameters,
            *(value for state in states for value in state.values() if torch.is_tensor(value)),
            *(group["lr"] for group in groups),
        ]

    def _same(self) -> bool:
        """Tell whether all that was recorded is still in use."""
        now = self._fixed()
        return len(now) == len(self._recorded) and all(
            a is b or (not torch.is_tensor(a) and a == b)
            for a, b in zip(now, self._recorded, strict=True)
        )


def _cuda_graph(step: Callable[[], None]) -> Callable[[], Any]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
