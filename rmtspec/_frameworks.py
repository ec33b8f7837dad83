"""What only a framework can do, looked up by name: nothing above is imported, nor the framework."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

#: Module and function that read the tensors of a file with this suffix, and what cannot be read.
_READERS = dict.fromkeys(
    (".pt", ".pth", ".bin", ".ckpt"), ("rmtspec.adapters.torch._storage.pickled", "pickled_tensors")
)
#: Module of the frameworks' devices.
_DEVICES = "rmtspec.adapters.torch._pruning.eigensolver"

#: Suffixes of files that only a framework can read.
SUFFIXES = tuple(_READERS)


def reader_of(suffix: str) -> Callable[[Path], tuple[list[Any], list[dict[str, str]]]]:
    """Return what lists the tensors of a file, and "name" and "reason" of those it cannot read.

    Raises
    ------
    MissingDependencyError
        The framework is not installed.
    """
    module, function = _READERS[suffix]
    reader: Callable[[Path], tuple[list[Any], list[dict[str, str]]]]
    reader = getattr(import_module(module), function)
    return reader


def eigensolver_on(device: Any) -> Any:
    """Return an eigensolver, as `rmtspec.spectrum` takes it, that computes on a device.

    Raises
    ------
    InvalidValueError
        The device is not there, or lacks float64.
    MissingDependencyError
        The framework is not installed.
    """
    return import_module(_DEVICES).DeviceEigensolver(device)


def usable_device(device: Any) -> str:
    """Return the device's full name if `eigensolver_on` can use it, or raise what that raises."""
    return str(import_module(_DEVICES).usable_device(device))
