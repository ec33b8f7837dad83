"""One file with the state of a training: written in one step, read without running code."""

import contextlib
import io
import os
import pickle
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import torch

import rmtspec
from rmtspec.adapters.torch._storage.checksums import check_archive
from rmtspec.adapting import PathLike, cause, finished_file, open_regular
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError

#: Raised for an object that cannot be written, or cannot be read without running code.
_PICKLE_ERRORS = (pickle.PickleError, TypeError, AttributeError)
#: Identifies a file of ours.
FORMAT = "rmtspec training"
SCHEMA = 1


def write_training(path: PathLike, parts: dict[str, Any]) -> None:
    """Write the states of all parts and torch's random state; an old file is replaced at once."""
    states = {name: _plain(part.state_dict()) for name, part in parts.items()}
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    content = {
        "format": FORMAT, "schema": SCHEMA, "rmtspec": rmtspec.__version__,
        "states": states, "random": random,
    }  # fmt: skip
    with finished_file(path) as temporary:
        try:
            with _with_checksums():
                torch.save(content, temporary)
            # Fail now rather than when the training is resumed; this reads no tensors.
            torch.load(temporary, weights_only=True, mmap=True, map_location="cpu")
        except RuntimeError as error:  # from the writer behind torch.save: a full disk
            raise OSError(str(error)) from error
        except _PICKLE_ERRORS:
            _refuse_objects(states)
            raise
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())


@contextlib.contextmanager
def _with_checksums() -> Iterator[None]:
    """Have torch write checksums, whatever the user has set for other files."""
    settings: Any = torch.serialization
    if not hasattr(settings, "set_crc32_options"):  # before 2.6 it always does
        yield
        return
    before = settings.get_crc32_options()
    settings.set_crc32_options(True)
    try:
        yield
    finally:
        settings.set_crc32_options(before)


def read_training(path: PathLike, parts: dict[str, Any]) -> None:
    """Restore the parts; the pruner comes first, since it makes the layers that others need."""
    content = _content(path)
    states = content["states"]
    if states.keys() != parts.keys():
        raise InvalidValueError(
            f"{path} holds the states of {', '.join(states)}; you passed {', '.join(parts)}. "
            "Expected the names that were saved."
        )
    for name, part in parts.items():
        part.load_state_dict(states[name])
    torch.set_rng_state(content["random"]["cpu"].cpu())
    if "cuda" in content["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["random"]["cuda"].cpu())


def _plain(value: Any) -> Any:
    """Return a state with NumPy scalars, which functions give to schedulers, as Python numbers."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: _plain(held) for key, held in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def _refuse_objects(states: dict[str, Any]) -> None:
    """Raise for the state that cannot be read without running code."""
    for name, state in states.items():
        stream = io.BytesIO()
        try:
            torch.save(state, stream)
            stream.seek(0)
            torch.load(stream, weights_only=True)
        except _PICKLE_ERRORS as error:
            asked = re.search(r"GLOBAL (\S+)", str(error))
            what = f" ({asked[1]})" if asked else ""
            raise InvalidTypeError(
                f"The state of {name!r} holds an object{what}; expected numbers, text, tensors, "
                "and lists and dicts of these, which can be read without running code. Leave it "
                "out, or give it a state_dict of these."
            ) from None


def _content(path: PathLike) -> dict[str, Any]:
    if not isinstance(path, str | os.PathLike):
        raise InvalidTypeError(f"The path is {path!r}; expected text or a pathlib.Path.")
    try:
        with open_regular(path) as stream:
            content: Any = _loaded(stream, path)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read: {cause(error)}. Check the path.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileError(f"{path} is not a file that RMTPruner.save wrote.")
    if content["schema"] > SCHEMA:
        raise FileError(
            f"{path} has schema {content['schema']}; this version of rmtspec reads up to {SCHEMA}. "
            "Update rmtspec: pip install --upgrade rmtspec."
        )
    return content


def _loaded(stream: BinaryIO, path: PathLike) -> Any:
    try:
        check_archive(stream, path)
        return torch.load(stream, weights_only=True, map_location="cpu")
    except Exception as error:  # on a file of another kind the reader may raise anything
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower():
            # In place of torch's advice to run what is in the file.
            why = "it holds other objects than numbers, text and tensors, or is damaged; "
            why += "nothing was run"
        raise FileError(f"{path} is not a file that RMTPruner.save wrote: {why}.") from error
