"""Replicas of a model in several processes (DistributedDataParallel): one decision for all."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rmtspec.errors import InvalidValueError, RmtspecError

T = TypeVar("T")


def replicas() -> int:
    """Return the number of processes that train together; 1 where none was set up."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    size: int = dist.get_world_size()
    return size


def decided_once(decide: Callable[[], T]) -> T:
    """Return what the first process decides, in all of them; what it raises is raised in all."""
    if replicas() == 1:
        return decide()
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = decide()
        except RmtspecError as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    decided: T = answer[0]
    return decided


def made_equal(tensors: Iterable[torch.Tensor]) -> None:
    """Give tensors the values they have in the first process."""
    if replicas() == 1:
        return
    for tensor in tensors:
        values = tensor.detach()
        if values.device.type == "cpu" and dist.get_backend() == "nccl":
            moved = values.cuda()
            dist.broadcast(moved, src=0)
            values.copy_(moved)
        else:
            dist.broadcast(values, src=0)


def check_shared_gradient(gradient: torch.Tensor) -> None:
    """Raise where replicas have different gradients: the wrapper does not know the new layers."""
    largest = gradient.detach().abs().sum().float()
    smallest = -largest
    pair = torch.stack([largest, smallest])
    dist.all_reduce(pair, op=dist.ReduceOp.MAX)
    if float(pair[0] + pair[1]) > 1e-4 * float(pair[0]):
        raise InvalidValueError(
            "The gradients of the split layers differ between processes: the wrapper does not "
            "know them. Wrap the model again whenever step() returns a report: "
            "ddp = DistributedDataParallel(model)."
        )
