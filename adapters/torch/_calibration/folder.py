"""Calibration of a language model in a folder of transformers, on a text."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rmtspec.adapters.torch._calibration.calibrate import calibrate
from rmtspec.adapters.torch._calibration.options import CalibrationOptions
from rmtspec.adapters.torch._calibration.skeleton import NotInBlocksError, Skeleton
from rmtspec.adapters.torch._calibration.streaming import Journal, Streamed, Work
from rmtspec.adapting import Calibration, PathLike, Progress, checks, open_regular
from rmtspec.errors import FileError, InvalidValueError, MissingDependencyError

#: The moments of a model that was in memory as a whole.
_WHOLE = "whole.safetensors"


def calibrate_folder(
    folder: PathLike,
    text: PathLike,
    *,
    sequences: int = 32,
    length: int = 512,
    work: Work | None = None,
    stored: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Calibration:
    """Calibrate the language model in a folder of transformers on a text file.

    The text is cut into sequences of `length` tokens, and `sequences` of them, spread evenly over
    the text, are run, in the dtype that the model is stored in. One block of the model after the
    other is in memory, where the structure of the model allows it; otherwise the whole model is.

    Parameters
    ----------
    folder : path
        With config, weights and tokenizer.
    text : path
        A file in UTF-8.
    sequences, length : int
        How many sequences, at most, of how many tokens.
    work : Work, optional
        Where the work is kept, so that it can be resumed. By default in a temporary folder, whose
        space is free once the result is.
    stored : bool
        Whether the model is to be pruned in its files: raise at once if that is not possible.
    progress : callable, optional
        As for `calibrate`.
    **options
        Of `calibrate`, but for those about layers, loss and memory.

    Returns
    -------
    Calibration

    Raises
    ------
    FileError
        The folder or the text cannot be read, or the disk has too little space.
    InvalidValueError
        The text has less than one sequence, or `stored` is true and files hold layers transposed.
    MissingDependencyError
        transformers is not installed.
    """
    checks.integer(sequences, "sequences", 1)
    checks.integer(length, "length", 2)
    asked = CalibrationOptions(progress=progress, **options)
    batches = _batches(folder, text, sequences, length)
    if work is not None:
        return _calibrated(folder, batches, asked, work=work, stored=stored)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        once = _Once(Path(place))
        return _calibrated(folder, batches, asked, work=once, stored=stored)


class _Unread:
    """A journal that nobody will read."""

    entries: Sequence[Mapping[str, Any]] = ()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Do nothing."""


class _Once(NamedTuple):
    """Work that cannot be resumed, and that nobody is told about."""

    place: Path
    journal: Journal = _Unread()
    say: Callable[[str], object] = str


def _calibrated(
    folder: PathLike,
    batches: list[dict[str, torch.Tensor]],
    options: CalibrationOptions,
    *,
    work: Work,
    stored: bool,
) -> Calibration:
    """Return the calibration, whose moments are in files of the work."""
    whole = work.place / _WHOLE
    if any("whole" in entry for entry in work.journal.entries):
        return Calibration.load(whole)
    try:
        skeleton: Skeleton = _from(folder, Skeleton)
        if stored:
            _check_stored(folder, skeleton.model)
        streamed = Streamed(skeleton, batches, options, work)
    except NotInBlocksError as reason:
        work.say(f"The whole model is in memory while it is calibrated: {reason}.")
    else:
        work.say(
            f"Calibrating block by block: one of {len(skeleton.blocks)} is in memory at a time."
        )
        return streamed.run()
    from transformers import AutoModelForCausalLM

    model = _from(folder, lambda path: AutoModelForCausalLM.from_pretrained(path, dtype="auto"))
    if stored:
        _check_stored(folder, model)
    names = (
        "objective", "labels", "output_moment", "gradient_tokens", "holdout", "clip", "rng",
        "progress",
    )  # fmt: skip
    stats = calibrate(model, batches, **{name: getattr(options, name) for name in names})
    del model
    stats.save(whole)
    work.journal.add({"whole": True})
    return Calibration.load(whole)


def _check_stored(folder: PathLike, model: torch.nn.Module) -> None:
    """Raise if the files of a model hold layers transposed."""
    names = (n for n, module in model.named_modules() if type(module).__name__ == "Conv1D")
    turned = next(names, None)
    if turned is not None:
        raise InvalidValueError(
            f"{folder} holds {turned!r} transposed (transformers' Conv1D), which calibration in a "
            "file cannot take yet. Prune the model in memory."
        )


def _batches(
    folder: PathLike, text: PathLike, sequences: int, length: int
) -> list[dict[str, torch.Tensor]]:
    """Return sequences of tokens, spread evenly over the text."""
    words = _read(Path(text))
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingDependencyError(
            "Calibrating on a text needs transformers, which is not installed: "
            'pip install "rmtspec[torch,transformers]". Or calibrate in Python, and pass the file '
            "that Calibration.save wrote."
        ) from error
    tokenizer: Any = _from(folder, AutoTokenizer.from_pretrained)
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
    return [{"input_ids": piece[None]} for piece in chosen]


def _from(folder: PathLike, load: Callable[[Any], Any]) -> Any:
    """Return what transformers loads from a folder."""
    try:
        return load(folder)
    except FileError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(
            f"{folder} is no language model that transformers can load: {first} Expected config, "
            "weights and tokenizer."
        ) from error


def _read(text: Path) -> str:
    try:
        with open_regular(text) as stream:
            return stream.read().decode("utf-8")
    except FileError:
        raise
    except UnicodeDecodeError as error:
        raise FileError(f"{text} is no text in UTF-8: {error}. Convert it.") from error
    except OSError as error:
        raise FileError(f"{text} cannot be read: {error.strerror or error}.") from error
