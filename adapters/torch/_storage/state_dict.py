"""Reading a state dict from a file, without ever running what is pickled in it."""

import re
import struct
import warnings
from pathlib import Path
from typing import Any

import torch

from rmtspec.adapting import SUFFIXES, PathLike, looks_like, stored_tensors
from rmtspec.errors import FileError


def read_state_dict(path: PathLike) -> dict[str, torch.Tensor]:
    """Read a state dict from a .pt, .pth, .bin, .ckpt or .safetensors file, without running code.

    Pickled files are read with ``weights_only=True``, never otherwise, and mapped into memory.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    FileError
        No such file, damaged, of another format, one that would run code, or no state dict.

    Examples
    --------
    >>> import tempfile, torch
    >>> from rmtspec.adapters import torch as rt
    >>> with tempfile.TemporaryDirectory() as place:
    ...     torch.save(torch.nn.Linear(3, 2).state_dict(), f"{place}/layer.pt")
    ...     {name: tuple(t.shape) for name, t in rt.read_state_dict(f"{place}/layer.pt").items()}
    {'weight': (2, 3), 'bias': (2,)}
    """
    file = Path(path)
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise FileError(f"{file} {state}; expected a file of weights. Check the path.")
    if file.suffix.lower() == ".safetensors":
        stored_tensors(file)  # what is wrong with the header is said better there
        from safetensors.torch import load_file

        found: Any = load_file(file)
    elif file.suffix.lower() in SUFFIXES:
        found = _unpickled(file)
    else:
        raise FileError(
            f"{file} has the suffix {file.suffix!r}; expected .safetensors or "
            f"{', '.join(SUFFIXES)}."
        )
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]  # as training loops save it
    if not isinstance(found, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items()
    ):
        raise FileError(
            f"{file} holds a {type(found).__name__}, not a state dict of tensors. Save "
            "model.state_dict() in it."
        )
    return dict(found)


#: What reading damaged bytes as a pickle may raise.
_DAMAGES = (
    RuntimeError,
    EOFError,
    ValueError,
    OSError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    struct.error,
)


def _unpickled(file: Path) -> Any:
    import pickle

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # and goes on to read it
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # where quantised
            try:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(file, map_location="cpu", weights_only=True)  # the old format
    except pickle.UnpicklingError as error:
        with file.open("rb") as stream:
            start = stream.read(8)
        if start.startswith(b"version "):
            raise FileError(f"{file} is no file of torch.save{looks_like(start)}") from None
        # The rest of the message is advice to run it, in colours.
        asked = re.search(r"Unsupported \w+:? (?:GLOBAL )?(\S+)", str(error))
        why = f"it asks for {asked[1]}" if asked else "it is no plain pickle of tensors"
        raise FileError(
            f"{file} cannot be read without running code that is pickled in it, which is never "
            f"done here ({why}). Where you trust it, load it yourself and save "
            "model.state_dict() with safetensors.torch.save_file."
        ) from None
    except _DAMAGES as error:
        raise FileError(
            f"{file} is damaged or no file of torch.save "
            f"({_first_line(error)}). Copy or save it again."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["it ends too early"])[0]
