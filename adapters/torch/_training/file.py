"""One file with the state of a training: written in one step, read without running any code."""

import io
import os
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

import rmtspec
from rmtspec.adapting import PathLike, cause, finished_file
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError

#: Of an object that cannot be written, or not be read without running code.
_PICKLE_ERRORS = (pickle.PickleError, TypeError, AttributeError)
#: Tells a file of ours from another one.
FORMAT = "rmtspec training"
SCHEMA = 1


def write_training(path: PathLike, parts: dict[str, Any]) -> None:
    """Write the states of all parts, and torch's random state, over what is there, in one step."""
    states = {name: _plain(part.state_dict()) for name, part in parts.items()}
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "rmtspec": rmtspec.__version__,
        "states": states,
        "random": random,
    }
    with finished_file(path) as temporary:
        try:
            torch.save(content, temporary)
            # Now, not when the training is to be resumed; no tensors are read by that.
            torch.load(temporary, weights_only=True, mmap=True, map_location="cpu")
        except RuntimeError as error:  # of the writer behind torch.save: a full disk
            raise OSError(str(error)) from error
        except _PICKLE_ERRORS:
            _refuse_objects(states)
            raise
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())


def read_training(path: PathLike, parts: dict[str, Any]) -> None:
    """Give the parts their states back, the pruner first: it makes the layers of the others."""
    content = _content(path)
    states = content["states"]
    if states.keys() != parts.keys():
        raise InvalidValueError(
            f"{path} holds the states of {', '.join(states)}; given are {', '.join(parts)}. "
            "Expected the same names as were saved."
        )
    for name, part in parts.items():
        part.load_state_dict(states[name])
    torch.set_rng_state(content["random"]["cpu"].cpu())
    if "cuda" in content["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["random"]["cuda"].cpu())


def _plain(value: Any) -> Any:
    """Return a state with NumPy's numbers, as schedulers get them from functions, as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: _plain(held) for key, held in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def _refuse_objects(states: dict[str, Any]) -> None:
    """Raise for the state that holds what cannot be read without running code."""
    for name, state in states.items():
        stream = io.BytesIO()
        try:
            torch.save(state, stream)
            stream.seek(0)
            torch.load(stream, weights_only=True)
        except _PICKLE_ERRORS as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            what = f" ({found[1]})" if found else ""
            raise InvalidTypeError(
                f"The state of {name!r} holds an object{what}; expected numbers, text, tensors, "
                "and lists and dicts of these, which a file can be read for without running code. "
                "Leave it out, or give it a state_dict of these."
            ) from None


def _content(path: PathLike) -> dict[str, Any]:
    if not isinstance(path, str | os.PathLike):
        raise InvalidTypeError(f"The path is {path!r}; expected text or a pathlib.Path.")
    try:
        with Path(path).open("rb") as stream:
            content = _loaded(stream, path)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read: {cause(error)}. Check the path.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileError(f"{path} is no file that RMTPruner.save wrote.")
    if content["schema"] > SCHEMA:
        raise FileError(
            f"{path} has schema {content['schema']}; this version of rmtspec reads up to {SCHEMA}. "
            "Update rmtspec: pip install --upgrade rmtspec."
        )
    found: dict[str, Any] = content
    return found


def _loaded(stream: BinaryIO, path: PathLike) -> Any:
    try:
        return torch.load(stream, weights_only=True, map_location="cpu")
    except Exception as error:  # a file of another kind makes the reader trip over anything
        raise FileError(f"{path} is no file that RMTPruner.save wrote: {_words(error)}.") from error


def _words(error: Exception) -> str:
    """Return why a file cannot be read, without torch's advice to run what is in it."""
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower():
        return "it holds objects beside numbers, text and tensors, or is damaged; nothing was run"
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
