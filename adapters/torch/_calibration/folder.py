"""Calibration of a language model in a folder of transformers, on a text."""

from pathlib import Path
from typing import Any

import torch

from rmtspec.adapters.torch._calibration.calibrate import calibrate
from rmtspec.adapting import Calibration, PathLike, Progress, checks
from rmtspec.errors import FileError, InvalidValueError, MissingDependencyError


def calibrate_folder(
    folder: PathLike,
    text: PathLike,
    *,
    sequences: int = 32,
    length: int = 512,
    progress: Progress | None = None,
    **options: Any,
) -> Calibration:
    """Calibrate the language model in a folder of transformers on a text file.

    The model is loaded whole, in the dtype that it is stored in. The text is cut into sequences of
    `length` tokens, and `sequences` of them, spread evenly over the text, are run.

    Parameters
    ----------
    folder : path
        With config, weights and tokenizer.
    text : path
        A file in UTF-8.
    sequences, length : int
        How many sequences, at most, of how many tokens.
    progress : callable, optional
        As for `calibrate`.
    **options
        Of `calibrate`.

    Returns
    -------
    Calibration

    Raises
    ------
    FileError
        The folder or the text cannot be read.
    InvalidValueError
        The text has less than one sequence.
    MissingDependencyError
        transformers is not installed.
    """
    checks.integer(sequences, "sequences", 1)
    checks.integer(length, "length", 2)
    words = _read(Path(text))
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingDependencyError(
            "Calibrating on a text needs transformers, which is not installed: "
            'pip install "rmtspec[torch,transformers]". Or calibrate in Python, and pass the file '
            "that Calibration.save wrote."
        ) from error
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(
            f"{folder} is no language model that transformers can load: {first} Expected config, "
            "weights and tokenizer."
        ) from error
    ids = torch.tensor(tokenizer(words, verbose=False)["input_ids"])
    pieces = list(torch.split(ids, length))
    if pieces and len(pieces[-1]) < length:
        pieces.pop()
    if not pieces:
        raise InvalidValueError(
            f"{text} has {len(ids)} tokens; expected at least one sequence of {length}. Take a "
            "longer text, a few thousand words at least."
        )
    count = min(sequences, len(pieces))
    chosen = [pieces[index * len(pieces) // count] for index in range(count)]
    batches = [{"input_ids": piece[None]} for piece in chosen]
    return calibrate(model, batches, progress=progress, **options)


def _read(text: Path) -> str:
    try:
        return text.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{text} is no text in UTF-8: {error}. Convert it.") from error
    except OSError as error:
        raise FileError(f"{text} cannot be read: {error.strerror or error}.") from error
