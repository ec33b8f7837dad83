"""An exception between the halves of a split: the model and its optimizer stay in step."""

import copy

import pytest
import torch
from small_training import give_gradients, network, pruner_of

from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch._layers import replace
from rmtspec.adapters.torch._training.optimizer import FactorOptimizer

RANKS = {"layers.0": 7, "layers.1": 5}


def in_step(model, optimizer):
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    return sorted(held) == sorted(id(p) for p in model.parameters())


def training(seed=0):
    model = network(seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    give_gradients(model)
    optimizer.step()
    return model, optimizer, pruner_of(model, optimizer, ranks=RANKS)


#: Where the exception falls, and in which of the calls.
STEPS = [
    (FactorOptimizer, "adopt", 1),
    (FactorOptimizer, "adopt", 2),
    (FactorOptimizer, "replace", 2),
    (replace, "replace_layers", 1),
    (replace, "replace_layers", 2),
]


@pytest.mark.parametrize(("owner", "name", "number"), STEPS)
@pytest.mark.parametrize("late", [False, True])
def test_both_halves_or_neither(tmp_path, monkeypatch, owner, name, number, late):
    model, optimizer, pruner = training()
    real, calls = getattr(owner, name), []

    def maybe(*args, **kwargs):
        calls.append(name)
        if len(calls) == number and not late:
            raise KeyboardInterrupt
        found = real(*args, **kwargs)
        if len(calls) == number:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, maybe)
        with pytest.raises(KeyboardInterrupt):
            pruner.step()
    assert in_step(model, optimizer)
    split = [path for path, m in model.named_modules() if isinstance(m, rt.SplitLinear)]
    assert len(split) == number - 1
    assert all(optimizer.state[p] for p in model.parameters())
    give_gradients(model)
    optimizer.step()
    pruner.save(tmp_path / "state")
    again, other, resumed = training(seed=1)
    resumed.resume(tmp_path / "state")
    assert in_step(again, other)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_layer_whose_rank_is_lowered_comes_back(monkeypatch, number):
    model, optimizer, pruner = training()
    pruner.step()
    assert in_step(model, optimizer)
    before = {path: m for path, m in model.named_modules() if isinstance(m, rt.SplitLinear)}
    values = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(pruner, "_ranks", {})
    plan = pruner._plan()
    for row in plan.rows:
        if row["name"] in before:
            row.update(action="split", rank=3, reason="")
    monkeypatch.setattr(pruner, "_plan", lambda: plan)
    calls = []
    real = FactorOptimizer.lower

    def maybe(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise RuntimeError("out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(FactorOptimizer, "lower", maybe)
    if number > len(before):
        pruner._split()
        assert in_step(model, optimizer)
        return
    with pytest.raises(RuntimeError, match="out of memory"):
        pruner._split()
    assert in_step(model, optimizer)
    left = [path for path, m in before.items() if model.get_submodule(path) is m]
    assert len(left) == len(before) - number + 1
    for path in left:
        for key in ("inner.weight", "outer.weight"):
            assert torch.equal(model.state_dict()[f"{path}.{key}"], values[f"{path}.{key}"])
