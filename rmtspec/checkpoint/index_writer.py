"""Names of the files of a sharded checkpoint, and the index that says which holds what."""

import json
from collections.abc import Mapping
from pathlib import Path

from rmtspec._files import write_atomically
from rmtspec.checkpoint.paths import INDEX

#: The file of dense weights where one is enough.
DENSE_WEIGHTS = "model.safetensors"
#: Free text of new files where the old ones have none; transformers asks for it.
DENSE_METADATA = {"format": "pt"}


def file_names(name: str, count: int) -> list[str]:
    """Return `name` for one file, "stem-00001-of-00003.suffix" and so on for several."""
    if count == 1:
        return [name]
    stem, _, suffix = name.rpartition(".")
    return [f"{stem}-{i:05d}-of-{count:05d}.{suffix}" for i in range(1, count + 1)]


def write_index(folder: Path, name: str, places: Mapping[str, str], size: int) -> None:
    """Write the index of the checkpoint called `name` ("model.safetensors").

    `places` tells the file of each tensor, `size` the bytes of all of them.
    """
    content = {
        "metadata": {"total_size": size},
        "weight_map": dict(sorted(places.items())),
    }
    write_atomically(folder / (name + INDEX), json.dumps(content, indent=2) + "\n")
