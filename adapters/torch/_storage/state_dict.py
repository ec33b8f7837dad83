"""Reading a state dict from a file, without ever running code that is pickled in it."""

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

    Pickled files are always read with ``weights_only=True``, and mapped into memory.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    FileError
        The file does not exist, is damaged or of another format, would run code, or does not hold
        a state dict.

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
        stored_tensors(file)  # its messages about a bad header are better
        from safetensors.torch import load_file

        content: Any = load_file(file)
    elif file.suffix.lower() in SUFFIXES:
        content = _unpickled(file)
    else:
        raise FileError(
            f"{file} has the suffix {file.suffix!r}; expected .safetensors or "
            f"{', '.join(SUFFIXES)}."
        )
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # as training loops save it
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items()
    ):
        raise FileError(
            f"{file} holds a {type(content).__name__}, not a state dict of tensors. Save "
            "model.state_dict() in it."
        )
    return dict(content)


#: What reading damaged bytes as a pickle may raise.
_DAMAGES = (
    RuntimeError, EOFError, ValueError, OSError, LookupError, AttributeError, TypeError,
    AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip


def _unpickled(file: Path) -> Any:
    import pickle

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # it is read anyway
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # if quantised
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
            raise FileError(f"{file} is not a file of torch.save{looks_like(start)}") from None
        # The rest of the message is advice to run the code, in colour.
        asked = re.search(r"Unsupported \w+:? (?:GLOBAL )?(\S+)", str(error))
        why = f"it asks for {asked[1]}" if asked else "it is not a plain pickle of tensors"
        raise FileError(
            f"{file} cannot be read without running code that is pickled in it, which is never "
            f"done here ({why}). If you trust it, load it yourself and save "
            "model.state_dict() with safetensors.torch.save_file."
        ) from None
    except _DAMAGES as error:
        line = (str(error).splitlines() or ["it ends too early"])[0]
        raise FileError(
            f"{file} is damaged or not a file of torch.save ({line}). Copy or save it again."
        ) from error
