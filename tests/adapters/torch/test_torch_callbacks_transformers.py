"""The callback for transformers, with its real Trainer on tiny models made from a config."""

import copy
import gc
import importlib
import pickle
import shutil
import sys
import types

import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch.callbacks import split_as
from rmtspec.adapters.torch.callbacks.transformers import RMTPrunerCallback
from rmtspec.errors import (
    InvalidValueError,
    MissingDependencyError,
    RmtspecWarning,
)

RULE = {"rule": "fraction", "keep": 0.3, "fit_cutoff": None, "recut": "factors"}
#: Some layers are split, in the next cycle one factor of each, and then nothing more.
CHOSEN = {
    "bert": {"include": r"(intermediate\.dense|query)(\.inner)?$", **RULE},
    "gpt2": {"include": r"c_fc(\.inner)?$", **RULE},
    "net": {"include": r"^first(\.inner)?$", **RULE},
}


@pytest.fixture(autouse=True, scope="module")
def fewer_objects_to_collect():
    """Exempt imported modules from the garbage collection with which the Trainer begins."""
    gc.freeze()
    yield
    gc.unfreeze()


class Net(nn.Module):
    """Not a model of transformers: the Trainer accepts any module."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(40, 60)
        self.second = nn.Linear(60, 50)
        self.last = nn.Linear(50, 3)
        self.poison = -1
        self.harm = True
        self.calls = 0

    def forward(self, x, labels):
        self.calls += 1
        outputs = self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))
        loss = nn.functional.mse_loss(outputs, labels)
        if self.calls == self.poison:
            loss = loss * float("nan") if self.harm else loss + float("nan")
        return {"loss": loss, "logits": outputs}


def net():
    torch.manual_seed(0)
    return Net()


def bert():
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
        )
    )


def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=40, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0,
        )
    )  # fmt: skip


BUILD = {"bert": bert, "gpt2": gpt2, "net": net}
STEPS = 4  # in an epoch


def examples(name, count=8 * STEPS):
    generator = torch.Generator().manual_seed(1)
    if name == "net":
        x = torch.randn(count, 40, generator=generator)
        return [{"x": row, "labels": row[:3] * row[3:6]} for row in x]
    texts = torch.randint(40, (count, 12), generator=generator)
    return [{"input_ids": text, "labels": text} for text in texts]


class Ordered(Trainer):
    """Without shuffling."""

    def _get_train_sampler(self, *_, **__):
        return SequentialSampler(self.train_dataset)


def arguments(folder, epochs, **options):
    return TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        **{
            "per_device_train_batch_size": 8,
            "learning_rate": 0.01,
            "weight_decay": 0.01,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            **options,
        },
    )


def trainer(folder, epochs, model, *callbacks, kind=Trainer, optimizers=(None, None), **options):
    name = {"BertForMaskedLM": "bert", "GPT2LMHeadModel": "gpt2"}.get(type(model).__name__, "net")
    data = examples(name)
    return kind(
        model,
        arguments(folder, epochs, **options),
        train_dataset=data,
        eval_dataset=data,
        callbacks=list(callbacks),
        optimizers=optimizers,
    )


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one, other):
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name


def decided(callback):
    """Return what was decided in each cycle, without the times it took."""
    reports = [report.to_dict() for report in callback.history]
    for report in reports:
        for row in report["rows"]:
            del row["seconds"]
    return reports


# ---------------------------------------------------------------------------- training


class Watch(TrainerCallback):
    """The state at the start of each epoch."""

    def __init__(self):
        self.parameters, self.decays = [], []

    def on_epoch_begin(self, args, state, control, model=None, optimizer=None, **_):
        self.parameters.append(rt.count_parameters(model))
        names = {id(p): name for name, p in model.named_parameters()}
        groups = [[names.pop(id(p)) for p in g["params"]] for g in optimizer.param_groups]
        assert not names
        assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0]
        self.decays.append(groups[0])


def test_layers_are_split_after_the_epochs_of_the_schedule(tmp_path):
    model, callback, watch = net(), RMTPrunerCallback(every=2, bulk_keep=0.1), Watch()
    assert callback.pruner is None
    assert callback.history == []
    training = trainer(tmp_path, 5, model, callback, watch, logging_steps=1)
    training.train()
    before, early, split, _, final = watch.parameters
    assert before == early == 40 * 60 + 60 + 60 * 50 + 50 + 50 * 3 + 3
    assert split < before
    assert final <= split
    assert watch.parameters[3] == split
    assert "first.weight" in watch.decays[1]
    assert watch.decays[2][:2] == ["first.inner.weight", "first.outer.weight"]
    assert callback.pruner.epoch == 5
    assert callback.pruner.next_epoch == 6
    logs = [entry for entry in training.state.log_history if "rmtspec/layers_split" in entry]
    assert [(entry["epoch"], entry["step"]) for entry in logs] == [(2, 2 * STEPS), (4, 4 * STEPS)]
    assert [entry["rmtspec/parameters_before"] for entry in logs] == [before, split]
    assert [entry["rmtspec/parameters_after"] for entry in logs] == [split, final]
    assert logs[0]["rmtspec/layers_split"] == 2
    rates = [e["learning_rate"] for e in training.state.log_history if "learning_rate" in e]
    steps = 5 * STEPS
    expected = [0.01 * (steps - step) / steps for step in range(steps)]
    assert rates == pytest.approx(expected, rel=1e-12)  # the scheduler continues


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("decay", ["factors", "weight"])
def test_training_is_that_of_a_loop_by_hand(tmp_path, accumulate, decay):
    options = {"every": 1, "decay": decay, **CHOSEN["net"]}
    model = net()
    trainer(
        tmp_path,
        3,
        model,
        RMTPrunerCallback(**options),
        kind=Ordered,
        gradient_accumulation_steps=accumulate,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    ).train()

    expected = net()
    optimizer = trainer(tmp_path, 3, expected).create_optimizer()
    pruner = rt.RMTPruner(expected, optimizer, **options)
    for _ in range(3):
        for index, batch in enumerate(DataLoader(examples("net"), batch_size=8)):
            (expected(**batch)["loss"] / accumulate).backward()
            if index % accumulate == accumulate - 1:
                optimizer.step()
                optimizer.zero_grad()
        pruner.step()
    assert_same(bits(model), bits(expected))
    assert isinstance(model.first.inner, rt.SplitLinear)


def test_a_frozen_layer_is_left_alone(tmp_path):
    model, callback = net(), RMTPrunerCallback(every=1, bulk_keep=0.1)
    model.first.requires_grad_(False)
    trainer(tmp_path, 1, model, callback).train()
    assert isinstance(model.first, nn.Linear)
    assert isinstance(model.second, rt.SplitLinear)
    (reason,) = [s["reason"] for s in callback.history[0].skipped if s["name"] == "first"]
    assert reason.startswith("frozen")


def test_fewer_epochs_than_a_cycle(tmp_path):
    model, callback = net(), RMTPrunerCallback(every=3)
    training = trainer(tmp_path, 2, model, callback)
    training.train()
    assert callback.history == []
    assert callback.pruner.epoch == 2
    assert not any(isinstance(module, rt.SplitLayer) for module in model.modules())
    assert not any("rmtspec/layers_split" in entry for entry in training.state.log_history)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"logging_steps": 1, "logging_nan_inf_filter": False}, "the loss is nan"),
        ({"logging_strategy": "epoch"}, "first.inner.weight has nan or infinite entries"),
    ],
)
def test_nan_leaves_the_split_out(tmp_path, options, what):
    model, callback = net(), RMTPrunerCallback(every=1, **CHOSEN["net"])
    model.poison = 2 * STEPS  # the last step of the second epoch
    with pytest.warns(RmtspecWarning, match=f"No layer is split after epoch 2: {what}"):
        trainer(tmp_path, 2, model, callback, **options).train()
    assert len(callback.history) == 1
    assert isinstance(model.first.inner, nn.Linear)


def test_the_loss_of_another_epoch_does_not_count(tmp_path):
    model, callback = net(), RMTPrunerCallback(every=2, **CHOSEN["net"])
    model.poison, model.harm = 1, False
    options = {"logging_strategy": "epoch", "logging_nan_inf_filter": False}
    trainer(tmp_path, 2, model, callback, **options).train()
    assert isinstance(model.first, rt.SplitLinear)


def test_a_second_training_goes_on(tmp_path):
    model, callback = net(), RMTPrunerCallback(every=2, **CHOSEN["net"])
    training = trainer(tmp_path, 3, model, callback)
    training.train()
    pruner = callback.pruner
    training.train()
    assert callback.pruner is pruner
    assert pruner.epoch == 6
    assert len(callback.history) == 3
    assert isinstance(model.first.inner, rt.SplitLinear)


# ---------------------------------------------------------------------------- checkpoints


def whole(folder, name, **options):
    """Train three epochs and return (bits at the end, callback)."""
    model, callback = BUILD[name](), RMTPrunerCallback(every=1, **CHOSEN[name])
    trainer(folder, 3, model, callback, **options).train()
    return bits(model), callback


def resumed(folder, name, step, callback=None, model=None, **options):
    model = model or BUILD[name]()
    callback = callback or RMTPrunerCallback(every=1, **CHOSEN[name])
    training = trainer(folder / "resumed", 3, model, callback, **options)
    training.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    return bits(model), callback


@pytest.mark.parametrize(("name", "epochs"), [("bert", 1), ("gpt2", 2), ("net", 2)])
def test_a_resumed_training_ends_at_the_same_bits(tmp_path, name, epochs):
    expected, first = whole(tmp_path, name, save_strategy="epoch")
    assert any(".inner.inner." in key for key in expected)
    state, callback = resumed(tmp_path, name, epochs * STEPS)
    assert_same(state, expected)
    assert callback.pruner.epoch == 3
    assert decided(callback) == decided(first)
    assert callback.state()["training"]["order"] == first.state()["training"]["order"]


def test_resumed_within_an_epoch_and_before_its_end_was_told(tmp_path):
    options = {"save_strategy": "steps", "save_steps": STEPS // 2, "optim": "sgd"}
    expected, first = whole(tmp_path, "net", **options)
    for half in (1, 2, 5):
        state, callback = resumed(tmp_path, "net", half * STEPS // 2, **options)
        assert_same(state, expected)
        assert decided(callback) == decided(first)


def own_optimizer(model):
    """Two groups in another order than the model's."""
    weights = [model.last.weight, model.first.weight, model.second.weight]
    biases = [model.first.bias, model.second.bias, model.last.bias]
    optimizer = torch.optim.SGD(
        [{"params": weights, "lr": 0.01}, {"params": biases, "lr": 0.003}], momentum=0.9
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)


def test_an_optimizer_that_was_made_before_is_resumed(tmp_path):
    model, callback = net(), RMTPrunerCallback(every=1, **CHOSEN["net"])
    options = {"save_strategy": "epoch"}
    trainer(tmp_path, 3, model, callback, optimizers=own_optimizer(model), **options).train()
    again = net()
    state, _ = resumed(
        tmp_path, "net", 2 * STEPS, model=again, optimizers=own_optimizer(again), **options
    )
    assert_same(state, bits(model))


def test_a_callback_that_comes_in_later(tmp_path):
    model = net()
    trainer(tmp_path, 1, model, save_strategy="epoch").train()
    callback = RMTPrunerCallback(every=1, **CHOSEN["net"])
    state, _ = resumed(tmp_path, "net", STEPS, callback=callback, save_strategy="epoch")
    assert callback.pruner.epoch == 2
    assert "first.inner.inner.weight" in state
    folder = tmp_path / "resumed"
    again, other = resumed(folder, "net", 2 * STEPS, save_strategy="epoch")
    assert_same(again, state)
    assert other.pruner.epoch == 2


class Rated(Trainer):
    """With a metric that is best at the first evaluation."""

    def evaluate(self, *_, **__):
        metrics = {"eval_loss": float(self.state.global_step)}
        self.log(metrics)
        return metrics


@pytest.mark.parametrize("late", [False, True])
def test_the_best_model_may_be_one_with_fewer_splits(tmp_path, late):
    callback = RMTPrunerCallback(every=1, **CHOSEN["net"])
    options = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    callbacks = [] if late else [callback]
    training = trainer(tmp_path, 3, net(), *callbacks, kind=Rated, **options)
    if late:
        training.add_callback(callback)
    training.train()
    model = training.model
    assert training.state.best_model_checkpoint.endswith(f"checkpoint-{STEPS}")
    saved = rt.read_state_dict(tmp_path / f"checkpoint-{STEPS}" / "model.safetensors")
    assert isinstance(model.first.inner, nn.Linear)
    assert {name: tuple(value.shape) for name, value in bits(model).items()} == {
        name: tuple(value.shape) for name, value in saved.items()
    }
    for name, value in saved.items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_checkpoint_is_loaded_by_hand(tmp_path):
    expected, _ = whole(tmp_path, "bert", save_strategy="epoch")
    state = rt.read_state_dict(tmp_path / f"checkpoint-{3 * STEPS}" / "model.safetensors")
    model = split_as(bert(), state)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    assert_same(bits(model), expected)


def test_nothing_goes_along_with_a_copy_of_the_model(tmp_path):
    model, callback = net(), RMTPrunerCallback(every=1, **CHOSEN["net"])
    trainer(tmp_path, 1, model, callback, optimizers=own_optimizer(model)).train()
    state = bits(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(bits(other), state)
        (hook,) = other._load_state_dict_pre_hooks.values()
        assert hook.hook._optimizer is None
        other.load_state_dict(bits(net()))  # a dense one: the layers follow
        assert isinstance(other.first, nn.Linear)
    assert isinstance(model.first, rt.SplitLinear)


# ---------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a checkpoint after one epoch, with split layers: all of it, and the model alone."""
    folder = tmp_path_factory.mktemp("one epoch")
    callback = RMTPrunerCallback(every=1, **CHOSEN["bert"])
    trainer(folder, 1, bert(), callback, save_strategy="epoch").train()
    folder_of_step = folder / f"checkpoint-{STEPS}"
    shutil.copytree(folder_of_step, folder / "model alone")
    (folder / "model alone" / "optimizer.pt").unlink()
    return str(folder_of_step), str(folder / "model alone")


def test_a_callback_that_was_added_late_is_refused_with_a_checkpoint(checkpoint, tmp_path):
    # With the optimizer's state torch is the first to notice.
    for folder, error, message in (
        (checkpoint[0], ValueError, "parameter group that doesn't match the size"),
        (checkpoint[1], InvalidValueError, r"weights were not loaded.*callbacks=\[callback"),
    ):
        training = trainer(tmp_path, 2, bert())
        training.add_callback(RMTPrunerCallback(every=1, **CHOSEN["bert"]))
        with pytest.raises(error, match=message):
            training.train(resume_from_checkpoint=folder)


def test_model_init_is_refused_with_a_checkpoint(checkpoint, tmp_path):
    training = Trainer(
        args=arguments(tmp_path, 2),
        model_init=bert,
        train_dataset=examples("bert"),
        callbacks=[RMTPrunerCallback(every=1, **CHOSEN["bert"])],
    )
    with pytest.raises(InvalidValueError, match=r"weights were not loaded.*not `model_init`"):
        training.train(resume_from_checkpoint=checkpoint[1])


def test_an_optimizer_in_another_order_is_refused(checkpoint, tmp_path):
    model = bert()
    groups = trainer(tmp_path, 1, model).create_optimizer().param_groups
    groups[0]["params"].reverse()
    optimizer = torch.optim.AdamW([{"params": group["params"]} for group in groups])
    callback = RMTPrunerCallback(every=1, **CHOSEN["bert"])
    training = trainer(tmp_path, 2, model, callback, optimizers=(optimizer, None))
    with pytest.raises(InvalidValueError, match="another order than in the checkpoint"):
        training.train(resume_from_checkpoint=checkpoint[0])


REMADE = {"restore_callback_states_from_checkpoint": True, "save_strategy": "epoch"}


def test_a_callback_that_the_trainer_makes_itself(checkpoint, tmp_path):
    model, callback = bert(), RMTPrunerCallback(every=1, **CHOSEN["bert"])
    training = trainer(tmp_path, 2, model, callback, **REMADE)
    training.train(resume_from_checkpoint=checkpoint[0])
    (made,) = [c for c in training.callback_handler.callbacks if isinstance(c, RMTPrunerCallback)]
    assert made is not callback
    assert made.pruner.epoch == 2
    assert any(".inner.inner." in name for name in model.state_dict())


def test_options_that_a_checkpoint_cannot_hold_are_named(tmp_path):
    def callback():
        return RMTPrunerCallback(every=lambda cycle: 1, **CHOSEN["net"])

    trainer(tmp_path, 1, net(), callback(), save_strategy="epoch").train()
    training = trainer(tmp_path, 2, net(), callback(), **REMADE)
    with pytest.raises(InvalidValueError, match="cannot hold every"):
        training.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS}"))


def test_two_callbacks_are_refused(tmp_path):
    training = trainer(tmp_path, 1, net(), RMTPrunerCallback(), RMTPrunerCallback(every=2))
    with pytest.raises(InvalidValueError, match="has 2 callbacks of type RMTPrunerCallback"):
        training.train()


def test_nonsense_in_an_option_is_refused_before_training(tmp_path):
    model = net()
    training = trainer(tmp_path, 1, model, RMTPrunerCallback(every=0))
    with pytest.raises(InvalidValueError, match="`every` is 0"):
        training.train()
    assert_same(bits(model), bits(net()))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"fsdp": "full_shard"}, "FSDP"),
        ({"deepspeed": "config.json"}, "DeepSpeed"),
        ({"parallel_mode": "distributed"}, r"several processes \(distributed\)"),
        ({"parallel_mode": "tpu"}, r"several processes \(tpu\)"),
    ],
)
def test_several_processes_are_refused(options, what):
    stub = {"fsdp": None, "deepspeed": None, "parallel_mode": "not_parallel", **options}
    for event in (RMTPrunerCallback().on_init_end, RMTPrunerCallback().on_train_begin):
        with pytest.raises(InvalidValueError, match=f"The Trainer uses {what}.*in one process"):
            event(types.SimpleNamespace(**stub), None, None)


def test_the_message_without_transformers(monkeypatch):
    home = "rmtspec.adapters.torch.callbacks.transformers"
    monkeypatch.setitem(sys.modules, "transformers.trainer_callback", None)
    monkeypatch.delitem(sys.modules, home)
    with pytest.raises(MissingDependencyError, match=r'pip install "rmtspec\[transformers\]"'):
        importlib.import_module(home)
