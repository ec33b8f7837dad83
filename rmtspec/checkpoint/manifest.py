"""The manifest beside the weights of a split model: what was split, and what the files must be."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rmtspec import _records
from rmtspec._files import PathLike, cause, finished_folder, read_json, write_atomically
from rmtspec.checkpoint.safetensors_reader import stored_tensors
from rmtspec.checkpoint.safetensors_writer import Outgoing, write_safetensors
from rmtspec.checkpoint.stored import MappedTensor
from rmtspec.errors import FileError

MANIFEST = "rmtspec.json"
WEIGHTS = "rmtspec.safetensors"
SCHEMA = 1
_FORMAT = "rmtspec split model"
_AGAIN = "Copy the folder again, or save the model again."
_MADE_BY = "a folder written by the torch adapter's `save` or by `rmtspec prune`"


@dataclass(frozen=True, slots=True)
class SplitEntry:
    """A layer that was split: its weight, as the original layer stores it, is outer x inner.

    Attributes
    ----------
    name : str
        Fully qualified name of the layer; "" for a model that is one layer.
    kind : str
        "linear", "conv1d", "conv2d", "conv3d", "embedding", "transposed linear" (transformers'
        Conv1D), or "tensor": split by the command from a file, which does not tell the layer's
        type.
    rank : int
        Of the product.
    shape : tuple of int
        Of the dense weight as the original layer stores it.
    original : str
        The layer's class, "torch.nn.modules.linear.Linear"; empty where it is not known.
    groups : int
        Of a convolution.
    """

    name: str
    kind: str
    rank: int
    shape: tuple[int, ...]
    original: str = ""
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `rmtspec.json` says of the folder it is in.

    Attributes
    ----------
    splits : tuple of SplitEntry
        The layers that were split.
    tied : dict of str to str
        Keys left out of the weights, each with the key that holds its values.
    files : dict of str to dict
        "bytes" and "sha256" by file name.
    versions : dict of str to str
        Of the packages that wrote it.
    """

    splits: tuple[SplitEntry, ...]
    tied: dict[str, str]
    files: dict[str, dict[str, Any]]
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        content = {"schema": SCHEMA, "format": _FORMAT, **asdict(self)}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / MANIFEST, text + "\n")

    @classmethod
    def read(cls, folder: PathLike) -> "Manifest":
        """Read the manifest in `folder`; the files it names are not looked at.

        Raises
        ------
        FileError
            No such folder, no manifest in it, or one that cannot be right.
        """
        place = Path(folder)
        if not place.is_dir():
            state = "is a file" if place.exists() else "does not exist"
            raise FileError(f"{place} {state}; expected {_MADE_BY}. Check the path.")
        file = place / MANIFEST
        if not file.exists():
            raise FileError(f"{place} has no {MANIFEST}; expected {_MADE_BY}.")
        content = read_json(file, "a manifest of rmtspec", SCHEMA)
        if content.get("format") != _FORMAT:
            raise FileError(
                f"{file} is not a manifest of rmtspec: its 'format' is "
                f"{content.get('format')!r}, expected {_FORMAT!r}. Expected {_MADE_BY}."
            )
        splits = tuple(_entry(file, entry) for entry in _field(file, content, "splits", list))
        names = [entry.name for entry in splits]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise damaged(file, f"it lists the layer {twice!r} twice")
        tied, versions = (_words(file, content, key) for key in ("tied", "versions"))
        files = _field(file, content, "files", dict)
        for name, entry in files.items():
            _check_file_entry(file, name, entry)
        return cls(splits, tied, files, versions)

    @property
    def weight_files(self) -> list[str]:
        """The names of the files of weights."""
        return [name for name in self.files if name.endswith(".safetensors")]

    def tensors(self, folder: PathLike) -> dict[str, MappedTensor]:
        """Return the tensors of all weight files by name; only headers are read.

        Raises
        ------
        FileError
            No weight files, one that cannot be read, or a tensor that two of them have.
        """
        if not self.weight_files:
            raise FileError(
                f"{folder} has no files of weights in its manifest; expected one or more. {_AGAIN}"
            )
        found: dict[str, MappedTensor] = {}
        for name in self.weight_files:
            file = Path(folder, name)
            try:
                stored = stored_tensors(file)
            except FileError:
                raise
            except OSError as error:
                raise FileError(
                    f"{file} cannot be read: {cause(error)}; {MANIFEST} beside it names it. "
                    f"{_AGAIN}"
                ) from error
            for tensor in stored:
                if tensor.name in found:
                    raise FileError(
                        f"{file} and {Path(found[tensor.name].path).name} both hold a tensor named "
                        f"{tensor.name!r}; expected each once. {_AGAIN}"
                    )
                found[tensor.name] = tensor
        return found

    def check_files(self, folder: PathLike) -> None:
        """Raise `FileError` where a file is missing or is not what was written."""
        for name, entry in self.files.items():
            file = Path(folder, name)
            try:
                size = file.stat().st_size
                if size < entry["bytes"]:
                    raise FileError(
                        f"{file} is truncated: {size} bytes, and {MANIFEST} says "
                        f"{entry['bytes']}. {_AGAIN}"
                    )
                with file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            except FileNotFoundError:
                raise FileError(
                    f"{file} does not exist, and {MANIFEST} beside it names it. {_AGAIN}"
                ) from None
            except FileError:
                raise
            except OSError as error:
                raise FileError(
                    f"{file} cannot be read: {cause(error)}. Check that it is a file you may read."
                ) from error
            if size != entry["bytes"] or digest != entry["sha256"]:
                raise FileError(
                    f"{file} has changed since it was saved: its "
                    f"{'size' if size != entry['bytes'] else 'SHA-256'} is not the one in "
                    f"{MANIFEST}. {_AGAIN}"
                )


def damaged(file: Path, what: str) -> FileError:
    """Return the error of a manifest, or of its folder, that cannot be right."""
    return FileError(f"{file} is damaged: {what}. {_AGAIN}")


def _field(file: Path, content: dict[str, Any], key: str, kind: type) -> Any:
    found = content.get(key)
    if not isinstance(found, kind):
        raise damaged(file, f"its {key!r} is {str(found)[:80]}; expected a {kind.__name__}")
    return found


def _words(file: Path, content: dict[str, Any], key: str) -> dict[str, str]:
    found: dict[str, str] = _field(file, content, key, dict)
    if not all(isinstance(value, str) for value in found.values()):
        raise damaged(file, f"its {key!r} is {str(found)[:80]}; expected text by name")
    return found


@contextlib.contextmanager
def model_folder(
    folder: PathLike,
    tensors: Sequence[Outgoing],
    splits: Sequence[SplitEntry],
    *,
    tied: dict[str, str] | None = None,
    versions: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> Iterator[Path]:
    """Write a model into a new folder: its tensors, and the manifest of what was split.

    Parameters
    ----------
    folder : path
        Does not exist yet, or is empty. It appears under its name only when it is whole; until
        then the folder that is given here may get further files.
    tensors : sequence of Outgoing
        Each is called when its turn comes.
    splits : sequence of SplitEntry
    tied : dict of str to str, optional
        Names that share the values of another tensor.
    versions, metadata : dict of str to str, optional
        Of the packages, for the manifest; free text, for the weights.

    Raises
    ------
    FileError
        The folder is not empty or cannot be written; nothing is left there.
    """
    with finished_folder(folder) as work:
        digest = write_safetensors(work / WEIGHTS, tensors, metadata)
        files = {WEIGHTS: {"bytes": (work / WEIGHTS).stat().st_size, "sha256": digest}}
        made_with = _records.versions() if versions is None else versions
        Manifest(splits=tuple(splits), tied=tied or {}, files=files, versions=made_with).write(work)
        yield work


def _entry(file: Path, entry: Any) -> SplitEntry:
    """Return the entry of a layer, if it can be right; keys of later versions are left aside."""
    try:
        made = SplitEntry(**{key: entry[key] for key in SplitEntry.__slots__ if key in entry})
        sides = (*made.shape, made.rank, made.groups)
        good = all(isinstance(word, str) for word in (made.name, made.kind, made.original))
        good = good and isinstance(made.shape, list) and 2 <= len(made.shape) <= 5
        good = good and all(type(number) is int and number >= 1 for number in sides)
    except (TypeError, KeyError):
        good = False
    if not good:
        raise damaged(
            file,
            f"an entry of 'splits' is {str(entry)[:120]}; expected name, kind, rank and shape",
        )
    return replace(made, shape=tuple(made.shape))


def _check_file_entry(file: Path, name: str, entry: Any) -> None:
    # Only a plain name stays inside the folder, on every system.
    if name in ("", ".", "..") or any(c in name for c in "/\\:\0"):
        raise damaged(file, f"it names the file {name!r}; expected a name without a folder")
    size = entry.get("bytes") if isinstance(entry, dict) else None
    digest = entry.get("sha256") if isinstance(entry, dict) else None
    if type(size) is not int or size < 0 or not isinstance(digest, str) or len(digest) != 64:
        raise damaged(
            file, f"its entry of {name!r} is {str(entry)[:80]}; expected bytes and sha256"
        )
