"""One run of a model with hooks that watch it; afterwards the model is as before."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from rmtspec.adapters.torch._calibration.batches import call, device_of, on_device
from rmtspec.adapters.torch._calibration.passes import short_cut
from rmtspec.errors import InvalidTypeError

#: Called with a module, what it reads, and what it puts out (None before it has run).
Watcher = Callable[[nn.Module, torch.Tensor | None, Any], None]


def check_batch(model: nn.Module, batch: Any) -> Any:
    """Return `batch` on the device of the model if it can be inputs."""
    if isinstance(batch, torch.Tensor | np.ndarray | Mapping):
        return on_device(batch, device_of(model))
    if isinstance(batch, list | tuple):
        if batch and all(isinstance(each, torch.Tensor | np.ndarray) for each in batch):
            return on_device(batch, device_of(model))
        what = (
            f"{type(batch).__name__} of {type(batch[0]).__name__}"
            if batch
            else f"{type(batch).__name__} without entries"
        )
    else:
        what = type(batch).__name__
    raise InvalidTypeError(
        f"`batch` is a {what}; expected the inputs of the model: a tensor, a tuple of tensors "
        "(positional arguments), or a mapping (keyword arguments). From a loader take one batch, "
        "next(iter(loader)), without the labels; encode text with its tokenizer first: "
        'tokenizer(texts, return_tensors="pt", padding=True).'
    )


def run(model: nn.Module, batch: Any, watched: Mapping[nn.Module, Watcher]) -> None:
    """Run the model on a batch, in evaluation mode and without gradients."""
    with _watching(model, watched):
        call(model, batch, None, batch, name="batch")


def run_on_tokens(model: nn.Module, count: int, watched: Mapping[nn.Module, Watcher]) -> None:
    """Run the model on the first `count` tokens, as both inputs of an encoder and a decoder."""
    ids = torch.arange(count, device=device_of(model))[None]
    known = inspect.signature(model.forward).parameters
    named = [name for name in ("input_ids", "decoder_input_ids") if name in known]
    with _watching(model, watched):
        if named:
            model(**dict.fromkeys(named, ids))
        else:
            model(ids)


@contextmanager
def _watching(model: nn.Module, watched: Mapping[nn.Module, Watcher]) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    handles = [
        module.register_forward_hook(_hook(watcher), with_kwargs=True)
        for module, watcher in watched.items()
    ]
    try:
        model.eval()
        with torch.no_grad(), short_cut(allowed=False):  # which would pass the hooks by
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode


def _hook(watcher: Watcher) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
        watcher(module, given[0] if given else None, output)

    return hook
