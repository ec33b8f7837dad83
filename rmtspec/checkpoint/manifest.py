"""The manifest next to the weights of a split model: what was split, and checksums of files."""

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rmtspec import _records
from rmtspec._files.reading import open_regular, read_json
from rmtspec._files.writing import PathLike, cause, finished_folder, json_text
from rmtspec.checkpoint.safetensors_reader import stored_tensors
from rmtspec.checkpoint.safetensors_writer import Outgoing, write_safetensors
from rmtspec.checkpoint.stamps import Stamp
from rmtspec.checkpoint.stored import MappedTensor, stamped
from rmtspec.errors import FileError
from rmtspec.terms import Form

MANIFEST = "rmtspec.json"
WEIGHTS = "rmtspec.safetensors"
SCHEMA = 1
_FORMAT = "rmtspec split model"
_AGAIN = "Copy the folder again, or save the model again."
_MADE_BY = "a folder written by `rmtspec prune` or by `save` of the torch adapter"


@dataclass(frozen=True, slots=True)
class SplitEntry:
    """A layer that was split: its weight, as the original layer stores it, is outer @ inner.

    Attributes
    ----------
    name : str
        Fully qualified name of the layer; "" for a model that is one layer.
    kind : str
        "linear", "conv1d", "conv2d", "conv3d", "embedding", "transposed linear" (the Conv1D of
        transformers), or "tensor" if the command split it in a file, which does not tell the
        type of the layer.
    rank : int
        Rank of the product.
    shape : tuple of int
        Shape of the dense weight as the original layer stores it.
    original : str
        The class of the layer, "torch.nn.modules.linear.Linear"; empty if it is not known.
    groups : int
        Groups of a convolution.
    form : str
        "plain", or "pivoted": the outer factor is the identity and ``outer.mixing.weight`` below
        it, with the rows in the order of ``outer.place``. "fewer outputs", "fewer inputs": the
        layer has only the rows, or the columns, of its weight (and bias) that ``units`` lists;
        `rank` is their number.
    stored : str
        "int8" or "bfloat16" if the file has the factors as ``codes`` in that dtype and a ``scale``
        for each row, in place of ``weight``; else empty.
    """

    name: str
    kind: str
    rank: int
    shape: tuple[int, ...]
    original: str = ""
    groups: int = 1
    form: str = "plain"
    stored: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `rmtspec.json` says about the folder that holds it.

    Attributes
    ----------
    splits : tuple of SplitEntry
        The layers that were split.
    tied : dict of str to str
        Keys left out of the weights, each with the key that holds its values.
    files : dict of str to dict
        "bytes" and "sha256" by file name.
    versions : dict of str to str
        Versions of the packages that wrote it.
    extra_states : dict
        Entries of the state dict that are no tensors, as JSON has them, by key.
    """

    splits: tuple[SplitEntry, ...]
    tied: dict[str, str]
    files: dict[str, dict[str, Any]]
    versions: dict[str, str]
    extra_states: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        content = {"schema": SCHEMA, "format": _FORMAT, **asdict(self)}
        json_text(content, folder / MANIFEST)

    @classmethod
    def read(cls, folder: PathLike) -> "Manifest":
        """Read the manifest in `folder`, without checking the files that it names.

        Raises
        ------
        FileError
            The folder does not exist, or its manifest is missing or not valid.
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
        splits = manifest_entries(file, _field(file, content, "splits", list))
        counts = Counter(entry.name for entry in splits)
        twice = next((name for name, count in counts.items() if count > 1), None)
        if twice is not None:
            raise damaged(file, f"it lists the layer {twice!r} twice")
        tied, versions = (_words(file, content, key) for key in ("tied", "versions"))
        files = _field(file, content, "files", dict)
        for name, entry in files.items():
            _check_file_entry(file, name, entry)
        extra = _field(file, {"extra_states": {}} | content, "extra_states", dict)
        return cls(splits, tied, files, versions, extra_states=extra)

    @property
    def weight_files(self) -> list[str]:
        """The names of the weight files."""
        return [name for name in self.files if name.endswith(".safetensors")]

    def tensors(self, folder: PathLike) -> dict[str, MappedTensor]:
        """Return the tensors of all weight files by name; only headers are read.

        Raises
        ------
        FileError
            There are no weight files, one cannot be read, or two hold a tensor of the same name.
        """
        if not self.weight_files:
            raise FileError(
                f"{folder} has no weight files in its manifest; expected one or more. {_AGAIN}"
            )
        tensors: dict[str, MappedTensor] = {}
        for name in self.weight_files:
            file = Path(folder, name)
            try:
                stamp = Stamp.of(file)
                stored = stamped(stored_tensors(file), stamp)
            except FileError:
                raise
            except OSError as error:
                raise FileError(
                    f"{file} cannot be read: {cause(error)}; it is listed in {MANIFEST}. {_AGAIN}"
                ) from error
            for tensor in stored:
                if tensors.setdefault(tensor.name, tensor) is not tensor:
                    other = Path(tensors[tensor.name].path).name
                    raise FileError(
                        f"{file} and {other} both hold a tensor named {tensor.name!r}; expected "
                        f"each name once. {_AGAIN}"
                    )
        return tensors

    def check_files(self, folder: PathLike) -> None:
        """Raise `FileError` if a file is missing or is not as it was written."""
        for name, entry in self.files.items():
            file = Path(folder, name)
            expected, digest = entry["bytes"], ""
            try:
                with open_regular(file) as stream:
                    size = file.stat().st_size
                    if size == expected:
                        digest = hashlib.file_digest(stream, "sha256").hexdigest()
            except FileNotFoundError:
                words = f"{file} does not exist, but {MANIFEST} lists it. {_AGAIN}"
                raise FileError(words) from None
            except FileError:
                raise
            except OSError as error:
                words = f"{file} cannot be read: {cause(error)}. Check its permissions."
                raise FileError(words) from error
            if size < expected:
                raise FileError(
                    f"{file} is truncated: {size} bytes, but {MANIFEST} says {expected}. {_AGAIN}"
                )
            if digest != entry["sha256"]:
                what = "size" if size != expected else "SHA-256"
                raise FileError(
                    f"{file} has changed since it was saved: its {what} is not the one in "
                    f"{MANIFEST}. {_AGAIN}"
                )


#: Sides and ranks are below it.
_LARGEST = 2**31


def manifest_entries(file: Path, content: Sequence[Any]) -> tuple[SplitEntry, ...]:
    """Return the entries that JSON values stand for; raise if one is not valid."""
    return tuple(_entry(file, entry) for entry in content)


def damaged(file: Path, what: str) -> FileError:
    """Return the error for a manifest, or its folder, that is not valid."""
    return FileError(f"{file} is damaged: {what}. {_AGAIN}")


def _field(file: Path, content: dict[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if not isinstance(value, kind):
        raise damaged(file, f"its {key!r} is {str(value)[:80]}; expected a {kind.__name__}")
    return value


def _words(file: Path, content: dict[str, Any], key: str) -> dict[str, str]:
    words: dict[str, str] = _field(file, content, key, dict)
    if not all(isinstance(value, str) for value in words.values()):
        raise damaged(file, f"its {key!r} is {str(words)[:80]}; expected text by name")
    return words


@contextlib.contextmanager
def model_folder(
    folder: PathLike,
    tensors: Sequence[Outgoing],
    splits: Sequence[SplitEntry],
    *,
    tied: dict[str, str] | None = None,
    versions: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    extra_states: dict[str, Any] | None = None,
) -> Iterator[Path]:
    """Write a model into a new folder: its tensors, and the manifest of what was split.

    Parameters
    ----------
    folder : path
        A folder that does not exist yet or is empty. It appears under its name only when it is
        complete; until then, the folder that is yielded takes further files.
    tensors : sequence of Outgoing
        The tensors; each is loaded when it is written.
    splits : sequence of SplitEntry
        The layers that were split.
    tied : dict of str to str, optional
        Names that share the values of another tensor.
    versions, metadata : dict of str to str, optional
        Versions of packages for the manifest; free text for the weight file.
    extra_states : dict, optional
        Entries of the state dict that are no tensors, as JSON has them, by key.

    Raises
    ------
    FileError
        The folder is not empty or cannot be written; nothing is left there.
    """
    with finished_folder(folder) as work:
        digest = write_safetensors(work / WEIGHTS, tensors, metadata)
        files = {WEIGHTS: {"bytes": (work / WEIGHTS).stat().st_size, "sha256": digest}}
        used = _records.versions() if versions is None else versions
        made = Manifest(tuple(splits), tied or {}, files, used, extra_states=extra_states or {})
        made.write(work)
        yield work


def _entry(file: Path, entry: Any) -> SplitEntry:
    """Return the entry of a layer if it is valid; keys of later versions are ignored."""
    try:
        split = SplitEntry(**{key: entry[key] for key in SplitEntry.__slots__ if key in entry})
        numbers = (*split.shape, split.rank, split.groups)
        words = (split.name, split.kind, split.original)
        valid = all(isinstance(word, str) for word in words) and split.form in [*Form]
        valid = valid and split.stored in ("", "int8", "bfloat16")
        valid = valid and isinstance(split.shape, list) and 2 <= len(split.shape) <= 5
        valid = valid and all(type(n) is int and 1 <= n < _LARGEST for n in numbers)
        valid = valid and split.rank <= math.prod(split.shape)
    except (TypeError, KeyError):
        valid = False
    if not valid:
        problem = f"an entry of 'splits' is {str(entry)[:120]}; expected name, kind, rank and shape"
        raise damaged(file, problem)
    return replace(split, shape=tuple(split.shape))


def _check_file_entry(file: Path, name: str, entry: Any) -> None:
    # Only a plain name stays inside the folder on every system.
    if name in ("", ".", "..") or any(c in name for c in "/\\:\0"):
        raise damaged(file, f"it names the file {name!r}; expected a name without a folder")
    size = entry.get("bytes") if isinstance(entry, dict) else None
    digest = entry.get("sha256") if isinstance(entry, dict) else None
    if type(size) is not int or size < 0 or not isinstance(digest, str) or len(digest) != 64:
        shown = str(entry)[:80]
        raise damaged(file, f"its entry of {name!r} is {shown}; expected bytes and sha256")
