"""Replicas: two processes on the CPU decide the same, stay equal, and are told of errors.

The processes run all of it once, each writing down what it found; the tests compare.
"""

import copy
import datetime
import time
import warnings

import pytest
import torch
import torch.distributed as dist
from small_training import network, pruner_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidOptionError, InvalidValueError

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo in this torch"
)
SECONDS = 120


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(32, 48, 3, padding=1).to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.conv(x.reshape(len(x), 32, 5, 5))


class Process:
    """One of the processes: a model, an optimizer and batches of its own."""

    def __init__(self, rank, kind="SGD", model=None):
        self.rank = rank
        self.model = network() if model is None else model
        options = {"momentum": 0.9} if kind == "SGD" else {}
        self.optimizer = getattr(torch.optim, kind)(self.model.parameters(), lr=0.02, **options)
        self.batches = torch.Generator().manual_seed(50 + rank)
        self.wrap()

    def wrap(self):
        self.ddp = DistributedDataParallel(self.model)

    def train(self, steps=2):
        width = 40 if hasattr(self.model, "layers") else 800
        for _ in range(steps):
            self.optimizer.zero_grad()
            x = torch.randn(8, width, generator=self.batches)
            self.ddp(x).square().mean().backward()
            self.optimizer.step()

    def perturb(self, name="layers.0"):
        """Give the second process another weight, as rounding might do, but exaggerated."""
        if self.rank == 1:
            with torch.no_grad():
                weight = self.model.get_submodule(name).weight
                flat = torch.randn(weight.shape[0], 3) @ torch.randn(3, weight[0].numel())
                weight += 0.3 * flat.reshape(weight.shape)

    def everything(self):
        state = copy.deepcopy(self.optimizer.state_dict()["state"])
        values = [p.detach().clone() for p in self.model.parameters()]
        return values, [state[key] for key in sorted(state)]


def error_of(action):
    try:
        action()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def one_decision(rank, kind, **options):
    process = Process(rank, kind)
    pruner = rt.RMTPruner(
        process.model, process.optimizer, every=1, bulk_keep=0.2, fit_cutoff=None, **options
    )
    process.train()
    process.perturb()
    own = rt.plan(process.model, bulk_keep=0.2).row("layers.0")["rank"]
    report = pruner.step(0.5 + rank)
    after = process.everything()
    process.wrap()
    process.train()
    return {
        "own rank": own,
        "rows": [(row["name"], row["action"], row["rank"]) for row in report.rows],
        "splits": pruner.state_dict()["splits"],
        "after": after,
        "trained": process.everything(),
        "waits": pruner._unproved,
    }


def convolution(rank):
    process = Process(rank, model=Convolution())
    pruner = pruner_of(process.model, process.optimizer, ranks={"conv": 7})
    process.train()
    process.perturb("conv")
    pruner.step()
    after = process.everything()
    process.wrap()
    process.train()
    return {"after": after, "trained": process.everything()}


def truncated(rank):
    process = Process(rank)
    pruner = pruner_of(process.model, process.optimizer, mode="truncate", ranks={"layers.0": 5})
    process.train()
    process.perturb()
    pruner.step()
    process.train()  # the layers are the same, and so is the wrapper
    return {"trained": process.everything()}


def not_wrapped_again(rank):
    process = Process(rank)
    pruner = pruner_of(process.model, process.optimizer, ranks={"layers.0": 5})
    process.train()
    pruner.step()
    before = process.everything()[0]
    first_error = error_of(lambda: process.train(1))
    same = all(map(torch.equal, before, process.everything()[0]))
    again = error_of(process.optimizer.step)
    process.wrap()
    process.train()
    return {"error": first_error, "untouched": same, "again": again, "waits": pruner._unproved}


def without_gradient(rank):
    """The first steps after the split give the new layer no gradient at all, then zeros."""
    process = Process(rank)
    pruner = pruner_of(process.model, process.optimizer, ranks={"layers.0": 5})
    pruner.step()
    process.wrap()
    process.optimizer.zero_grad()
    process.optimizer.step()
    for parameter in process.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    process.optimizer.step()
    waits = pruner._unproved
    process.train(1)
    return {"waits": waits, "later": pruner._unproved}


def failing(rank):
    process = Process(rank)
    budget = pruner_of(
        process.model, process.optimizer, budget=1e-9 if rank == 0 else 0.5, fit_cutoff=None
    )

    def progress(*_):
        if rank == 0:
            raise ZeroDivisionError("in the first process")

    other = pruner_of(process.model, process.optimizer, progress=progress)
    before = [type(layer).__name__ for layer in process.model.layers]
    errors = [error_of(budget.step), error_of(other.step)]
    return {
        "errors": errors,
        "untouched": before == [type(layer).__name__ for layer in process.model.layers],
    }


def nan_in_the_first(rank):
    process = Process(rank)
    pruner = pruner_of(process.model, process.optimizer, ranks={"layers.0": 5})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = pruner.step(float("nan") if rank == 0 else 0.5)
    return {
        "report": report is None,
        "layer": type(process.model.layers[0]).__name__,
        "warning": [str(w.message) for w in caught],
        "next": pruner.step(0.5).row("layers.0")["action"],
    }


def resumed(rank, folder):
    first = Process(rank)
    pruner = pruner_of(first.model, first.optimizer, ranks={"layers.0": 5})
    first.train()
    pruner.step()
    first.wrap()
    first.train()
    if rank == 0:
        pruner.save(folder / "run.pt")
    dist.barrier()
    first.train()
    by_wrapping = {}
    for again in (False, True):
        second = Process(rank, model=network(seed=rank + 5))
        second.batches.set_state(first.batches.get_state())
        pruner = pruner_of(second.model, second.optimizer)
        pruner.resume(folder / "run.pt")
        if again:
            second.wrap()
            second.batches.manual_seed(50 + rank)
            for _ in range(4):  # where the first one saved
                torch.randn(8, 40, generator=second.batches)
        by_wrapping[again] = error_of(second.train)
    return {"errors": by_wrapping, "trained": second.everything(), "unbroken": first.everything()}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meet'}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=SECONDS),
    )
    results = {
        "sgd": one_decision(rank, "SGD"),
        "adam": one_decision(rank, "Adam", match_step="each direction"),
        "convolution": convolution(rank),
        "truncated": truncated(rank),
        "not wrapped again": not_wrapped_again(rank),
        "without gradient": without_gradient(rank),
        "failing": failing(rank),
        "nan": nan_in_the_first(rank),
        "resumed": resumed(rank, folder),
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return the results of the two processes."""
    folder = tmp_path_factory.mktemp("replicas")
    started = torch.multiprocessing.start_processes(
        work, args=(folder,), nprocs=2, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + 1.5 * SECONDS
    while not started.join(timeout=5.0):
        if time.monotonic() > deadline:
            for process in started.processes:
                process.kill()
            pytest.fail("the processes wait for each other")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_same(one, two):
    values, states = zip(one, two, strict=True)
    assert len(values[0]) == len(values[1])
    assert all(map(torch.equal, *values))
    for a, b in zip(*states, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_one_decision_for_all(both, kind):
    first, second = (results[kind] for results in both)
    assert first["own rank"] != second["own rank"]  # on its own it would have cut elsewhere
    assert first["rows"] == second["rows"]
    assert first["rows"][0] == ("layers.0", "split", first["own rank"])
    assert first["splits"] == second["splits"]
    assert_same(first["after"], second["after"])
    assert first["waits"] is second["waits"] is False


@pytest.mark.parametrize("kind", ["sgd", "adam", "convolution"])
def test_training_goes_on_equal_after_wrapping_again(both, kind):
    first, second = (results[kind] for results in both)
    assert_same(first["after"], second["after"])
    assert_same(first["trained"], second["trained"])
    assert not torch.equal(first["trained"][0][0], first["after"][0][0])


def test_truncated_weights_are_equal(both):
    assert_same(*(results["truncated"]["trained"] for results in both))


def test_forgetting_to_wrap_again_is_said_in_all(both):
    for results in both:
        seen = results["not wrapped again"]
        for name, words in (seen["error"], seen["again"]):
            assert name == InvalidValueError.__name__
            assert "Wrap the model again whenever step() returns a report" in words
        assert seen["untouched"]
        assert seen["waits"] is False  # once it was wrapped


def test_no_gradient_proves_nothing(both):
    for results in both:
        assert results["without gradient"] == {"waits": True, "later": False}


def test_errors_of_the_first_process_reach_all(both):
    first, second = (results["failing"] for results in both)
    assert first == second
    (name, words), other = first["errors"]
    assert name == InvalidOptionError.__name__
    assert "`budget` is 1e-09" in words
    assert other == ("ZeroDivisionError", "in the first process")
    assert first["untouched"]


def test_nan_in_the_first_process_stops_all(both):
    first, second = (results["nan"] for results in both)
    for seen in (first, second):
        assert (seen["report"], seen["layer"], seen["next"]) == (True, "Linear", "split")
    assert "the loss is nan" in first["warning"][0]
    assert "the first process found nan" in second["warning"][0]


def test_resuming(both):
    for results in both:
        seen = results["resumed"]
        name, words = seen["errors"][False]  # the wrapper knows the layers of before
        assert name == InvalidValueError.__name__
        assert "and after resume" in words
        assert seen["errors"][True] is None
        assert_same(seen["trained"], seen["unbroken"])
    assert_same(*(results["resumed"]["trained"] for results in both))


def test_a_single_process_needs_none_of_it():
    assert not dist.is_initialized()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = pruner_of(model, optimizer, ranks={"layers.0": 5})
    pruner.step()
    model(torch.ones(2, 40)).sum().backward()
    optimizer.step()
    assert pruner._unproved is False
