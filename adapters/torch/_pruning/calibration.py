"""Second moments of layers' inputs, gathered while a model runs on calibration batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapting import listed
from rmtspec.errors import InvalidTypeError, InvalidValueError

#: Model inputs, or a function that runs the model.
Calibration = Iterable[Any] | Callable[[nn.Module], object]
#: Bytes of the float64 rows that are multiplied at a time.
_BLOCK_BYTES = 2**26


def input_moments(
    model: nn.Module, layers: Mapping[str, nn.Module], calibration: Calibration
) -> dict[str, list[NDArray[np.float64]]]:
    """Return X X^T / count for the inputs of each layer, one per group, by name of the layer.

    The model runs in evaluation mode without gradients; hooks and training flags are restored
    whatever happens.
    """
    if isinstance(calibration, torch.Tensor | Mapping):
        raise InvalidTypeError(
            f"`calibration` is a single {type(calibration).__name__}; expected an iterable of "
            "model inputs. Pass a list that contains it."
        )
    gathered = {name: _Moment(layer) for name, layer in layers.items()}
    with _hooked(model, layers, gathered), torch.no_grad():
        if isinstance(calibration, Iterable) and not isinstance(calibration, str | bytes):
            _run_batches(model, calibration)
        elif callable(calibration):
            calibration(model)
        else:
            raise InvalidTypeError(
                f"`calibration` is a {type(calibration).__name__}; expected an iterable of model "
                "inputs, or a function that takes the model and runs it."
            )
    unreached = [name for name, moment in gathered.items() if moment.count == 0]
    if unreached:
        raise InvalidValueError(
            f"`calibration` never reaches {len(unreached)} of {len(gathered)} layers: "
            f"{listed(map(repr, unreached), most=5)}. Their inputs are not known: pass batches "
            "that use them, or leave these layers out with `exclude`."
        )
    return {name: moment.result(name) for name, moment in gathered.items()}


def _run_batches(model: nn.Module, batches: Iterable[Any]) -> None:
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    count = 0
    for count, batch in enumerate(batches, 1):
        moved = _moved(batch, device)
        try:
            if isinstance(moved, Mapping):
                model(**moved)
            elif isinstance(moved, list | tuple):
                model(*moved)
            else:
                model(moved)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
            kind = InvalidTypeError if isinstance(error, TypeError) else InvalidValueError
            raise kind(
                f"`calibration` batch {count - 1} is a {_shape_of(batch)}, and the model cannot be "
                f"called with it: {error}. A tuple is passed as positional arguments and a mapping "
                "as keyword arguments. From pairs (inputs, labels) take only the inputs: "
                "(inputs for inputs, _ in loader)."
            ) from error
    if count == 0:
        raise InvalidValueError(
            "`calibration` is empty; expected at least one batch. An iterator can be used only "
            "once: pass a list or a DataLoader."
        )


def _moved(value: Any, device: torch.device) -> Any:
    """Return a batch as tensors on the model's device."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        moved = [_moved(item, device) for item in value]
        return tuple(moved) if isinstance(value, tuple) else moved
    return value


def _shape_of(batch: Any) -> str:
    kind = type(batch).__name__
    if isinstance(batch, torch.Tensor):
        return f"{kind} of shape {tuple(batch.shape)}"
    return f"{kind} of {len(batch)}" if isinstance(batch, list | tuple | Mapping) else kind


@contextmanager
def _hooked(
    model: nn.Module, layers: Mapping[str, nn.Module], gathered: Mapping[str, "_Moment"]
) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(gathered[name].hook, with_kwargs=True))
        model.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode


class _Moment:
    """The running sum of x x^T over the inputs x of one layer."""

    def __init__(self, layer: Any) -> None:
        self.groups = layer.groups if isinstance(layer, nn.modules.conv._ConvNd) else 1
        self.sums: list[torch.Tensor] = []
        self.count = 0

    def hook(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = args[0] if args else next(iter(kwargs.values()))
        if isinstance(layer, nn.modules.conv._ConvNd):
            for patches in _patches(layer, inputs):  # (count, groups, columns)
                self._add(patches)
        else:
            # nn.TransformerEncoder makes nested tensors, which have no padding.
            for part in inputs.unbind() if inputs.is_nested else [inputs]:
                self._add(part.reshape(-1, 1, part.shape[-1]))

    def _add(self, rows: torch.Tensor) -> None:
        count, groups, columns = rows.shape
        step = max(1, _BLOCK_BYTES // (8 * columns * groups))
        for start in range(0, count, step):
            block = rows[start : start + step].detach()
            block = (block.cpu() if block.device.type == "mps" else block).double()
            if not self.sums:
                self.sums = [block.new_zeros(columns, columns) for _ in range(groups)]
            for group, total in enumerate(self.sums):
                part = block[:, group].to(total.device)
                total.addmm_(part.T, part)
        self.count += count

    def result(self, name: str) -> list[NDArray[np.float64]]:
        """Return the mean of x x^T for each group."""
        means = [(total / self.count).cpu().numpy() for total in self.sums]
        if not all(np.isfinite(mean).all() for mean in means):
            raise InvalidValueError(
                f"`calibration` yields nan or inf at the inputs of {name!r}; expected finite "
                "numbers. Check the batches and the model's dtype."
            )
        if not all(mean.any() for mean in means):
            raise InvalidValueError(
                f"`calibration` yields only zeros at the inputs of {name!r}, which say nothing "
                "about its weight. Pass other batches, or leave it out with `exclude`."
            )
        return means


def _patches(layer: Any, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the patches of each sample in a convolution: (count, groups, in/groups * kernel)."""
    dims = len(layer.kernel_size)
    if inputs.ndim == dims + 1:
        inputs = inputs[None]
    pads = layer._reversed_padding_repeated_twice
    if isinstance(pads, list | tuple) and any(pads):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs = nn.functional.pad(inputs, tuple(pads), mode=mode)
    for sample in inputs:
        windows = sample
        for axis in range(dims):
            size = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
            windows = windows.unfold(axis + 1, size, layer.stride[axis])
            windows = windows[..., :: layer.dilation[axis]]
        # (channels, positions..., kernel...) -> (positions, groups, channels/groups * kernel)
        count = int(np.prod(windows.shape[1 : dims + 1]))
        windows = windows.movedim(0, dims).reshape(count, layer.groups, -1)
        yield windows
