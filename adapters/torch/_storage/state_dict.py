"""Reading a state dict from a file, without ever running code that is pickled in it."""

import contextlib
import functools
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmtspec.adapters.torch._storage.checksums import check_file
from rmtspec.adapters.torch._storage.torchscript import Inert, is_torchscript, torchscript_tensors
from rmtspec.adapters.torch._storage.training import state_dict_in
from rmtspec.adapting import SUFFIXES, PathLike, looks_like, stored_tensors, suffix_of
from rmtspec.errors import FileError, InvalidOptionTypeError


def read_state_dict(path: PathLike, *, key: str | None = None) -> dict[str, torch.Tensor]:
    """Read a state dict from a file of weights or a training checkpoint, without running code.

    Pickled files are always read with ``weights_only=True``, and mapped into memory. Of a training
    checkpoint the state dict is returned, without what is not a tensor in it; of a TorchScript
    archive the parameters and buffers of all modules.

    Parameters
    ----------
    path : path
        A .pt, .pth, .pth.tar, .bin, .ckpt, .jit or .safetensors file.
    key : str, optional
        Of a training checkpoint: where the state dict is ("model", "ema.state_dict"; "" for the
        top). By default "state_dict", or else the only key that holds matrices.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    FileError
        The file does not exist, is damaged or of another format, would run code, does not hold
        a state dict, or holds several and `key` does not say which.

    Examples
    --------
    >>> import tempfile, torch
    >>> from rmtspec.adapters import torch as rt
    >>> with tempfile.TemporaryDirectory() as place:
    ...     state = torch.nn.Linear(3, 2).state_dict()
    ...     torch.save({"epoch": 7, "model": state}, f"{place}/last.pt")
    ...     {name: tuple(t.shape) for name, t in rt.read_state_dict(f"{place}/last.pt").items()}
    {'weight': (2, 3), 'bias': (2,)}
    """
    content = stored_state(path, key).entries
    if suffix_of(Path(path)) != ".safetensors":
        stamp = Path(path).stat()
        check_file(str(path), stamp.st_size, stamp.st_mtime_ns)
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True, slots=True)
class StoredState:
    """What a file holds under a key: `entries`, tensors or not; and the keys beside it."""

    key: str
    entries: dict[str, Any]
    others: tuple[str, ...]


def stored_state(path: PathLike, key: str | None = None) -> StoredState:
    """Return the state dict of a file, and what else is in the file; raise as `read_state_dict`."""
    file = Path(path)
    if key is not None and not isinstance(key, str):
        raise InvalidOptionTypeError(f"`key` is {key!r}", "the text of a key, dots between levels")
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise FileError(f"{file} {state}; expected a file of weights. Check the path.")
    suffix = suffix_of(file)
    if suffix == ".safetensors":
        stored_tensors(file)  # its messages about a bad header are better
        from safetensors.torch import load_file

        content: Any = load_file(file)
    elif suffix in SUFFIXES:
        content = _torchscript(file) if is_torchscript(file) else _unpickled(file)
    else:
        raise FileError(
            f"{file} has the suffix {file.suffix!r}; expected .safetensors or "
            f"{', '.join(SUFFIXES)}."
        )
    return StoredState(*state_dict_in(content, file, key))


#: Matches the start of CTranslate2's model.bin: a version, and the name of a specification.
_CTRANSLATE2 = re.compile(rb"[\x01-\x20]\0\0\0.\0[A-Za-z0-9]{3,40}(Spec|Model)\0", re.DOTALL)
#: What reading damaged bytes as a pickle may raise.
_DAMAGES = (
    RuntimeError, EOFError, ValueError, OSError, LookupError, AttributeError, TypeError,
    AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip


#: Classes and functions of usual notes beside the weights (options, a best score): never called,
#: something inert stands for each.
_NOTES = (
    "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict", "types.SimpleNamespace",
)  # fmt: skip


@functools.cache
def _stand_ins() -> list[Any]:
    """Return an inert class for each of the notes, known to torch under the name of the note."""
    made = []
    for full in _NOTES:
        module, _, name = full.rpartition(".")
        made.append(type(name, (Inert,), {"__module__": module, "__qualname__": name}))
    return made


def _torchscript(file: Path) -> dict[str, Any]:
    try:
        return torchscript_tensors(file)
    except (*_DAMAGES, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error) as error:
        line = (str(error).splitlines() or ["it ends too early"])[0]
        raise FileError(
            f"{file} is a TorchScript archive that cannot be read ({line}). Copy it again, or save "
            "torch.jit.load(path).state_dict() with safetensors.torch.save_file."
        ) from error


def _unpickled(file: Path) -> Any:
    with file.open("rb") as stream:
        start = stream.read(64)
    if _CTRANSLATE2.match(start):
        raise FileError(
            f"{file} is a model of CTranslate2, whose layout is its own: its weights are "
            "converted, and mostly quantised. Name the model that it was converted from."
        )
    # Before 2.5 torch has no such list for one call; a file with such notes is refused then.
    allowed = getattr(torch.serialization, "safe_globals", contextlib.nullcontext)
    try:
        with warnings.catch_warnings(), allowed(_stand_ins()):
            # Of its protocols and storages: what matters for the weights is checked afterwards.
            warnings.simplefilter("ignore")
            try:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(file, map_location="cpu", weights_only=True)  # the old format
    except pickle.UnpicklingError as error:
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
