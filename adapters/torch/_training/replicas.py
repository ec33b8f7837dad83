"""Replicas of a model in several processes (DistributedDataParallel), kept the same."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rmtspec.errors import InvalidValueError

T = TypeVar("T")


def count() -> int:
    """Return the number of processes that train together."""
    return int(dist.get_world_size()) if dist.is_available() and dist.is_initialized() else 1


def decided_once(decide: Callable[[], T]) -> T:
    """Return the first process's decision in all processes; an error of it is raised in all."""
    if count() == 1:
        return decide()
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = decide()
        except Exception as error:  # the others wait for an answer of any kind
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    decided: T = answer[0]
    return decided


def made_equal(tensors: Iterable[torch.Tensor]) -> None:
    """Give tensors the values that they have in the first process."""
    if count() == 1:
        return
    for tensor in tensors:
        values = tensor.detach()
        moved = values.contiguous()
        if moved.device.type == "cpu" and dist.get_backend() == "nccl":
            moved = moved.cuda()
        dist.broadcast(moved, src=0)
        if moved is not values:
            values.copy_(moved)


def shared_gradient(gradient: torch.Tensor | None, device: torch.device) -> bool:
    """Tell whether all processes share the gradient of a new layer; call it in all of them.

    False if no gradient can tell (none yet, zeros, nan). Raise if they differ: the wrapper does
    not know the new layer.
    """
    size = torch.zeros((), device=device)
    if gradient is not None:
        size += gradient.detach().to_dense().abs().sum(dtype=torch.float32)
    size = size.nan_to_num(nan=0.0, posinf=0.0)
    pair = torch.stack([size, -size])
    dist.all_reduce(pair, op=dist.ReduceOp.MAX)
    largest, smallest = float(pair[0]), -float(pair[1])
    if largest - smallest > 1e-5 * largest:
        raise InvalidValueError(
            "The gradients of the split layers differ between processes: the wrapper does not "
            "know them. Wrap the model again whenever step() returns a report, and after resume: "
            "ddp = DistributedDataParallel(model)."
        )
    return largest > 0.0
