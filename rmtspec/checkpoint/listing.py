"""Reading weight files: the matrices of a checkpoint of any size, each loaded when asked."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtspec._files import cause
from rmtspec._frameworks import SUFFIXES, reader_of
from rmtspec._text import aligned
from rmtspec.checkpoint.grouping import group
from rmtspec.checkpoint.numpy_reader import npy_tensor, npz_tensors
from rmtspec.checkpoint.paths import WeightFiles, weight_files
from rmtspec.checkpoint.safetensors_reader import stored_metadata, stored_tensors
from rmtspec.checkpoint.stored import StoredMatrix, StoredTensor
from rmtspec.errors import FileError, InvalidTypeError

#: Beside the weights of a transformers model; says which tensors are fused.
CONFIG = "config.json"


@dataclass(frozen=True, slots=True, repr=False)
class Checkpoint:
    """The matrices of a file or folder, not loaded yet; iterating gives (name, matrix) pairs.

    Attributes
    ----------
    path : Path
        The file, or the folder.
    files : tuple of Path
        The weight files.
    tensors : dict of str to StoredTensor
        All tensors, those that are not matrices too.
    matrices : dict of str to StoredMatrix
        What can be analysed; `rmtspec.analyze_many` takes it.
    skipped : list of dict
        "name" and "reason" of the other tensors, and of what is in `unread`.
    unread : list of dict
        "name" and "reason" of what is in the files and not among `tensors`.
    metadata : dict of str to str
        Free text in the files ("format": "pt"), which loaders of some frameworks want.
    config : dict
        The ``config.json`` beside the weights, or an empty one.
    parts : bool
        Whether fused tensors (qkv, gate_up) are taken apart.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: dict[str, StoredTensor]
    matrices: dict[str, StoredMatrix]
    skipped: list[dict[str, str]]
    unread: list[dict[str, str]]
    metadata: dict[str, str]
    config: dict[str, Any]
    parts: bool

    def with_parts(self, parts: bool) -> "Checkpoint":
        """Return the same with fused tensors taken apart, or whole; no file is read again."""
        if parts == self.parts:
            return self
        matrices, skipped = group(self.tensors, self.config, parts=parts)
        skipped = [*self.unread, *skipped]
        return dataclasses.replace(self, matrices=matrices, skipped=skipped, parts=parts)

    def __iter__(self) -> Iterator[tuple[str, StoredMatrix]]:
        return iter(self.matrices.items())

    def __len__(self) -> int:
        return len(self.matrices)

    def __repr__(self) -> str:
        counts = [("matrices", len(self.matrices)), ("skipped", len(self.skipped))]
        if len(self.files) > 1:
            counts.append(("files", len(self.files)))
        return aligned(f"Checkpoint {self.path.name}", counts)


def matrices_in(path: str | os.PathLike[str], *, parts: bool = True) -> Checkpoint:
    """List the matrices in a weight file or a folder of them, each a callable that loads it.

    Tensors of 2 dimensions are matrices; those of 4 and 5, and of 3 where they are not a stack of
    experts, are read as convolution kernels, output channels x everything else. Each expert of a
    stack is a matrix, and so are q, k, v, gate and up of a fused tensor where the name or the
    ``config.json`` beside the weights says so. Vectors, biases, buffers, integer and empty
    tensors are listed as skipped.

    Parameters
    ----------
    path : path
        A .safetensors file (float16, bfloat16 and float8 included), .npz, .npy; a .pt, .pth, .bin
        or .ckpt file of torch.save (needs torch); a folder: with an index
        (``model.safetensors.index.json``) and its shards, with a single file, or of .npy files;
        or the index itself. Of a folder with the same model in two formats the .safetensors are
        read.
    parts : bool
        False leaves fused tensors (qkv, gate_up) whole, as the layers they are.

    Returns
    -------
    Checkpoint

    Raises
    ------
    FileError
        Missing, incomplete, of another format, truncated, damaged, pickled code, two tensors of
        one name, or an index that leaves its folder.
    MissingDependencyError
        A file of torch.save, and torch is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from rmtspec.checkpoint import matrices_in
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "weights.npz")
    ...     np.savez(path, weight=np.ones((3, 2)), bias=np.ones(3))
    ...     checkpoint = matrices_in(path)
    ...     [(name, load().shape) for name, load in checkpoint]
    [('weight', (3, 2))]
    >>> checkpoint.skipped
    [{'name': 'bias', 'reason': '1 dimension: a vector has no spectrum'}]
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidTypeError(
            f"`path` is a {type(path).__name__}; expected the path of a file or folder."
        )
    place = Path(path)
    try:
        found = weight_files(place)
        tensors, unread, metadata = _read(found)
    except FileError:
        raise
    except OSError as error:
        raise FileError(
            f"{place} cannot be read: {cause(error)}. Check that you may read it."
        ) from error
    config = _config(found.folder)
    matrices, skipped = group(tensors, config, parts=parts)
    return Checkpoint(
        path=place, files=found.files, tensors=tensors, matrices=matrices,
        skipped=[*unread, *skipped], unread=unread, metadata=metadata, config=config, parts=parts,
    )  # fmt: skip


def _read(
    found: WeightFiles,
) -> tuple[dict[str, StoredTensor], list[dict[str, str]], dict[str, str]]:
    """Return the tensors of all files, what in them cannot be read, and their free text."""
    tensors: dict[str, StoredTensor] = {}
    unread: list[dict[str, str]] = []
    metadata: dict[str, str] = {}
    for file in found.files:
        listed: Sequence[StoredTensor]
        suffix = file.suffix.lower()
        if suffix == ".npy":
            listed = [npy_tensor(file)]
        elif suffix == ".npz":
            listed, skipped = npz_tensors(file)
            unread += skipped
        elif suffix in SUFFIXES:
            listed, skipped = reader_of(suffix)(file)
            unread += skipped
        else:
            listed = stored_tensors(file)
            metadata = stored_metadata(file) | metadata
        for tensor in listed:
            if tensor.name in tensors:
                raise FileError(
                    f"{file} and {Path(tensors[tensor.name].path).name} both hold a tensor named "
                    f"{tensor.name!r}; expected each once. Name one of the files, or remove the "
                    "one that does not belong."
                )
            tensors[tensor.name] = tensor
    for name, place in (found.names or {}).items():
        there = tensors.get(name)
        if there is None or Path(there.path) != place:
            where = f"it is in {Path(there.path).name}" if there else "no file has it"
            raise FileError(
                f"{found.folder} is damaged: its index says that {name!r} is in {place.name}, and "
                f"{where}. Download or save the checkpoint again."
            )
    return tensors, unread, metadata


def _config(folder: Path) -> dict[str, Any]:
    """Return the model's config.json, or an empty one: without it nothing is taken apart."""
    try:
        found = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
