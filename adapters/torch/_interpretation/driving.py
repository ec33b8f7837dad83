"""Which examples of a batch drive the directions of a layer most."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from rmtspec.adapting import Float64Array, Reading
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError

_COUNT = 8
#: Tokens shown on each side of the one that drives a direction.
_AROUND = 3


def driving_examples(
    model: nn.Module,
    module: nn.Module,
    batch: Any,
    directions: Float64Array,
    word: Callable[[int], str] | None,
) -> list[Reading]:
    """Return for each input direction the examples whose inputs of the layer point most along it.

    The value is the inner product of the layer's input with the direction; of a sequence or an
    image, each place is one input. Of several examples each appears once, with its place.
    """
    seen = _inputs_of(model, module, batch)
    values = _products(module, seen, torch.from_numpy(directions))
    if values.ndim < 2:
        values = values[None]
    flat = values.reshape(values.shape[0], -1, values.shape[-1]).cpu().numpy()
    ids = _token_ids(batch)
    return [_reading(flat[..., i], values.shape[1:-1], ids, word) for i in range(flat.shape[-1])]


def _inputs_of(model: nn.Module, module: nn.Module, batch: Any) -> torch.Tensor:
    """Run the model on the batch and return what the layer was given, less its gradient."""
    seen: list[torch.Tensor] = []

    def note(_: nn.Module, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], torch.Tensor):
            seen.append(given[0].detach())

    modes = {each: each.training for each in model.modules()}
    handle = module.register_forward_pre_hook(note)
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(batch, Mapping):
                model(**batch)
            elif isinstance(batch, tuple | list):
                model(*batch)
            elif isinstance(batch, torch.Tensor):
                model(batch)
            else:
                raise InvalidOptionTypeError(
                    f"`batch` is a {type(batch).__name__}",
                    "a tensor, or a tuple or mapping of what the model takes",
                )
    finally:
        handle.remove()
        for each, mode in modes.items():
            each.training = mode
    if not seen:
        raise InvalidOptionError("`batch` did not reach the layer", "inputs that pass through it")
    return torch.cat(seen)


def _products(module: nn.Module, seen: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Return the inner products of a layer's inputs with directions, these last."""
    directions = directions.to(seen.device, torch.float32)
    seen = seen.to(torch.float32)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if module.groups > 1:
            raise InvalidOptionTypeError(
                "`batch` is given for a convolution in groups", "one without groups, or no batch"
            )
        kernels = directions.reshape(len(directions), *module.weight.shape[1:])
        # With the layer's own stride, padding and dilation.
        products: torch.Tensor = module._conv_forward(seen, kernels, None)
        return products.movedim(1, -1)
    if seen.shape[-1] != directions.shape[1] or not seen.is_floating_point():
        raise InvalidOptionTypeError(
            f"`batch` is given for a {type(module).__name__}, whose input has the shape "
            f"{tuple(seen.shape)}", "a linear layer or a convolution, or no batch",
        )  # fmt: skip
    return seen @ directions.mT


def _token_ids(batch: Any) -> torch.Tensor | None:
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    whole = isinstance(ids, torch.Tensor) and ids.ndim == 2 and not ids.is_floating_point()
    return ids if whole else None


def _reading(
    values: Float64Array,
    places: tuple[int, ...],
    ids: torch.Tensor | None,
    word: Callable[[int], str] | None,
) -> Reading:
    """Return the examples of the largest and smallest values of one direction."""

    def item(example: int, at: int) -> tuple[str, float]:
        where = "" if values.shape[1] == 1 else f" at {_at(at, places)}"
        text = ""
        if ids is not None and word is not None and values.shape[1] == ids.shape[1]:
            around = ids[example, max(0, at - _AROUND) : at + 1].tolist()
            text = ": " + "".join(word(i)[1:-1] for i in around)
        return f"#{example}{where}{text}", float(values[example, at])

    if len(values) == 1:  # then its places are the examples
        found = np.argsort(values[0], kind="stable")
        top = [(0, int(at)) for at in found[::-1][:_COUNT]]
        bottom = [(0, int(at)) for at in found[:_COUNT]]
    else:
        best, worst = np.argsort(-values.max(axis=1)), np.argsort(values.min(axis=1))
        top = [(int(i), int(values[i].argmax())) for i in best[:_COUNT]]
        bottom = [(int(i), int(values[i].argmin())) for i in worst[:_COUNT]]
    along, against = (tuple(item(*each) for each in which) for which in (top, bottom))
    return Reading("examples", along=along, against=against)


def _at(flat: int, places: tuple[int, ...]) -> str:
    return ", ".join(str(int(i)) for i in np.unravel_index(flat, places))
