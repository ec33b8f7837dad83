"""Listing weight files: the matrices of a checkpoint of any size, each loaded on demand."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtspec._files.reading import bounded_json
from rmtspec._files.writing import cause
from rmtspec._frameworks import SUFFIXES, reader_of, suffix_of
from rmtspec._text import Readable, aligned, natural
from rmtspec.checkpoint.flax_reader import flax_tensors
from rmtspec.checkpoint.gguf_reader import gguf_tensors
from rmtspec.checkpoint.grouping import group
from rmtspec.checkpoint.keras_reader import keras_tensors
from rmtspec.checkpoint.lora import Pair, adapter_config, matrices_of, pairs_in
from rmtspec.checkpoint.numpy_reader import npy_tensor, npz_tensors
from rmtspec.checkpoint.paths import WeightFiles, weight_files
from rmtspec.checkpoint.quantised.recognised import recognised
from rmtspec.checkpoint.quantised.scheme import scheme_of
from rmtspec.checkpoint.safetensors_reader import stored_metadata, stored_tensors
from rmtspec.checkpoint.stamps import Stamp
from rmtspec.checkpoint.stored import StoredMatrix, StoredTensor, check_unchanged, stamped
from rmtspec.errors import FileError, InvalidOptionError, InvalidTypeError, OptionError
from rmtspec.terms import Why

#: Formats in which the order of the tensors is not that of the layers.
_UNORDERED = (".safetensors", ".npy", ".h5", ".keras", ".msgpack")
#: Next to the weights of a transformers model; says which tensors are fused.
CONFIG = "config.json"


@dataclass(frozen=True, slots=True, repr=False)
class Checkpoint(Readable):
    """The matrices of a file or folder, not yet loaded; iterating gives (name, matrix) pairs.

    Attributes
    ----------
    path : Path
        The file or the folder.
    files : tuple of Path
        The weight files.
    tensors : dict of str to StoredTensor
        All tensors, including those that are not matrices.
    matrices : dict of str to StoredMatrix
        The matrices that can be analysed, as `rmtspec.analyze_many` takes them: as the file has
        them, or where it sorts them (.safetensors, .npy) by name, layers.2 before layers.10.
    skipped : list of dict
        "name" and "reason" of the other tensors, and of everything in `unread`.
    unread : list of dict
        "name" and "reason" of what is in the files but not among `tensors`.
    metadata : dict of str to str
        Free text in the files ("format": "pt"), which some loaders need.
    config : dict
        Content of the ``config.json`` next to the weights; empty if there is none.
    parts : bool
        Whether fused tensors (qkv, gate_up) are divided into their parts.
    pairs : dict of str to Pair
        The pairs of factors of an adapter of LoRA, each of which is one matrix; else empty.
    refused : dict of str to str
        Why tensors of quantised layers are not read, by name: they are in `skipped` too.
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
    pairs: dict[str, Pair] = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)

    def with_parts(self, parts: bool) -> "Checkpoint":
        """Return the same with fused tensors divided, or whole; no file is read again."""
        if parts == self.parts:
            return self
        return dataclasses.replace(self, parts=parts).grouped()

    def grouped(self) -> "Checkpoint":
        """Return the same with the matrices of its tensors, and the reasons of the others."""
        factors = {t.name for pair in self.pairs.values() for t in (pair.reading, pair.writing)}
        rest = {name: tensor for name, tensor in self.tensors.items() if name not in factors}
        found, skipped = group(rest, self.config, parts=self.parts, refused=self.refused)
        matrices = _in_order(matrices_of(self.pairs) | found, self.files)
        return dataclasses.replace(self, matrices=matrices, skipped=[*self.unread, *skipped])

    def check_unchanged(self) -> None:
        """Raise `FileError` if a file was rewritten since it was listed."""
        check_unchanged(self.tensors.values())

    def __iter__(self) -> Iterator[tuple[str, StoredMatrix]]:
        return iter(self.matrices.items())

    def __len__(self) -> int:
        return len(self.matrices)

    def __repr__(self) -> str:
        counts = [("matrices", len(self.matrices)), ("skipped", len(self.skipped))]
        if len(self.files) > 1:
            counts.append(("files", len(self.files)))
        return aligned(f"Checkpoint {self.path.name}", counts)


def matrices_in(
    path: str | os.PathLike[str], *, parts: bool = True, key: str | None = None
) -> Checkpoint:
    """List the matrices in a weight file or a folder of them, each a callable that loads it.

    Tensors of 2 dimensions are matrices, and so is the product of each pair of factors of an
    adapter of LoRA, with its scale. Those of 4 and 5, and those of 3 that are called a weight
    or a kernel and are not a stack of experts, are read as convolution kernels: output channels x
    everything else. Attention weights with the heads as an axis are matrices where the
    ``config.json`` names a known model; any other of 3 dimensions is skipped. Each expert of a
    stack is a matrix, and so are the q, k, v, gate and up of a fused tensor if its name or the
    ``config.json`` next to the weights says that it is fused. Quantised weights of .safetensors
    files are dequantised when they are read, if their layout is known: fp8 with scales, GPTQ, AWQ,
    bitsandbytes, MXFP4 and compressed-tensors. Vectors, biases, buffers, other integer tensors and
    empty tensors are listed as skipped.

    Parameters
    ----------
    path : path
        A .safetensors file (including float16, bfloat16 and float8), .npz or .npy; a .gguf file,
        which is dequantised (requires gguf), with its parts if it is numbered; a .h5 or .keras file
        of Keras (requires h5py) or a .msgpack file of Flax, with outputs as rows; a .pt, .pth,
        .pth.tar, .bin or .ckpt file of torch.save, also one of a training loop, or a TorchScript
        archive (requires torch); a folder that holds an index
        (``model.safetensors.index.json``) and its shards, a single file, or .npy files; or the
        index itself. If a folder holds the same model in two formats, the .safetensors files are
        read.
    parts : bool
        Whether to divide fused tensors (qkv, gate_up); if False, each stays one matrix.
    key : str, optional
        Of a training checkpoint that torch.save wrote: where the state dict is ("model",
        "ema.state_dict"). By default "state_dict", or else the only key that holds matrices.

    Returns
    -------
    Checkpoint

    Raises
    ------
    FileError
        A file is missing, incomplete, truncated, damaged, in another format or contains pickled
        code, two tensors have one name, or an index names a file outside its folder.
    MissingDependencyError
        The file was written by torch.save, and torch is not installed.

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
        sources = weight_files(place)
        if key is not None and not all(suffix_of(file) in SUFFIXES for file in sources.files):
            raise InvalidOptionError(
                f"`key` is {key!r}",
                "none, because only files of torch.save have keys",
                f"{sources.files[0].name} holds its tensors by name at once; leave out `key`.",
            )
        tensors, unread, metadata = _read(sources, key)
    except (FileError, OptionError):
        raise
    except OSError as error:
        raise FileError(
            f"{place} cannot be read: {cause(error)}. Check its permissions."
        ) from error
    config = _config(sources.folder)
    refused: dict[str, str] = {}
    if all(suffix_of(file) == ".safetensors" for file in sources.files):
        tensors, refused = recognised(tensors, scheme_of(config, sources.folder))
    listed = Checkpoint(
        path=place, files=sources.files, tensors=tensors, matrices={}, skipped=[], unread=unread,
        metadata=metadata, config=config, parts=parts,
        pairs=pairs_in(tensors, adapter_config(sources.folder)), refused=refused,
    )  # fmt: skip
    return listed.grouped()


def _read(
    sources: WeightFiles, key: str | None
) -> tuple[dict[str, StoredTensor], list[dict[str, str]], dict[str, str]]:
    """Return the tensors of all files, what cannot be read in them, and their free text."""
    tensors: dict[str, StoredTensor] = {}
    unread: list[dict[str, str]] = []
    metadata: dict[str, str] = {}
    for file in sources.files:
        listed: Sequence[StoredTensor]
        stamp = Stamp.of(file)  # before the header: a change while it is read is noticed too
        suffix = suffix_of(file)
        if suffix == ".safetensors":
            listed = stored_tensors(file)
            metadata = stored_metadata(file) | metadata
        elif suffix == ".npy":
            try:
                listed = [npy_tensor(file)]
            except FileError as error:
                if len(sources.files) == 1:
                    raise
                listed = []
                unread.append({"name": file.stem, "reason": Why.UNREAD.words(error=error)})
        elif suffix in (".h5", ".keras", ".msgpack"):
            listed, skipped = (flax_tensors if suffix == ".msgpack" else keras_tensors)(file)
            unread += skipped
        elif suffix == ".gguf":
            listed, skipped, about = gguf_tensors(file)
            unread += skipped
            metadata = about | metadata
        else:
            listed, skipped = (
                npz_tensors(file) if suffix == ".npz" else reader_of(suffix)(file, key)
            )
            unread += skipped
        for tensor in stamped(listed, stamp):
            if tensors.setdefault(tensor.name, tensor) is not tensor:
                raise FileError(
                    f"{file} and {Path(tensors[tensor.name].path).name} both hold a tensor named "
                    f"{tensor.name!r}; expected each name once. Name one of the files, or remove "
                    "the one that does not belong."
                )
    for name, place in (sources.names or {}).items():
        tensor = tensors.get(name)
        if tensor is None or Path(tensor.path) != place:
            actual = f"it is in {Path(tensor.path).name}" if tensor else "no file has it"
            raise FileError(
                f"{sources.folder} is damaged: its index says that {name!r} is in {place.name}, "
                f"but {actual}. Download or save the checkpoint again."
            )
    return tensors, unread, metadata


def _in_order(matrices: dict[str, StoredMatrix], files: Sequence[Path]) -> dict[str, StoredMatrix]:
    """Return the matrices in the order in which people count, if the files have none of theirs."""
    if not all(suffix_of(file) in _UNORDERED for file in files):
        return matrices
    return dict(sorted(matrices.items(), key=lambda item: natural(item[1].tensor.name)))


def _config(folder: Path) -> dict[str, Any]:
    """Return the content of config.json, empty if there is none: then nothing is divided."""
    try:
        config = bounded_json(folder / CONFIG)
    except FileError:
        raise
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
