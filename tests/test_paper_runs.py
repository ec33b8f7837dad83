"""The paper's runs: steps recorded for a GPU equal plain ones, and a stopped run goes on."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rmtspec.adapters import torch as rt  # noqa: E402

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def paper(monkeypatch):
    """Import a module of benchmarks/paper, and forget it and what it imported afterwards."""
    monkeypatch.syspath_prepend(BENCHMARKS / "paper")
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(BENCHMARKS)):
            del sys.modules[name]


def data():
    """A hundred learnable images for training, and as many for the test."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(256, size=(10, 28, 28))
    labels = rng.integers(10, size=200).astype(np.uint8)
    noisy = patterns[labels] // 2 + rng.integers(128, size=(200, 28, 28))
    images = noisy.astype(np.uint8)
    return SimpleNamespace(
        train_images=images[:100], train_labels=labels[:100],
        test_images=images[100:], test_labels=labels[100:],
    )  # fmt: skip


def net(momentum=0.9):
    torch.manual_seed(0)
    model = rt.MLP((784, 40, 20, 10))
    return model, torch.optim.SGD(model.parameters(), 0.05, momentum)


def plain_epoch(model, optimizer, images, labels, order):
    for batch in order.split(16):
        loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_recorded_steps_train_as_plain_ones_do(paper):
    replayed = paper("replayed")
    images = torch.from_numpy(data().train_images).flatten(1).float() / 255
    labels = torch.from_numpy(data().train_labels).long()
    replays = []

    def record(step):
        return lambda: (replays.append(1), step())

    (ours, of_ours), (theirs, of_theirs) = net(), net()
    steps = replayed.ReplayedSteps(ours, of_ours, images, labels, batch=16, record=record)
    generator = torch.Generator().manual_seed(3)

    def epoch():
        order = torch.randperm(100, generator=generator)
        loss, correct = steps.epoch(order)
        plain_epoch(theirs, of_theirs, images, labels, order)
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
        assert 0 <= float(correct) <= 100
        assert 0 < float(loss) / 100 < 3

    epoch()
    assert (steps.recordings, len(replays)) == (1, 6 - replayed.WARM_UP)  # the seventh is short
    epoch()
    assert (steps.recordings, len(replays)) == (1, 12 - replayed.WARM_UP)
    for optimizer in (of_ours, of_theirs):
        optimizer.param_groups[0]["lr"] = 0.1
    epoch()
    assert steps.recordings == 2
    for optimizer in (of_ours, of_theirs):
        optimizer.state.clear()  # the momentum of the recording is gone
    epoch()
    assert steps.recordings == 3
    options = {"every": 1, "fit_cutoff": None, "ranks": {"layers.0": 5}, "include": "layers.0"}
    for model, optimizer in ((ours, of_ours), (theirs, of_theirs)):
        rt.RMTPruner(model, optimizer, **options).step()
    epoch()
    assert rt.layer_dims(ours) == [784, 5, 40, 20, 10]
    assert steps.recordings == 4


def test_a_run_that_is_stopped_goes_on_bit_equal(paper, tmp_path):
    training = paper("training")
    images = training.Images(data(), "cpu")
    options = {"every": 2, "fit_cutoff": None, "fresh_optimizer": True}
    setup = training.Setup("x", (784, 40, 20, 10), 5, batch=16, method="split", options=options)

    def run(name, **more):
        folders = tmp_path / name / "results", tmp_path / name / "states"
        return training.train(setup, images, *folders, say=lambda _: None, **more)

    stopped = run("stopped", until=time.monotonic())
    assert [row["epoch"] for row in stopped["epochs"]] == [1]
    results = tmp_path / "stopped" / "results"
    partial = results / "unfinished" / f"{setup.name}.json"
    assert json.loads(partial.read_text("utf-8"))["epochs"] == stopped["epochs"]
    assert not (results / partial.name).exists()
    both = run("stopped", until=time.monotonic() + 1000), run("whole")
    assert not partial.exists()
    for record in both:
        for row in record["epochs"]:
            del row["seconds"], row["change_seconds"]
    assert both[0]["epochs"] == both[1]["epochs"]
    assert len(both[0]["epochs"]) == 5


def test_the_published_nets_come_first(paper):
    full_length = paper("full_length")
    runs = list(full_length.runs([0, 1]))
    assert len(set(runs)) == len(runs)
    assert all(run.output_relu and run.seed == 0 for run in runs[:9])
    assert {run.example for run in runs[:9]} == {"4.3", "4.4", "4.5", "4.6", "4.7"}
    assert {run.method for run in runs if run.example == "4.5"} == {"paper"}


def on_device(*arguments):
    script = BENCHMARKS / "device" / "run.py"
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_without_the_device_nothing_is_run(tmp_path):
    ended = on_device("--device", "cuda:99", "--out", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("Nothing was run: `device` 'cuda:99' cannot be used in float64")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_comparison_with_the_cpu_on_the_cpu(tmp_path):
    ended = on_device("--device", "cpu", "--small", "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    record = json.loads(next(tmp_path.iterdir()).read_text("utf-8"))
    assert record["failed"] == []
    assert {"matrices", "model", "training", "scan"} <= set(record)
