"""Writing the weights of a quantised file as plain floating numbers."""

from pathlib import Path

from rmtspec._files.writing import (
    PathLike,
    check_outside,
    check_space,
    empty_folder,
    finished_folder,
)
from rmtspec.checkpoint.gguf_export import in_transformers, write_config
from rmtspec.checkpoint.gguf_reader import GgufTensor
from rmtspec.checkpoint.index_writer import DENSE_METADATA, DENSE_WEIGHTS, file_names, write_index
from rmtspec.checkpoint.listing import matrices_in
from rmtspec.checkpoint.safetensors_writer import write_safetensors
from rmtspec.errors import FileError
from rmtspec.runs.copied_tensors import check_holdable, copied
from rmtspec.runs.pruned_tensors import in_shards


def dequantised(path: Path, out: PathLike) -> list[str]:
    """Write the weights of a GGUF file into a new folder; return the names of the quantised.

    One tensor is in memory at a time. Names, order of rows and config are those of transformers
    where these are known, and otherwise those of the file.
    """
    listed = in_transformers(matrices_in(path))
    empty_folder(out)
    check_outside(out, path)
    if listed.unread:
        first = listed.unread[0]
        raise FileError(
            f"{path} cannot be written as plain numbers: {first['name']} is {first['reason']}."
        )
    for tensor in listed.tensors.values():
        check_holdable(tensor)
    tensors = [copied(tensor, name) for name, tensor in listed.tensors.items()]
    check_space(out, sum(tensor.nbytes for tensor in tensors))
    files = in_shards(tensors)
    named = dict(zip(file_names(DENSE_WEIGHTS, len(files)), files, strict=True))
    with finished_folder(out) as work:
        for name, file in named.items():
            write_safetensors(work / name, file, DENSE_METADATA)
        write_index(work, DENSE_WEIGHTS, named)
        write_config(listed, work)
        listed.check_unchanged()
    return [
        name
        for name, tensor in listed.tensors.items()
        if isinstance(tensor, GgufTensor) and tensor.quantised
    ]
