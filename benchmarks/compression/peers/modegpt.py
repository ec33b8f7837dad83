"""MoDeGPT (Lin et al., ICLR 2025), from the published algorithm, for models of Llama's shape.

Matrices are cut in pairs that only a hidden vector connects:

- Type I, gate and up with down: hidden units chosen by ridge leverage scores of their moment C, the
  diagonal of C (C + ridge)^-1; down becomes W C S (S^T C S)^-1 (Nystroem).
- Type II, query with key: coordinates of the heads chosen by the product of column norms of the
  roots of their moments (CR decomposition), C_q and C_k after the rotary embedding. The two
  coordinates that the embedding rotates together stay together; query heads that share a key
  head share its choice, their scores summed.
- Type III, value with output: per head the singular values of C^(1/2) W_v W_o; value heads that
  serve several query heads take the outputs of all of them side by side.

Blocks are cut unevenly: sparsities are proportional to softmax(-influence / temperature), influence
being one less the mean cosine between what enters a block and what leaves it.

Sizes are the share of the parameters of the blocks' linear layers. Hidden units are taken out of
the MLP; the coordinates of heads that are left out are rows of zeros, which a model with
narrower heads would not store: it computes the same function, and the share counts them as gone.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def modegpt(
    model: Any,
    batches: Iterable[Any],
    share: float,
    *,
    temperature: float = 0.1,
    ridge: float = 1e-3,
) -> tuple[Any, dict[str, Any]]:
    """A compressed copy of ``model`` and what was done.

    ``batches`` are token numbers of shape (batch, length) or dicts that hold them as ``input_ids``.
    ``ridge`` is relative to the mean of the diagonal of a moment.
    """
    small = copy.deepcopy(model).eval()
    found = moments(model, batches)
    kept = spread([at["influence"] for at in found], share, temperature)
    for block, at, keep in zip(small.model.layers, found, kept, strict=True):
        if keep < 1:
            attention = block.self_attn
            cut_mlp(block.mlp, at["hidden"], keep, ridge)
            cut_query_key(attention, at["query"], at["key"], keep)
            cut_value_output(attention, at["input"], keep, ridge)
    total = sum(p.numel() for p in _linears(model))
    size = sum(
        _parameters(block) * keep for block, keep in zip(model.model.layers, kept, strict=True)
    )
    return small, {
        "kept": kept,
        "influence": [at["influence"] for at in found],
        "share": size / total,
    }


def _linears(model: Any) -> list[torch.Tensor]:
    return [
        module.weight for module in model.model.layers.modules() if isinstance(module, nn.Linear)
    ]


def _parameters(block: nn.Module) -> int:
    return sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Linear))


def spread(influence: list[float], share: float, temperature: float) -> list[float]:
    """Share kept of each block: sparsities by softmax(-influence / temperature), none above .95."""
    score = torch.tensor(influence, dtype=torch.float64)
    weight = torch.softmax(-score / temperature, 0) * len(score)
    low, high = 0.0, 1e6
    for _ in range(200):
        scale = (low + high) / 2
        if float((scale * weight).clamp(max=0.95).mean()) < 1 - share:
            low = scale
        else:
            high = scale
    return [float(1 - s) for s in (low * weight).clamp(max=0.95)]


@torch.no_grad()
def moments(model: Any, batches: Iterable[Any]) -> list[dict[str, Any]]:
    """Per block: moments of inputs, hidden units and rotated queries and keys; influence."""
    config = model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    found: list[dict[str, Any]] = [{"cosine": 0.0, "count": 0} for _ in model.model.layers]

    def add(number: int, key: str, x: torch.Tensor) -> None:
        x = x.float()
        gram = (x.transpose(-1, -2) @ x).double()
        found[number][key] = found[number].get(key, 0) + gram

    def watch(number: int, block: Any) -> list[Any]:
        attention = block.self_attn

        def attend(module: Any, args: Any, kwargs: Any) -> None:
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            add(number, "input", x.flatten(0, -2))
            cosines, sines = kwargs["position_embeddings"]
            for key, projection, count in (
                ("query", attention.q_proj, heads),
                ("key", attention.k_proj, groups),
            ):
                split = projection(x).unflatten(-1, (count, -1)).transpose(1, 2)
                first, second = split.chunk(2, -1)
                turned = split * cosines[:, None] + torch.cat([-second, first], -1) * sines[:, None]
                add(number, key, turned.transpose(0, 1).flatten(1, 2))

        def whole(module: Any, args: Any, output: Any) -> None:
            x = args[0].flatten(0, -2)
            y = (output[0] if isinstance(output, tuple) else output).flatten(0, -2)
            cosine = nn.functional.cosine_similarity(x.double(), y.double(), dim=-1)
            found[number]["cosine"] += float(cosine.sum())
            found[number]["count"] += len(x)

        return [
            attention.register_forward_pre_hook(attend, with_kwargs=True),
            block.mlp.down_proj.register_forward_pre_hook(
                lambda module, args: add(number, "hidden", args[0].flatten(0, -2))
            ),
            block.register_forward_hook(whole),
        ]

    hooks = [h for i, block in enumerate(model.model.layers) for h in watch(i, block)]
    try:
        for batch in batches:
            ids = batch["input_ids"] if isinstance(batch, dict) else batch
            model.model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    for at in found:
        at["influence"] = 1 - at.pop("cosine") / at.pop("count")
    return found


def _ridged(moment: torch.Tensor, ridge: float) -> torch.Tensor:
    level = ridge * moment.diagonal().mean()
    return moment + level * torch.eye(len(moment), dtype=moment.dtype)


def _chosen(scores: torch.Tensor, keep: float) -> torch.Tensor:
    count = max(1, round(keep * len(scores)))
    return scores.topk(count).indices.sort().values


@torch.no_grad()
def cut_mlp(mlp: Any, hidden: torch.Tensor, keep: float, ridge: float) -> None:
    """Type I: units of largest ridge leverage scores; down fits the outputs of all from these."""
    scores = torch.linalg.solve(_ridged(hidden, 1.0), hidden).diagonal()
    units = _chosen(scores, keep)
    within = _ridged(hidden, ridge)[units][:, units]
    across = hidden[units]  # S^T C
    down = mlp.down_proj.weight.double()
    refitted = torch.linalg.solve(within, across @ down.T).T
    for name in ("gate_proj", "up_proj"):
        old = getattr(mlp, name)
        setattr(
            mlp, name, _linear(old.weight[units], None if old.bias is None else old.bias[units])
        )
    mlp.down_proj = _linear(
        refitted.to(down.dtype).to(mlp.down_proj.weight.dtype), mlp.down_proj.bias
    )


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    new.weight.data.copy_(weight)
    if bias is not None:
        new.bias.data.copy_(bias)
    return new.eval()


@torch.no_grad()
def cut_query_key(attention: Any, query: torch.Tensor, key: torch.Tensor, keep: float) -> None:
    """Type II: planes of rotation, chosen once for a key head and the queries that read it."""
    groups, size = key.shape[:2]
    heads_of = query.shape[0] // groups
    # The squared norm of column i of C^(1/2) is the entry i of the diagonal of C.
    q = query.diagonal(dim1=1, dim2=2).unflatten(0, (groups, heads_of)).sum(1)
    score = q * key.diagonal(dim1=1, dim2=2)
    planes = score[:, : size // 2] + score[:, size // 2 :]
    for group in range(groups):
        gone = torch.ones(size // 2, dtype=torch.bool)
        gone[_chosen(planes[group], keep)] = False
        rows = torch.cat([gone, gone])
        _zero(attention.k_proj, group, size, rows)
        for head in range(group * heads_of, (group + 1) * heads_of):
            _zero(attention.q_proj, head, size, rows)


def _zero(projection: nn.Linear, head: int, size: int, rows: torch.Tensor) -> None:
    projection.weight.data[head * size : (head + 1) * size][rows] = 0
    if projection.bias is not None:
        projection.bias.data[head * size : (head + 1) * size][rows] = 0


@torch.no_grad()
def cut_value_output(attention: Any, moment: torch.Tensor, keep: float, ridge: float) -> None:
    """Type III: the best product of that rank for each value head, weighed by the inputs."""
    root = torch.linalg.cholesky(_ridged(moment, ridge))
    value, output = attention.v_proj.weight.data, attention.o_proj.weight.data
    size = attention.head_dim
    groups = value.shape[0] // size
    heads_of = output.shape[1] // value.shape[0]
    for group in range(groups):
        rows = slice(group * size, (group + 1) * size)
        first = root.T @ value[rows].double().T  # (inputs, size)
        columns = slice(group * heads_of * size, (group + 1) * heads_of * size)
        heads = output[:, columns].double().unflatten(1, (heads_of, size))
        second = heads.permute(2, 1, 0).flatten(1)  # (size, heads x outputs)
        left, s, right = torch.linalg.svd(first, full_matrices=False)
        u, sigma, v = torch.linalg.svd(s[:, None] * (right @ second), full_matrices=False)
        rank = max(1, round(keep * size))
        balance = sigma[:rank].sqrt()
        new_value = torch.linalg.solve_triangular(root.T, left @ u[:, :rank], upper=True) * balance
        new_output = balance[:, None] * v[:rank]
        value[rows] = 0
        value[rows.start : rows.start + rank] = new_value.T.to(value.dtype)
        fresh = torch.zeros_like(heads)
        fresh[:, :, :rank] = new_output.unflatten(1, (heads_of, -1)).permute(2, 1, 0)
        output[:, columns] = fresh.flatten(1).to(output.dtype)
    if attention.v_proj.bias is not None:
        raise ValueError("a bias of the value projection is not supported by this peer")
