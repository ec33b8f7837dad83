"""Names of the files of a sharded checkpoint, and the index that maps tensors to files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from rmtspec._files.writing import write_atomically
from rmtspec.checkpoint.paths import INDEX
from rmtspec.checkpoint.safetensors_writer import Outgoing

#: The file of dense weights if one is enough.
DENSE_WEIGHTS = "model.safetensors"
#: Free text of new files if the old ones have none; transformers requires it.
DENSE_METADATA = {"format": "pt"}


def file_names(name: str, count: int) -> list[str]:
    """Return `name` for one file; "stem-00001-of-00003.suffix" and so on for several."""
    if count == 1:
        return [name]
    stem, _, suffix = name.rpartition(".")
    return [f"{stem}-{i:05d}-of-{count:05d}.{suffix}" for i in range(1, count + 1)]


def write_index(folder: Path, name: str, files: Mapping[str, Iterable[Outgoing]]) -> None:
    """Write the index of the checkpoint `name` ("model.safetensors") if it has several files."""
    if len(files) == 1:
        return
    placed = sorted((t.name, file, t.nbytes) for file, tensors in files.items() for t in tensors)
    content = {
        "metadata": {"total_size": sum(size for *_, size in placed)},
        "weight_map": {tensor: file for tensor, file, _ in placed},
    }
    write_atomically(folder / (name + INDEX), json.dumps(content, indent=2) + "\n")
