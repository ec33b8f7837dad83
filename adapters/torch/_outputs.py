"""What a model puts out: its logits, its tensors, and which positions of them count."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: Masks by the name of the argument, and the value of a position that does not count.
_MASKS: dict[str, bool] = {
    "attention_mask": False,
    "decoder_attention_mask": False,
    "src_key_padding_mask": True,
    "tgt_key_padding_mask": True,
}
#: Those of the second half of an encoder-decoder.
_OF_DECODER = ("decoder_attention_mask", "tgt_key_padding_mask")
#: Largest deviation of probabilities from a sum of 1, of log-probabilities from one of 0.
_NORMALISED = 1e-3

#: Returns which positions of a tensor count, given the name of the layer that reads or makes it.
Visible = Callable[[str, torch.Tensor], torch.Tensor | None]


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Return the floating tensors in an output: a tensor, or nested lists, tuples and mappings.

    Single numbers, such as a loss, are left out.
    """
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() and output.ndim else []
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for item in output for tensor in tensors_of(item)]
    return []


def logits_of(output: Any, plain: set[int], inputs: Any = None) -> list[torch.Tensor]:
    """Return the logits in an output, of shape (..., classes); none if there seem to be none.

    In a mapping these are the tensors called "logits" or "..._logits". Elsewhere they are tensors
    that a linear layer made and nothing changed, whose `id` is in `plain` (see `linear_outputs`),
    unless an input has their shape, as in an autoencoder; and tensors of probabilities or their
    logarithms, which give the logarithms.
    """
    if isinstance(output, Mapping):
        named = [v for k, v in output.items() if k == "logits" or str(k).endswith("_logits")]
        return [tensor for tensor in tensors_of(named) if _has_classes(tensor)]
    shapes = {tensor.shape for tensor in tensors_of(inputs)}
    found = []
    for tensor in tensors_of(output):
        if not _has_classes(tensor) or tensor.shape in shapes:
            continue
        if id(tensor) in plain:
            found.append(tensor)
        elif (logarithms := _logarithms(tensor)) is not None:
            found.append(logarithms)
    return found


@contextmanager
def linear_outputs(model: nn.Module) -> Iterator[set[int]]:
    """Yield a set that is filled with the ids of what linear layers put out while they run.

    An id counts only as long as the tensor is held: ask while the output is there.
    """
    seen: set[int] = set()

    def note(layer: Any, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            seen.add(id(output))

    handles = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "SplitLinear"
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def visible_positions(model: nn.Module, batch: Any) -> Visible:
    """Return the function that tells which positions of a tensor the masks in a batch leave.

    A mask of shape (batch, length) speaks for tensors whose first two sides are its own. Where
    encoder and decoder have masks of the same shape, the name of the layer decides.
    """
    masks = _masks_in(model, batch)

    def visible(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        if tensor.is_nested:  # made of what the mask leaves
            return None
        fitting = [key for key, mask in masks.items() if tensor.shape[:2] == mask.shape]
        if tensor.ndim < 3 or not fitting:
            return None
        in_decoder = "decoder" in name
        best = next((key for key in fitting if (key in _OF_DECODER) == in_decoder), fitting[0])
        return masks[best]

    return visible


def _masks_in(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    """Return the masks in a batch by name, True where a position counts."""
    given: Mapping[str, Any] = {}
    if isinstance(batch, Mapping):
        given = batch
    elif isinstance(batch, list | tuple):
        try:
            given = inspect.signature(model.forward).bind_partial(*batch).arguments
        except (TypeError, ValueError):
            given = {}
    found = {}
    for name, hidden in _MASKS.items():
        mask = given.get(name)
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            if mask.is_floating_point() and hidden:  # added to scores: -inf hides
                found[name] = mask == 0
            else:
                found[name] = mask.bool() != hidden
    return found


def _has_classes(tensor: torch.Tensor) -> bool:
    return tensor.ndim >= 2 and tensor.shape[-1] >= 2


def _logarithms(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return log-probabilities, from these or from probabilities; None if it is neither."""
    with torch.no_grad():
        values = tensor.detach().float()
        if not (values.numel() and torch.isfinite(values).all()):
            return None
        if (values.min() >= 0) and (values.sum(-1) - 1).abs().max() < _NORMALISED:
            positive = True
        elif (values.max() <= 0) and values.logsumexp(-1).abs().max() < _NORMALISED:
            positive = False
        else:
            return None
    return tensor.clamp_min(torch.finfo(tensor.dtype).tiny).log() if positive else tensor
