"""Writing the weights of a quantised file or folder as plain floating numbers."""

import json
from pathlib import Path
from typing import Any

from rmtspec._files.reading import bounded_json
from rmtspec._files.writing import (
    PathLike,
    check_outside,
    check_space,
    empty_folder,
    finished_folder,
)
from rmtspec.checkpoint.companions import companions, copy_companions
from rmtspec.checkpoint.gguf_export import in_transformers, write_config
from rmtspec.checkpoint.gguf_reader import GgufTensor
from rmtspec.checkpoint.index_writer import DENSE_METADATA, DENSE_WEIGHTS, file_names, write_index
from rmtspec.checkpoint.listing import CONFIG, Checkpoint, matrices_in
from rmtspec.checkpoint.manifest import MANIFEST
from rmtspec.checkpoint.quantised.scheme import OLDER_FILES, without_scheme
from rmtspec.checkpoint.quantised.tensor import QuantisedTensor
from rmtspec.checkpoint.safetensors_writer import Outgoing, format_dtype, write_safetensors
from rmtspec.checkpoint.stored import StoredTensor, named_dtype
from rmtspec.errors import FileError
from rmtspec.runs.copied_tensors import check_holdable, copied
from rmtspec.runs.pruned_tensors import in_shards


def quantised_in(path: Path) -> Checkpoint | None:
    """List a checkpoint if it is quantised and holds no factors; None for any other path."""
    if path.suffix.lower() == ".gguf":
        return matrices_in(path)
    if path.is_dir():
        held = any(path.glob("*.safetensors*")) or (path / "snapshots").is_dir()
        if (path / MANIFEST).exists() or not held:
            return None
    elif not (path.is_file() and path.name.endswith(_LISTED)):
        return None
    listed = matrices_in(path)
    return listed if any(map(_is_quantised, listed.tensors.values())) or listed.refused else None


#: Ends of the names of files that are listed to see whether they are quantised.
_LISTED = (".safetensors", ".safetensors.index.json")


def dequantised(listed: Checkpoint, out: PathLike) -> list[str]:
    """Write the weights of a checkpoint into a new folder; return the names of the quantised.

    One matrix is in memory at a time. Names, order of rows and config of GGUF files are those of
    transformers where these are known, and otherwise those of the file.
    """
    path = listed.path
    listed = in_transformers(listed)
    empty_folder(out)
    check_outside(out, path)
    unread = [*listed.unread, *({"name": n, "reason": why} for n, why in listed.refused.items())]
    if unread:
        first = unread[0]
        raise FileError(
            f"{path} cannot be written as plain numbers: {first['name']} is {first['reason']}."
        )
    for tensor in listed.tensors.values():
        check_holdable(tensor)
    tensors = [_outgoing(tensor, name) for name, tensor in listed.tensors.items()]
    folder = listed.files[0].parent if path.is_dir() else path
    others = companions(folder, listed.files)[0]
    check_space(out, sum(t.nbytes for t in tensors) + sum(file.stat().st_size for file in others))
    files = in_shards(tensors)
    named = dict(zip(file_names(DENSE_WEIGHTS, len(files)), files, strict=True))
    with finished_folder(out) as work:
        for name, file in named.items():
            write_safetensors(work / name, file, DENSE_METADATA)
        write_index(work, DENSE_WEIGHTS, named)
        copy_companions(folder, work)
        _without_scheme(work)
        write_config(listed, work)
        listed.check_unchanged()
    return [name for name, tensor in listed.tensors.items() if _is_quantised(tensor)]


def _is_quantised(tensor: StoredTensor) -> bool:
    gguf = isinstance(tensor, GgufTensor) and tensor.quantised
    return gguf or isinstance(tensor, QuantisedTensor)


def _outgoing(tensor: StoredTensor, name: str) -> Outgoing:
    if not isinstance(tensor, QuantisedTensor):
        return copied(tensor, name)
    dtype = format_dtype(named_dtype(tensor.layout.dtype))
    return Outgoing(name, dtype, tensor.shape, tensor.pieces)


def _without_scheme(folder: Path) -> None:
    """Take out of the config what says that the weights are quantised."""
    for name in OLDER_FILES:
        (folder / name).unlink(missing_ok=True)
    place = folder / CONFIG
    try:
        config: Any = bounded_json(place)
    except (OSError, ValueError):  # none, or one that said nothing
        return
    if isinstance(config, dict):
        text = json.dumps(without_scheme(config), indent=2)
        place.write_text(text + "\n", encoding="utf-8")
