"""The callback for Lightning, with its real Trainer on a tiny network."""

import copy
import importlib
import subprocess
import sys
import types
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch.callbacks import split_as
from rmtspec.adapters.torch.callbacks.lightning import RMTPrunerCallback
from rmtspec.errors import (
    InvalidValueError,
    MissingDependencyError,
    RmtspecWarning,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '[a-z]+_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to"),
    # Lightning 2.6 with torch 2.13:
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is:FutureWarning"),
]

#: One layer is split, in the next cycle one of its factors, and then nothing more.
NAMED = {"include": r"^first(\.inner)?$", "rule": "fraction", "keep": 0.3, "fit_cutoff": None}
NAMED |= {"recut": "factors"}


class Net(lightning.LightningModule):
    def __init__(self, optimizer="adam", automatic=True):
        super().__init__()
        self.first = nn.Linear(40, 60)
        self.second = nn.Linear(60, 50)
        self.last = nn.Linear(50, 3)
        self.kind = optimizer
        self.automatic_optimization = automatic
        self.poison = -1

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))

    def loss(self, batch):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        if self.current_epoch == self.poison and batch_idx == 0:
            return loss.detach() * float("nan") + 0.0 * loss
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test", self.loss(batch))

    def configure_optimizers(self):
        return optimizer_of(self, self.kind)


def optimizer_of(net, kind):
    """Separate groups for weights and biases, the weights not in the model's order."""
    weights = [net.last.weight, net.first.weight, net.second.weight]
    biases = [net.first.bias, net.second.bias, net.last.bias]
    groups = [{"params": weights, "lr": 0.01}, {"params": biases, "lr": 0.003}]
    if kind == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.01)
    else:
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


def net(**options):
    torch.manual_seed(0)
    return Net(**options)


def batches(count=6, size=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * size, 40, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3] * x[:, 3:6]), batch_size=size)


def trainer(epochs, *callbacks, **options):
    return lightning.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        **{
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            "num_sanity_val_steps": 0,
            **options,
        },
    )


def assert_equal(one, other):
    """Compare nested states bit by bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other or one is other


def states(training, model, callback):
    of_callback = copy.deepcopy(callback.state_dict())
    for report in of_callback["pruner"]["history"]:
        for row in report["rows"]:
            del row["seconds"]
    return {
        "model": dict(model.state_dict()),
        "optimizer": training.optimizers[0].state_dict(),
        "scheduler": training.lr_scheduler_configs[0].scheduler.state_dict(),
        "callback": of_callback,
    }


# ---------------------------------------------------------------------------- training


class Watch(lightning.Callback):
    """The state at the start of each epoch, and what was logged at its end."""

    def __init__(self):
        self.parameters, self.logged, self.rates = [], [], []

    def on_train_epoch_start(self, training, model):
        self.parameters.append(rt.count_parameters(model))
        groups = training.optimizers[0].param_groups
        self.rates.append([group["lr"] for group in groups])
        held = {id(p) for group in groups for p in group["params"]}
        assert held == {id(p) for p in model.parameters()}

    def on_train_end(self, training, model):
        self.logged = {k: float(v) for k, v in training.callback_metrics.items()}


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_layers_are_split_after_the_epochs_of_the_schedule(kind):
    model, callback, watch = net(optimizer=kind), RMTPrunerCallback(every=2, bulk_keep=0.1), Watch()
    assert callback.pruner is None
    assert callback.history == []
    trainer(5, callback, watch).fit(model, batches())
    before, early, split, _, final = watch.parameters
    assert before == early == 40 * 60 + 60 + 60 * 50 + 50 + 50 * 3 + 3
    assert split < before
    assert final <= split
    assert watch.parameters[3] == split
    assert rt.count_parameters(model) == final
    assert [report.totals["parameters_before"] for report in callback.history] == [before, split]
    assert callback.pruner.epoch == 5
    assert callback.pruner.next_epoch == 6
    assert isinstance(model.first, rt.SplitLinear)
    assert watch.logged["rmtspec/parameters_before"] == split
    assert watch.logged["rmtspec/parameters_after"] == final
    assert watch.logged["rmtspec/layers_split"] == len(
        {row["layer"] for row in callback.history[-1].rows if row["action"] == "split"}
    )
    halved = [0.5 ** (epoch // 2) for epoch in range(5)]
    np.testing.assert_allclose(
        watch.rates, np.outer(halved, [0.01, 0.003]), rtol=1e-12, err_msg="the rounding of products"
    )


def by_hand(kind, epochs, accumulate=1, **options):
    """Return the module after a plain loop over the same batches."""
    model = net(optimizer=kind)
    (optimizer,), (scheduler,) = model.configure_optimizers()
    pruner = rt.RMTPruner(model, optimizer, **options)
    for _ in range(epochs):
        for index, batch in enumerate(batches()):
            if index % accumulate == 0:
                optimizer.zero_grad()
            loss = model.loss(batch)
            (loss / accumulate).backward()
            if index % accumulate == accumulate - 1:
                optimizer.step()
        scheduler.step()
        pruner.step()
    return model


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("options", "accumulate"),
    [({}, 1), ({"decay": "weight"}, 3), ({"match_step": "each direction"}, 2)],
)
def test_training_is_that_of_a_loop_by_hand(kind, options, accumulate):
    options = {"every": 1, **NAMED, **options}
    model = net(optimizer=kind)
    trainer(3, RMTPrunerCallback(**options), accumulate_grad_batches=accumulate).fit(
        model, batches()
    )
    expected = by_hand(kind, 3, accumulate, **options)
    assert_equal(dict(model.state_dict()), dict(expected.state_dict()))
    assert isinstance(model.first.inner, rt.SplitLinear)


def test_manual_optimization():
    options = {"every": 1, **NAMED}
    model = net(automatic=False)
    model.configure_optimizers = lambda: optimizer_of(model, "adam")[0][0]
    trainer(2, RMTPrunerCallback(**options)).fit(model, batches())
    expected = by_hand("adam", 2, **options)  # its learning rate is halved after two epochs
    assert_equal(dict(model.state_dict()), dict(expected.state_dict()))


def test_a_frozen_layer_is_left_alone():
    model, callback = net(), RMTPrunerCallback(every=1, bulk_keep=0.1)
    model.first.requires_grad_(False)
    trainer(1, callback).fit(model, batches())
    assert isinstance(model.first, nn.Linear)
    assert isinstance(model.second, rt.SplitLinear)
    (reason,) = [s["reason"] for s in callback.history[0].skipped if s["name"] == "first"]
    assert reason.startswith("frozen")


def test_fewer_epochs_than_a_cycle():
    model, callback = net(), RMTPrunerCallback(every=3)
    training = trainer(2, callback)
    training.fit(model, batches())
    assert callback.history == []
    assert callback.pruner.epoch == 2
    assert not any(isinstance(module, rt.SplitLayer) for module in model.modules())
    assert not any(name.startswith("rmtspec") for name in training.callback_metrics)


def test_nan_loss_leaves_the_split_out():
    model, callback = net(optimizer="sgd"), RMTPrunerCallback(every=1, **NAMED)
    model.poison = 1
    watched = pytest.warns(RmtspecWarning, match="No layer is split after epoch 2: the loss is nan")
    with watched:
        trainer(2, callback).fit(model, batches())
    assert len(callback.history) == 1
    assert isinstance(model.first.inner, nn.Linear)


def test_a_second_fit_goes_on():
    model, callback = net(), RMTPrunerCallback(every=2, **NAMED)
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.1)
    training = trainer(3, callback)
    training.fit(model, batches())
    training.fit_loop.max_epochs = 5
    training.fit(model, batches())
    assert callback.pruner.epoch == 5
    assert len(callback.history) == 2
    assert isinstance(model.first.inner, rt.SplitLinear)
    assert [entry["name"] for entry in callback.pruner.state_dict()["splits"]] == [
        "first",
        "first.inner",
    ]


# ---------------------------------------------------------------------------- checkpoints


class Save(lightning.Callback):
    """Checkpoints at the ends of the second epoch: there are several."""

    def __init__(self, folder):
        self.folder = folder

    def save(self, training, name):
        training.save_checkpoint(self.folder / f"{name}.ckpt")

    def on_train_batch_end(self, training, model, outputs, batch, index):
        if training.current_epoch == 1 and index == 5:
            self.save(training, "last batch")

    def on_validation_end(self, training, model):
        if training.current_epoch == 1:
            self.save(training, "validation")

    def on_train_epoch_end(self, training, model):
        if training.current_epoch == 1:
            self.save(training, "before the split")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Return (folder of checkpoints, states at the end)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model, callback = net(), RMTPrunerCallback(every=1, **NAMED)
    keep = ModelCheckpoint(
        folder,
        "epoch {epoch}",
        save_top_k=-1,
        save_on_train_epoch_end=True,
        auto_insert_metric_name=False,
    )
    training = trainer(4, Save(folder), callback, keep)
    training.fit(model, batches(), batches(2))
    return folder, copy.deepcopy(states(training, model, callback))


@pytest.mark.parametrize(
    "name", ["epoch 0", "epoch 1", "last batch", "validation", "before the split"]
)
def test_a_resumed_training_ends_at_the_same_bits(unbroken, name):
    folder, expected = unbroken
    model, callback = Net(), RMTPrunerCallback(every=1, **NAMED)
    training = trainer(4, callback)
    training.fit(model, batches(), batches(2), ckpt_path=folder / f"{name}.ckpt")
    assert_equal(states(training, model, callback), expected)
    assert len(callback.history) == 4
    assert not model._load_state_dict_pre_hooks


def test_a_checkpoint_before_any_split(tmp_path):
    def run(epochs, model, **options):
        callback = RMTPrunerCallback(every=2, **NAMED)
        training = trainer(epochs, callback)
        training.fit(model, batches(), **options)
        return training, states(training, model, callback)

    first, _ = run(1, net())
    first.save_checkpoint(tmp_path / "one.ckpt")
    _, resumed = run(4, Net(), ckpt_path=tmp_path / "one.ckpt")
    assert_equal(resumed, run(4, net())[1])


def test_a_model_that_was_pruned_before_is_resumed(tmp_path):
    def run(epochs, **options):
        model, callback = net(), RMTPrunerCallback(every=1, **NAMED)
        rt.prune(model, ranks={"second": 5}, fit_cutoff=1e-12, inplace=True)
        model.configure_optimizers = lambda: torch.optim.Adam(model.parameters())
        training = trainer(epochs, callback)
        training.fit(model, batches(), **options)
        return training, model

    first, _ = run(1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    _, resumed = run(3, ckpt_path=tmp_path / "one.ckpt")
    assert isinstance(resumed.second, rt.SplitLinear)
    assert isinstance(resumed.first.inner, rt.SplitLinear)
    assert_equal(dict(resumed.state_dict()), dict(run(3)[1].state_dict()))


def test_a_fresh_model_is_tested_with_a_checkpoint(unbroken):
    folder, expected = unbroken
    model = Net()
    trainer(1, RMTPrunerCallback(**NAMED)).test(
        model, batches(2), ckpt_path=folder / "epoch 3.ckpt", verbose=False
    )
    assert_equal(dict(model.state_dict()), expected["model"])
    assert not model._load_state_dict_pre_hooks


def test_an_earlier_checkpoint_is_tested_after_more_splits(unbroken):
    folder, _ = unbroken
    model, callback = net(), RMTPrunerCallback(every=1, **NAMED)
    training = trainer(2, callback)
    training.fit(model, batches())
    assert isinstance(model.first.inner, rt.SplitLinear)
    saved = torch.load(folder / "epoch 0.ckpt", weights_only=True)
    training.test(model, batches(2), ckpt_path=folder / "epoch 0.ckpt", verbose=False)
    assert_equal(dict(model.state_dict()), dict(saved["state_dict"]))


def test_a_model_that_is_split_already_goes_back_to_a_checkpoint(unbroken):
    folder, expected = unbroken
    model, callback = net(), RMTPrunerCallback(every=1, **NAMED)
    trainer(1, callback).fit(model, batches())
    model.kind = "adam"
    model.configure_optimizers = lambda: optimizer_of_split(model)
    training = trainer(4, callback)
    training.fit(model, batches(), batches(2), ckpt_path=folder / "epoch 1.ckpt")
    assert_equal(states(training, model, callback), expected)


def optimizer_of_split(model):
    """Like `optimizer_of`, for a model whose first layer is split twice."""
    parameters = dict(model.named_parameters())
    of_first = [
        parameters[name] for name in parameters if name.startswith("first") and "bias" not in name
    ]
    weights = [model.last.weight, *of_first, model.second.weight]
    biases = [model.first.outer.bias, model.second.bias, model.last.bias]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "lr": 0.01}, {"params": biases, "lr": 0.003}], weight_decay=0.01
    )
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


def test_a_checkpoint_is_loaded_by_hand(unbroken):
    folder, expected = unbroken
    state = rt.read_state_dict(folder / "epoch 3.ckpt")
    model = split_as(Net(), state)
    model.load_state_dict(state)
    assert_equal(dict(model.state_dict()), expected["model"])


# ---------------------------------------------------------------------------- two processes


@pytest.mark.slow  # another interpreter has to import everything: this one cannot be forked
def test_two_processes_train_as_one(tmp_path):
    script = Path(__file__).with_name("lightning_in_two_processes.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    one, *both = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for name in ("alone", "0", "1", "resumed 0", "resumed 1")
    )
    for state in both:
        assert_equal(state, both[0])
    assert list(one) == list(both[0])
    factors = [f"first.{name}.weight" for name in ("outer", "inner.outer", "inner.inner")]
    for name in ("first.weight", "first.outer.bias", "last.weight", "last.bias"):
        two, alone = (
            torch.linalg.multi_dot([state[factor] for factor in factors])
            if name == "first.weight"
            else state[name]
            for state in (both[0], one)
        )
        # The mean of two halves is not rounded like that of the whole; nor are the factors,
        # whose signs are free.
        torch.testing.assert_close(two, alone, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------- what is refused


def refused(message, model=None, callback=None, training=None, **options):
    training = training or trainer(1, callback or RMTPrunerCallback())
    model = model or net()
    before = dict(model.state_dict())
    with pytest.raises(InvalidValueError, match=message):
        training.fit(model, batches(), **options)
    assert_equal(dict(model.state_dict()), before)


def test_two_optimizers_are_refused():
    model = net(automatic=False)
    model.configure_optimizers = lambda: [
        torch.optim.SGD(model.first.parameters()),
        torch.optim.SGD(model.second.parameters()),
    ]
    refused("has 2 optimizers; expected one.*Return a single one from configure_opt", model)


def test_nonsense_in_an_option_is_refused_before_training():
    refused("`every` is 0", callback=RMTPrunerCallback(every=0))


def test_a_parameter_without_an_optimizer_is_refused():
    model = net()
    model.configure_optimizers = lambda: torch.optim.SGD(model.first.parameters(), lr=0.1)
    refused("does not hold second.weight", model)


def test_averages_of_weights_are_refused():
    training = trainer(1, RMTPrunerCallback(), StochasticWeightAveraging(0.1))
    refused("StochasticWeightAveraging keeps a copy of the model.*Leave it out", training=training)


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "XLAStrategy", "Mine"])
def test_strategies_that_shard_are_refused(name):
    whole = type("DDPStrategy", (), {}) if name in ("DeepSpeedStrategy", "XLAStrategy") else object
    strategy = type(name, (whole,), {"launcher": None})()
    stub = types.SimpleNamespace(strategy=strategy, callbacks=[])
    with pytest.raises(InvalidValueError, match=rf"The strategy is {name}.*Use a single device"):
        RMTPrunerCallback().setup(stub, net(), "fit")


def test_processes_that_do_not_bring_the_model_back_are_refused():
    training = trainer(1, RMTPrunerCallback(), strategy="ddp_spawn", devices=2)
    with pytest.raises(InvalidValueError, match=r"by spawn or fork.*strategy=\"ddp\""):
        training.callbacks[-1].setup(training, net(), "fit")


def test_a_checkpoint_without_the_state_is_refused(tmp_path):
    model, callback = net(), RMTPrunerCallback(every=1, **NAMED)
    training = trainer(1, callback)
    training.fit(model, batches())
    training.save_checkpoint(tmp_path / "full.ckpt")
    content = torch.load(tmp_path / "full.ckpt", weights_only=True)
    del content["callbacks"]
    torch.save(content, tmp_path / "bare.ckpt")
    refused("has split layers but no state", Net(), ckpt_path=tmp_path / "bare.ckpt")


def test_an_optimizer_in_another_order_is_refused(unbroken):
    folder, _ = unbroken
    model = Net()

    def other():
        (optimizer,), schedulers = optimizer_of(model, "adam")
        optimizer.param_groups[0]["params"].reverse()
        return [optimizer], schedulers

    model.configure_optimizers = other
    callback = RMTPrunerCallback(every=1, **NAMED)
    with pytest.raises(InvalidValueError, match="another order than in the checkpoint"):
        trainer(4, callback).fit(model, batches(), ckpt_path=folder / "epoch 1.ckpt")


# ---------------------------------------------------------------------------- the import


HOME = "rmtspec.adapters.torch.callbacks.lightning"


def test_the_message_without_lightning(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, HOME)
    with pytest.raises(MissingDependencyError, match=r'pip install "rmtspec\[lightning\]"'):
        importlib.import_module(HOME)


@pytest.mark.parametrize("installed", [False, True])
def test_the_old_name_of_lightning(monkeypatch, installed):
    old = types.ModuleType("pytorch_lightning")
    old.Callback = type("Callback", (), {})
    if installed:  # and not imported
        monkeypatch.delitem(sys.modules, "lightning.pytorch")
    else:
        monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", old)
    monkeypatch.delitem(sys.modules, HOME)
    callback_type = importlib.import_module(HOME).RMTPrunerCallback
    assert issubclass(callback_type, old.Callback)
