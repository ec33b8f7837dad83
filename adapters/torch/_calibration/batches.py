"""Calibration batches: what counts as one, how the model is called with it, which are held out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from rmtspec.errors import InvalidTypeError, InvalidValueError

#: Model inputs, or a function that runs the model.
Batches = Iterable[Any] | Callable[[nn.Module], object]
T = TypeVar("T")


def check_batches(calibration: Any, name: str = "calibration") -> Batches:
    """Return the batches as something that can be gone through again, or the user's function."""
    if isinstance(calibration, torch.Tensor | Mapping):
        raise InvalidTypeError(
            f"`{name}` is a single {type(calibration).__name__}; expected an iterable of "
            "model inputs. Pass a list that contains it."
        )
    if isinstance(calibration, Iterable) and not isinstance(calibration, str | bytes):
        return list(calibration) if iter(calibration) is calibration else calibration
    if callable(calibration):
        return calibration  # type: ignore[no-any-return]
    raise InvalidTypeError(
        f"`{name}` is a {type(calibration).__name__}; expected an iterable of model inputs, a "
        "function that takes the model and runs it, or what `calibrate` returned."
    )


def with_holdout(
    batches: Iterable[T], share: float, name: str = "calibration"
) -> Iterator[tuple[int, T, bool]]:
    """Yield the number of each batch, the batch, and whether it is held out.

    The batches held out are spread evenly; of two or more, at least the last.
    """
    held = 0
    last: tuple[int, T, bool] | None = None
    for index, batch in enumerate(batches):
        if last is not None:
            held += last[2]
            yield last
        last = index, batch, int((index + 1) * share) > int(index * share)
    if last is None:
        raise InvalidValueError(
            f"`{name}` is empty; expected at least one batch. An iterator can be used only "
            "once: pass a list or a DataLoader."
        )
    only = last[0] == 0
    yield (*last[:2], not only and share > 0.0 and (last[2] or not held))


def on_device(value: Any, device: torch.device) -> Any:
    """Return a batch as tensors on the model's device."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        moved = value.to(device).detach()
        return moved.clone() if moved.is_inference() else moved
    if isinstance(value, Mapping):
        return {key: on_device(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [on_device(item, device) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's inputs belong."""
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))


def call(
    model: nn.Module, batch: Any, index: int | None, given: Any, *, name: str = "calibration"
) -> Any:
    """Return the model's output for a batch; `given` is the batch as the user passed it.

    `index` is its number among batches, None if there is but one.
    """
    try:
        if isinstance(batch, Mapping):
            return model(**batch)
        if isinstance(batch, list | tuple):
            return model(*batch)
        return model(batch)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        kind = InvalidTypeError if isinstance(error, TypeError) else InvalidValueError
        which = "" if index is None else f" batch {index}"
        raise kind(
            f"`{name}`{which} is a {_shape_of(given)}, and the model cannot be "
            f"called with it: {error}. A tuple is passed as positional arguments and a mapping "
            "as keyword arguments. From pairs (inputs, labels) take only the inputs: "
            "(inputs for inputs, _ in loader)."
        ) from error


def size_of(batch: Any) -> int:
    """Return the number of samples in a batch: the first side of its first tensor."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else 1
    items: Any = list(batch.values()) if isinstance(batch, Mapping) else batch
    items = items if isinstance(items, list | tuple) else []
    tensors = [item for item in items if isinstance(item, torch.Tensor) and item.ndim]
    return len(tensors[0]) if tensors else 1


def _shape_of(batch: Any) -> str:
    kind = type(batch).__name__
    if isinstance(batch, torch.Tensor):
        return f"{kind} of shape {tuple(batch.shape)}"
    return f"{kind} of {len(batch)}" if isinstance(batch, list | tuple | Mapping) else kind
