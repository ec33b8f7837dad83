"""What the callbacks of all trainers have in common, without a trainer."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch.callbacks import split_as
from rmtspec.adapters.torch.callbacks._pruned_training import (
    PrunerCallback,
    innermost,
    run_closure_first,
)
from rmtspec.errors import InvalidTypeError, InvalidValueError


class Pair(nn.Module):
    """Someone else's module with children of these names."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(20, 20)
        self.outer = nn.Linear(20, 20)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict(
        {
            "linear": nn.Linear(30, 40),
            "plain": nn.Linear(30, 40, bias=False),
            "table": nn.Embedding(50, 32),
            "conv": nn.Conv2d(16, 24, 3, groups=2),
            "conv1d": nn.Conv1d(16, 24, 5),
            "pair": Pair(),
            "norm": nn.BatchNorm1d(40),
        }
    )


RANKS = {"linear": 7, "plain": 6, "table": 5, "conv[0]": 4, "conv[1]": 4, "conv1d": 3}


def pruned(ranks=RANKS, model=None):
    return rt.prune(model or network(), ranks=ranks, fit_cutoff=1e-12)[0]


def twice():
    """Both factors of one layer, and one of each kind, are split again."""
    more = {"linear.inner": 3, "linear.outer": 2, "table.inner": 2, "table.outer": 3}
    more |= {"conv.inner[0]": 2, "conv.inner[1]": 2, "conv1d.outer": 2}
    return pruned(more, pruned())


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def structure(model):
    return {
        name: (type(module), getattr(module, "rank", None))
        for name, module in model.named_modules(remove_duplicate=False)
    }


MODELS = {"dense": network, "once": pruned, "twice": twice, "other": lambda: pruned({"linear": 9})}


@pytest.mark.parametrize("have", MODELS)
@pytest.mark.parametrize("need", MODELS)
def test_a_model_gets_the_layers_of_any_state(have, need):
    model, like = MODELS[have](), MODELS[need]()
    model["linear"].train()
    state = like.state_dict()
    assert split_as(model, state) is model
    assert structure(model) == structure(like)
    model.load_state_dict(state)
    assert shapes(model) == shapes(like)
    x = torch.randn(3, 30, generator=torch.Generator().manual_seed(2))
    assert torch.equal(model["linear"](x), like["linear"](x))
    table = torch.tensor([3, 40])
    assert torch.equal(model["table"](table), like["table"](table))


def test_layers_that_fit_are_left_alone():
    model = twice()
    before = {name: id(module) for name, module in model.named_modules()}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    split_as(model, values)
    split_as(model, {})
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_the_new_factors_are_like_the_weight():
    model = network().to(torch.float64)
    model["linear"].requires_grad_(False)
    bias = model["linear"].bias
    split_as(model, pruned().state_dict())
    assert model["linear"].outer.bias is bias
    assert not model["linear"].inner.weight.requires_grad
    assert model["plain"].inner.weight.requires_grad
    assert model["plain"].outer.weight.dtype == torch.float64


def test_a_wrapped_model_is_refused():
    with pytest.raises(InvalidTypeError, match=r"model\.module"):
        split_as(nn.DataParallel(network()), {})


# ---------------------------------------------------------------------------- the optimizer


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_innermost():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters())
    assert innermost(Wrapper(optimizer)) is optimizer
    assert innermost(optimizer) is optimizer
    assert innermost(None) is None


@pytest.mark.parametrize("by_name", [False, True])
def test_hooks_see_the_gradients_of_the_closure(by_name):
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    seen, calls = [], []
    run_closure_first(optimizer)
    optimizer.register_step_pre_hook(lambda *_: seen.append(layer.weight.grad))

    def closure():
        calls.append(None)
        optimizer.zero_grad()
        loss = layer(torch.ones(2)).square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert seen[0] is not None
    assert len(calls) == 1
    assert float(loss.detach()) > 0
    optimizer.step()
    assert len(calls) == 1


def test_a_closure_that_is_called_again_runs_again():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            return [closure(), closure(), super().step()]

    layer, calls = nn.Linear(2, 2), []
    optimizer = Twice(layer.parameters(), lr=0.1)
    run_closure_first(optimizer)
    assert optimizer.step(lambda: calls.append(None) or len(calls)) == [1, 2, None]


# ---------------------------------------------------------------------------- the training

CHOSEN = {
    "include": r"^first(\.inner)?$",
    "rule": "fraction",
    "keep": 0.3,
    "fit_cutoff": None,
    "every": 1,
    "recut": "factors",
}


def training(names=False):
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(40, 60), "last": nn.Linear(60, 20)})
    parameters = model.named_parameters() if names else model.parameters()
    return model, torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def advance(model, optimizer, steps=2):
    x = torch.randn(8, 40, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        model["last"](torch.tanh(model["first"](x))).square().mean().backward()
        optimizer.step()


def run(epochs, again=(), names=False, decay="factors"):
    """Train, and begin again (as a second call of a trainer does) before the epochs in `again`."""
    model, optimizer = training(names)
    pruning = PrunerCallback(**CHOSEN, decay=decay)
    for epoch in range(epochs):
        if epoch == 0:
            pruning._begin(model, optimizer, None)
        elif epoch in again:
            state, pruning = pruning.state_dict(), PrunerCallback(**CHOSEN, decay=decay)
            # As a trainer has it: the layers are split, and so is the optimizer's group.
            fresh = torch.optim.SGD(
                model.named_parameters() if names else model.parameters(), lr=0.1, momentum=0.9
            )
            fresh.load_state_dict(optimizer.state_dict())
            optimizer = fresh
            pruning._begin(model, optimizer, state)
        pruning._catch_up(epoch)
        advance(model, optimizer)
        pruning._end_epoch()
    return model, optimizer, pruning


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("again", [(1,), (2,), (1, 2, 3)])
def test_a_training_begun_again_on_split_layers_is_the_same(again, names):
    for decay in ("factors", "weight"):
        model, optimizer, pruning = run(4, again, names, decay)
        expected, whole, unbroken = run(4, (), names, decay)
        for name, value in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        one, other = optimizer.state_dict(), whole.state_dict()
        assert one["param_groups"] == other["param_groups"]
        assert pruning.state_dict()["order"] == unbroken.state_dict()["order"]
        assert pruning.pruner.epoch == 4
        assert len(pruning.history) == 4


def test_a_state_of_other_layers_is_refused():
    _, _, pruning = run(2)
    state = pruning.state_dict()
    model, optimizer = training()
    state["order"] = [list(dict(model.named_parameters()))]
    with pytest.raises(InvalidValueError, match="'first' split at rank 12, but the model"):
        PrunerCallback(**CHOSEN)._begin(model, optimizer, state)


def test_nothing_is_counted_before_training():
    with pytest.raises(InvalidValueError, match="No training has begun"):
        PrunerCallback()._end_epoch()
    assert PrunerCallback().state_dict() == {}


def test_the_package_imports_no_trainer():
    code = (
        "import sys, rmtspec.adapters.torch.callbacks;"
        "print([m for m in ('lightning', 'pytorch_lightning', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
