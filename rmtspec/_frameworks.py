"""What only a framework can do, looked up by name so that no framework is imported here."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command starts without NumPy
    from numpy.typing import NDArray


#: Module and function that read the tensors of a file, by its suffix.
_READERS = dict.fromkeys(
    (".pt", ".pth", ".bin", ".ckpt", ".jit"),
    ("rmtspec.adapters.torch._storage.pickled", "pickled_tensors"),
)
_DEVICES = "rmtspec.adapters.torch._pruning.eigensolver"
#: Adapters that analyse, prune and merge a model's own file, by its suffix.
_ADAPTERS = {".onnx": "rmtspec.adapters.onnx"}
#: Suffixes of files that only a framework can read.
SUFFIXES = tuple(_READERS)


def suffix_of(file: Path) -> str:
    """Return the suffix that tells a file's format, in lower case: ".pth" for "best.pth.tar"."""
    last, before = file.suffix.lower(), Path(file.stem).suffix.lower()
    return before if last == ".tar" and before in SUFFIXES else last


def reader_of(suffix: str) -> Callable[..., tuple[list[Any], list[dict[str, str]]]]:
    """Return the function that lists a file's tensors, and why the others cannot be read.

    It takes the path and, if it is known, the key of the state dict in the file.

    Raises MissingDependencyError where the framework is not installed.
    """
    module, function = _READERS[suffix]
    reader: Callable[..., tuple[list[Any], list[dict[str, str]]]]
    reader = getattr(import_module(module), function)
    return reader


def array_of_tensor(tensor: Any, name: str) -> "NDArray[Any]":
    """Return the values of a torch tensor that the caller knows as `name`.

    Raises InvalidTypeError for one that has no readable values (sparse, quantised, meta).
    """
    array: NDArray[Any]
    array = import_module("rmtspec.adapters.torch._weights.arrays").array_of(tensor, name)
    return array


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
