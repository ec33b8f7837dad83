"""One file with the state of a training: written in one step, read without running any code."""

import pickle
import zipfile
from typing import Any

import torch

import rmtspec
from rmtspec._files import PathLike, finished_file
from rmtspec.errors import FileError, InvalidValueError

#: Tells a file of ours from another one.
FORMAT = "rmtspec training"
SCHEMA = 1


def write_training(path: PathLike, parts: dict[str, Any]) -> None:
    """Write the states of all parts, and torch's random state, over what is there, in one step."""
    states = {name: part.state_dict() for name, part in parts.items()}
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
        except RuntimeError as error:  # of the writer behind torch.save: a full disk
            raise OSError(str(error)) from error


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


def _content(path: PathLike) -> dict[str, Any]:
    try:
        content: Any = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise FileError(f"{path} cannot be read: {cause}. Check the path.") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise FileError(
            f"{path} is no file that RMTPruner.save wrote: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileError(f"{path} is no file that RMTPruner.save wrote.")
    if content["schema"] > SCHEMA:
        raise FileError(
            f"{path} has schema {content['schema']}; this version of rmtspec reads up to {SCHEMA}. "
            "Update rmtspec: pip install --upgrade rmtspec."
        )
    found: dict[str, Any] = content
    return found
