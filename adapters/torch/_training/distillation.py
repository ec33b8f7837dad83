"""How far a model's output is from that of its teacher: the loss of a refit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import kl_div

from rmtspec.adapters.torch._calibration.batches import call
from rmtspec.adapters.torch._outputs import (
    linear_outputs,
    logits_of,
    tensors_of,
    visible_positions,
)
from rmtspec.errors import InvalidTypeError, InvalidValueError

#: The user's own loss.
Loss = Callable[[Any, Any, Any], Any]


class Distillation:
    """The distance between the outputs of two models on a batch.

    With logits, the mean Kullback-Leibler divergence of the student's predictions from the
    teacher's, over the positions that no mask hides; else the squared distance of all floating
    tensors, relative to the teacher's.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: Loss | None) -> None:
        self._student, self._teacher, self._loss = student, teacher, loss
        self._plain: tuple[set[int], set[int]] = (set(), set())

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Watch which tensors linear layers put out, as long as the context lasts."""
        with linear_outputs(self._student) as student, linear_outputs(self._teacher) as teacher:
            self._plain = (student, teacher)
            yield

    def __call__(self, batch: Any, index: int, given: Any) -> tuple[torch.Tensor, int]:
        """Return the loss of a batch, and how many positions it is the mean of."""
        if self._loss is not None:
            return self._users(batch, index), 1
        for seen in self._plain:
            seen.clear()
        with torch.no_grad():
            wanted = call(self._teacher, batch, index, given, name="batches")
            targets = logits_of(wanted, self._plain[1], batch)
        found = call(self._student, batch, index, given, name="batches")
        values = logits_of(found, self._plain[0], batch)
        visible = visible_positions(self._student, batch)
        if targets and [t.shape for t in targets] == [v.shape for v in values]:
            parts = [
                _divergence(v, t, visible("", t)) for v, t in zip(values, targets, strict=True)
            ]
            return sum((loss for loss, _ in parts), torch.zeros(())), parts[0][1]
        return self._distance(tensors_of(found), tensors_of(wanted), visible)

    def _distance(
        self, values: list[torch.Tensor], targets: list[torch.Tensor], visible: Any
    ) -> tuple[torch.Tensor, int]:
        if not targets or [t.shape for t in targets] != [v.shape for v in values]:
            raise InvalidValueError(
                f"The model puts out {[tuple(v.shape) for v in values]}, the teacher "
                f"{[tuple(t.shape) for t in targets]}; expected the same shapes, at least one "
                "floating tensor. Pass loss=function(model, teacher, batch)."
            )
        lost, whole, count = torch.zeros(()), 0.0, 0
        for value, target in zip(values, targets, strict=True):
            mask = visible("", target)
            gap, size = value.float() - target.float(), target.float()
            if mask is not None:
                gap, size = gap[mask], size[mask]
            lost = lost.to(gap.device) + gap.square().sum()
            whole += float(size.square().sum())
            count = count or max(1, gap.numel() // max(1, gap.shape[-1]))
        return lost / max(whole, 1e-30), count

    def _users(self, batch: Any, index: int) -> torch.Tensor:
        value = self._loss(self._student, self._teacher, batch)  # type: ignore[misc]
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise InvalidTypeError(
                f"`loss` returned a {type(value).__name__} for batch {index}; expected a tensor "
                "of one number. It is called as loss(model, teacher, batch)."
            )
        return value.reshape(())


def _divergence(
    logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, int]:
    """Return the mean Kullback-Leibler divergence over positions, and their number."""
    if mask is not None:
        logits, target = logits[mask], target[mask]
    logits, target = logits.reshape(-1, logits.shape[-1]), target.reshape(-1, target.shape[-1])
    found, wanted = logits.float().log_softmax(-1), target.float().log_softmax(-1)
    return kl_div(found, wanted, log_target=True, reduction="batchmean"), len(logits)
