"""Gather once what all trials read: second moments of inputs and of gradients.

Rows of inputs whose norm passes twice the median of their sequence are kept one by one, out of
the moments, so that every rule for them can be tried afterwards without another pass.

    python moments.py FOLDER
"""

import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import subject
import torch

FAR = 2.0  # times the median norm of a sequence
GRADIENTS = 16  # sequences


@torch.no_grad()
def inputs(model: Any, ids: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """Per input: the sum of x x^T over the near rows, in float64; the far rows apart."""
    found: dict[str, dict[str, Any]] = {}
    number = 0

    def gather(name: str, x: torch.Tensor) -> None:
        x = x[0]
        norm = x.norm(dim=1)
        median = norm.median()
        far = norm > FAR * median
        near = x[~far]
        if name not in found:
            zero = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
            found[name] = {"near": zero, "far": [], "where": [], "norm": []}
        at = found[name]
        at["near"] += near.T @ near
        at["norm"].append(norm)
        at["far"].append(x[far])
        positions = far.nonzero()[:, 0]
        at["where"].append(torch.stack([torch.full_like(positions, number), positions], 1))

    hooks = []
    for layer, module in subject.linears(model).items():
        if layer.split(".")[2] in ("q_proj", "o_proj", "gate_proj", "down_proj"):
            name = subject.input_of(layer)
            hooks.append(
                module.register_forward_pre_hook(lambda m, a, name=name: gather(name, a[0]))
            )
    for number, row in enumerate(ids):
        model.model(row[None])
        if number in (0, 3):
            print(number, {k: sum(map(len, v["far"])) for k, v in found.items()}, flush=True)
    for hook in hooks:
        hook.remove()
    for at in found.values():
        at["norm"] = torch.stack(at["norm"])
        at["far"], at["where"] = torch.cat(at["far"]), torch.cat(at["where"])
    return found


@torch.no_grad()
def first_rows(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Per input: the row of the first token of every sequence, which sees no other token."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args: found.__setitem__(name, args[0][:, 0])

    hooks = [
        module.register_forward_pre_hook(keep(subject.input_of(layer)))
        for layer, module in subject.linears(model).items()
    ]
    model.model(ids[:, :1])
    for hook in hooks:
        hook.remove()
    return found


def gradients(model: Any, ids: torch.Tensor, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """Per layer: G, and of every sequence D and the squared norms; D also with clipped tokens."""
    found: dict[str, dict[str, Any]] = {}
    generator = torch.Generator().manual_seed(seed)

    def gather(name: str, g: torch.Tensor) -> None:
        g = g[0]
        square = g.square().sum(1)
        at = found.setdefault(name, defaultdict(list))
        if "G" not in at:
            at["G"] = torch.zeros(g.shape[1], g.shape[1])
        at["G"].addmm_(g.T, g)
        at["square"].append(square)
        at["D"].append(g.square().sum(0))
        at["D without the first"].append(g[1:].square().sum(0))
        median = square.median()
        for times in (1, 3, 10):
            weight = (times**2 * median / square).clamp(max=1)
            at[f"D clipped at {times}"].append((g.square() * weight[:, None]).sum(0))

    def hook(name: str) -> Any:
        def run(module: Any, args: Any, output: torch.Tensor) -> None:
            output.register_hook(lambda g: gather(name, g))

        return run

    hooks = [
        module.register_forward_hook(hook(name)) for name, module in subject.linears(model).items()
    ]
    for p in model.parameters():
        p.requires_grad_(False)
    for row in ids:
        embedded = model.model.embed_tokens(row[None]).requires_grad_()
        logits = model(inputs_embeds=embedded).logits[0]
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    for h in hooks:
        h.remove()
    return {
        name: {k: torch.stack(v) if isinstance(v, list) else v for k, v in at.items()}
        for name, at in found.items()
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    model, tokenizer = subject.load()
    ids = subject.texts(tokenizer)
    torch.save(ids, folder / "ids.pt")
    start = time.time()
    print("dense", {k: subject.perplexity(model, ids[k]) for k in ("wiki", "news")}, flush=True)
    print(f"{time.time() - start:.0f} s", flush=True)
    torch.save(inputs(model, ids["calibration"]), folder / "inputs.pt")
    print(f"{time.time() - start:.0f} s", flush=True)
    torch.save(first_rows(model, ids["calibration"]), folder / "firsts.pt")
    torch.save(gradients(model, ids["calibration"][:GRADIENTS]), folder / "gradients.pt")
    print(f"{time.time() - start:.0f} s", flush=True)
