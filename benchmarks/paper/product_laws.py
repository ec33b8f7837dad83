"""Whether a law fits the nonzero singular values of a product, and what a cut there costs.

    python benchmarks/paper/product_laws.py --seeds 11 12

The nets of recut.py, split after epoch 3 with none or 45 % of the bulk kept and trained to epoch 6.
The k nonzero values of each split layer are taken for the spectrum of a k x k, n x k or p x k
matrix; the layer is then cut at the spikes. The results go to product_laws.json.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from command import images, parser
from recut import DIMS
from torch import nn
from training import Images, write_whole

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.matrix.product import product_spectrum

SPLIT_AFTER, EPOCHS = 3, 6


def main() -> None:
    """Train the nets, print and write what a law says of each layer."""
    given = parser("Laws for products of factors.").parse_args()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    loaded = images(given)
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        for keep in (0.0, 0.45):
            model = trained(seed, keep, loaded)
            before = accuracy(model, loaded)
            for path, layer in model.named_modules():
                if isinstance(layer, rt.SplitLinear):
                    rows += [
                        {"seed": seed, "bulk_keep": keep, "accuracy": before, **row}
                        for row in laws(model, path, layer, loaded)
                    ]
                    for row in rows[-3:]:
                        print(row, flush=True)
    file = Path(__file__).with_suffix(".json")
    write_whole(file, json.dumps({"dims": DIMS, "rows": rows}, indent=1) + "\n")


def laws(model: nn.Module, path: str, layer: Any, loaded: Images) -> list[dict[str, Any]]:
    """Return what each of three laws says of a layer, and the accuracy after that cut."""
    outer, inner = (f.weight.detach().numpy() for f in (layer.outer, layer.inner))
    whole, rank = product_spectrum(outer, inner), layer.rank
    squares = whole.eigenvalues[-rank:] * whole.n
    made = []
    for side, n in (("k x k", rank), ("n x k", max(layer.weight.shape)),
                    ("p x k", min(layer.weight.shape))):  # fmt: skip
        spec = rmtspec.Spectrum(squares / n, n=n)
        fit = rmtspec.bema(spec)
        row = {"layer": path, "rank": rank, "law": side, "spikes": fit.n_spikes}
        row["statistic"] = rmtspec.fit_test(spec, fit).statistic
        if 0 < fit.n_spikes < rank:
            dense = rt.merge(copy.deepcopy(model))
            cut, _ = rt.prune(dense, include=f"^{path}$", ranks={path: fit.n_spikes})
            row["accuracy_cut"] = accuracy(cut, loaded)
        made.append(row)
    return made


def trained(seed: int, keep: float, loaded: Images) -> nn.Module:
    """Return the net after the last epoch, its batches those of the other experiments."""
    torch.manual_seed(seed)
    model = rt.MLP(DIMS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = rt.RMTPruner(model, optimizer, every=[SPLIT_AFTER], bulk_keep=keep)
    for epoch in range(1, EPOCHS + 1):
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        for batch in torch.randperm(len(loaded.train), generator=generator).split(128):
            loss = nn.functional.cross_entropy(
                model(loaded.train[batch]), loaded.train_labels[batch]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        pruner.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, loaded: Images) -> float:
    """Return the accuracy on the test images, in per cent."""
    right = model(loaded.test).argmax(1) == loaded.test_labels
    return 100 * float(right.double().mean())


if __name__ == "__main__":
    main()
