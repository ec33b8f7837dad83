"""A synthetic checkpoint with the shapes of a small Llama: noise and a few spikes, in bf16.

    python benchmarks/checkpoint/synthetic.py FOLDER --gb 1.5 --shards 8

The same options and NumPy version give the same bytes: no entry depends on the order in which BLAS
sums or multiplies.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rmtspec._files.writing import finished_folder
from rmtspec.checkpoint.index_writer import file_names, write_index
from rmtspec.checkpoint.safetensors_writer import Outgoing, write_safetensors
from rmtspec.errors import RmtspecError

#: Ratios to the width; for a width of 2048 they give 5632, 32000 and 4096 x 11008.
HIDDEN, WORDS, LARGEST = 2.75, 15.625, (2, 5.375)
#: The width must be a multiple of this, so that all sides are integers.
STEP = 8
#: Strengths of the planted signals; those above 1 show beyond the edge of the bulk.
WEAKEST, STRONGEST = 0.8, 6.0
_BLOCK_ENTRIES = 2**22
Shape = tuple[int, ...]


def make_checkpoint(
    folder: Path, gigabytes: float = 1.5, shards: int = 8, width: int = 2048, seed: int = 0
) -> dict[str, Shape]:
    """Write the checkpoint into a new or empty folder; return the shapes by name.

    Parameters
    ----------
    folder : Path
        It appears under this name when it is complete.
    gigabytes : float
        Target size: as many layers as fit, at least one.
    shards : int
        Number of files; fewer if one tensor fills several.
    width : int
        Width of the layers, a multiple of 8.
    seed : int
        Seed of the entries.
    """
    if width < STEP or width % STEP:
        raise SystemExit(f"the width is {width}; expected a multiple of {STEP}")
    if shards < 1:
        raise SystemExit(f"the number of shards is {shards}; expected at least 1")
    shapes = tensor_shapes(gigabytes, width)
    layers = sum(name.endswith("q_proj.weight") for name in shapes)
    files = divided(shapes, shards)
    with finished_folder(folder) as place:
        names = file_names("model.safetensors", len(files))
        written = {}
        for file, held in zip(names, files, strict=True):
            written[file] = [
                Outgoing(name, "BF16", shapes[name], partial(entries, shapes[name], [seed, number]))
                for number, name in enumerate(shapes)
                if name in held
            ]
            write_safetensors(place / file, written[file], {"format": "pt"})
        write_index(place, "model.safetensors", written)
        text = json.dumps(config(width, layers), indent=2) + "\n"
        (place / "config.json").write_text(text, "utf-8")
    return shapes


def tensor_shapes(gigabytes: float, width: int) -> dict[str, Shape]:
    """Return the shape of each tensor by name, in the order of a Llama checkpoint."""
    hidden = int(HIDDEN * width)
    layer: dict[str, Shape] = {
        "input_layernorm.weight": (width,),
        **{f"self_attn.{side}_proj.weight": (width, width) for side in "qkvo"},
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (hidden, width),
        "mlp.up_proj.weight": (hidden, width),
        "mlp.down_proj.weight": (width, hidden),
    }
    first: dict[str, Shape] = {"model.embed_tokens.weight": (int(WORDS * width), width)}
    last: dict[str, Shape] = {
        "model.norm.weight": (width,),
        "adapter.weight": (int(LARGEST[0] * width), int(LARGEST[1] * width)),
    }
    rest = 1e9 * gigabytes - sum(map(nbytes, [*first.values(), *last.values()]))
    layers = max(1, int(rest / sum(map(nbytes, layer.values()))))
    middle = {
        f"model.layers.{number}.{name}": shape
        for number in range(layers)
        for name, shape in layer.items()
    }
    return {**first, **middle, **last}


def divided(shapes: dict[str, Shape], shards: int) -> list[list[str]]:
    """Return the names of the tensors of each file, in order; the files have similar sizes."""
    total = sum(map(nbytes, shapes.values()))
    starts = itertools.accumulate(map(nbytes, shapes.values()), initial=0)
    files: dict[int, list[str]] = {}
    for name, start in zip(shapes, starts, strict=False):
        files.setdefault(start * shards // total, []).append(name)
    return list(files.values())


def entries(shape: Shape, seed: list[int]) -> Iterator[NDArray[Any]]:
    """Yield a tensor in blocks of rows: noise of variance 1 / columns and 3 to 8 signals.

    The directions are vectors of signs: their length is known, and they are nearly orthogonal.
    """
    rng = np.random.default_rng(seed)
    if len(shape) == 1:
        yield (1 + 0.1 * rng.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)
        return
    rows, columns = shape
    rank = int(rng.integers(3, 9))
    left, right = (rng.choice(np.float32([-1, 1]), (rank, side)) for side in shape)
    # A strength of 1 is a singular value of sqrt(longer side * variance) of the noise.
    strengths = np.linspace(WEAKEST, STRONGEST, rank) * (min(shape) / max(shape)) ** 0.25
    sizes = np.float32(strengths * math.sqrt(max(shape) / columns) / math.sqrt(rows * columns))
    step = max(1, _BLOCK_ENTRIES // columns)
    for start in range(0, rows, step):
        block = rng.standard_normal((min(step, rows - start), columns), np.float32)
        block *= np.float32(1 / math.sqrt(columns))
        for u, v, size in zip(left, right, sizes, strict=True):
            block += (size * u[start : start + step])[:, None] * v
        yield block.astype(ml_dtypes.bfloat16)


def config(width: int, layers: int) -> dict[str, Any]:
    """Return the config that tells transformers and rmtspec which model this is."""
    heads = max(1, width // 64)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": int(HIDDEN * width),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": int(WORDS * width),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def nbytes(shape: Shape) -> int:
    """Return the bytes of a tensor of this shape in bf16."""
    return 2 * math.prod(shape)


def main() -> int:
    """Write a checkpoint and print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gb", type=float, default=1.5, help="target size (default: 1.5)")
    parser.add_argument("--shards", type=int, default=8, help="files (default: 8)")
    parser.add_argument("--width", type=int, default=2048, help="width of layers (default: 2048)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        shapes = make_checkpoint(given.folder, given.gb, given.shards, given.width, given.seed)
    except RmtspecError as error:
        print(error, file=sys.stderr)
        return 1
    counts: dict[Shape, int] = {}
    for shape in shapes.values():
        counts[shape] = counts.get(shape, 0) + 1
    for shape, count in sorted(counts.items(), key=lambda item: -nbytes(item[0])):
        print(f"{count:4} of {' x '.join(map(str, shape)):<14} {count * nbytes(shape):14,} bytes")
    print(f"{len(shapes):4} tensors {sum(map(nbytes, shapes.values())):25,} bytes")
    for file in sorted(given.folder.iterdir()):
        print(f"  {file.name:<34} {file.stat().st_size:14,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
