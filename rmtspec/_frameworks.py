"""What only a framework can do, looked up by name so that no framework is imported here."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

#: Module and function that read the tensors of a file, by its suffix.
_READERS = dict.fromkeys(
    (".pt", ".pth", ".bin", ".ckpt"), ("rmtspec.adapters.torch._storage.pickled", "pickled_tensors")
)
_DEVICES = "rmtspec.adapters.torch._pruning.eigensolver"
#: Adapters that analyse, prune and merge a model's own file, by its suffix.
_ADAPTERS = {".onnx": "rmtspec.adapters.onnx"}
#: Suffixes of files that only a framework can read.
SUFFIXES = tuple(_READERS)


def reader_of(suffix: str) -> Callable[[Path], tuple[list[Any], list[dict[str, str]]]]:
    """Return the function that lists a file's tensors, and why the others cannot be read.

    Raises MissingDependencyError where the framework is not installed.
    """
    module, function = _READERS[suffix]
    reader: Callable[[Path], tuple[list[Any], list[dict[str, str]]]]
    reader = getattr(import_module(module), function)
    return reader


def adapter_of(path: Path) -> Any | None:
    """Return the adapter for models in files of this suffix; None if there is none.

    Raises MissingDependencyError where the framework is not installed.
    """
    module = _ADAPTERS.get(path.suffix.lower())
    return None if module is None else import_module(module)


def calibration_on(folder: Path, text: Path, **options: Any) -> Any:
    """Return the calibration of the language model in a folder on a text file.

    With the option `work` a run that was killed can be resumed.

    Raises MissingDependencyError where the framework is not installed.
    """
    module = import_module("rmtspec.adapters.torch._calibration.folder")
    return module.calibrate_folder(folder, text, **options)


def eigensolver_on(device: Any) -> Any:
    """Return an eigensolver for `rmtspec.spectrum` that computes on a device.

    Raises InvalidValueError where the device does not exist or lacks float64, and
    MissingDependencyError where the framework is not installed.
    """
    return import_module(_DEVICES).DeviceEigensolver(device)


def usable_device(device: Any) -> str:
    """Return the full name of a device that `eigensolver_on` can use; raise as that does."""
    return str(import_module(_DEVICES).usable_device(device))
