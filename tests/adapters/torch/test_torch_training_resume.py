"""Saving and resuming: the training continues bit for bit, and no file can harm it."""

import builtins
import collections
import math
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from small_training import network, pruner_of
from torch import nn
from torch.optim import lr_scheduler

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError


class Net(nn.Module):
    """Convolutions with groups and channels last, a table, buffers, dropout, a frozen layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(32, 48, 3, groups=2)
        self.norm = nn.BatchNorm2d(48)
        self.conv2 = nn.Conv2d(48, 40, 3, padding=1)
        self.table = nn.Embedding(90, 40)
        self.fc = nn.Linear(40, 60)
        self.drop = nn.Dropout(0.3)
        self.frozen = nn.Linear(60, 60)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(60, 20)
        self.conv2.to(memory_format=torch.channels_last)

    def forward(self, x, tokens):
        y = self.conv2(torch.relu(self.norm(self.conv(x)))).mean((2, 3)) + self.table(tokens)
        return self.head(self.drop(torch.relu(self.frozen(torch.relu(self.fc(y))))))


RANKS = {"conv": 9, "conv2": 12, "table": 8, "fc": 30}
AGAIN = {"fc.inner": 6, "conv2.outer": 5}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=3e-3, amsgrad=True, weight_decay=1e-2)


class Run:
    """A training of six epochs: layers are split after the second, and again after the fourth."""

    def __init__(self, make, seed=0, **options):
        torch.manual_seed(seed)
        self.model = Net()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make([
            {"params": trained[:3], "lr": 0.02},
            {"params": trained[3:]},
        ])  # fmt: skip
        options = {"every": 2, "ranks": RANKS, "recut": "factors", **options}
        self.pruner = pruner_of(self.model, self.optimizer, **options)
        self.others = {
            "schedule": lr_scheduler.OneCycleLR(self.optimizer, [0.05, 0.02], total_steps=20),
            "scaler": torch.amp.GradScaler("cpu", init_scale=2.0**8),
        }
        torch.manual_seed(seed + 100)

    def epochs(self, stop):
        for epoch in range(self.pruner.epoch, stop):
            generator = torch.Generator().manual_seed(epoch)
            for _ in range(2):
                x = torch.randn(8, 32, 5, 5, generator=generator)
                tokens = torch.randint(90, (8,), generator=generator)
                self.optimizer.zero_grad()
                loss = self.model(x, tokens).square().mean()
                self.others["scaler"].scale(loss).backward()
                self.others["scaler"].step(self.optimizer)
                self.others["scaler"].update()
                self.others["schedule"].step()
            if epoch == 3:
                self.pruner._ranks = AGAIN
            self.pruner.step(loss)
        return self

    def state(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.others["schedule"].state_dict(),
            "scaler": self.others["scaler"].state_dict(),
        }


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def assert_equal(one, two, where=""):
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
        assert (one.dtype, one.stride()) == (two.dtype, two.stride()), where
    elif isinstance(one, dict):
        assert list(one) == list(two), where
        for key in one:
            assert_equal(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for index, pair in enumerate(zip(one, two, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert one == two, where


@pytest.fixture(scope="module")
def unbroken():
    made = {}

    def run(make, **options):
        key = (make, *options.items())
        if key not in made:
            made[key] = Run(make, **options).epochs(6)
        return made[key]

    return run


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (sgd, {}),
        (adamw, {}),
        (sgd, {"match_step": "each direction", "decay": "weight"}),
        (adamw, {"decay": "weight"}),
    ],
    ids=["sgd", "adamw", "sgd-directions", "adamw-weight"],
)
@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
def test_resumed_training_is_the_unbroken_one(unbroken, make, options, epoch, tmp_path):
    whole = unbroken(make, **options)
    names = [entry["name"] for entry in whole.pruner.state_dict()["splits"]]
    assert sorted(names) == sorted([*RANKS, *AGAIN])
    first = Run(make, **options).epochs(epoch)
    first.pruner.save(tmp_path / "run.pt", **first.others)
    second = Run(make, seed=7, **options)  # built again, from another seed
    second.pruner.resume(tmp_path / "run.pt", **second.others)
    assert second.pruner.epoch == epoch
    assert second.pruner.next_epoch == first.pruner.next_epoch
    assert_equal(second.state(), first.state())
    second.epochs(6)
    assert_equal(second.state(), whole.state())
    assert second.pruner.state_dict()["splits"] == whole.pruner.state_dict()["splits"]
    drop = ("seconds",)
    rows = [
        [{k: v for k, v in row.items() if not k.startswith(drop)} for row in report.rows]
        for run in (second, whole)
        for report in run.pruner.history
    ]
    assert rows[:3] == rows[3:]
    assert repr(second.pruner.history[0]) == repr(whole.pruner.history[0])
    assert type(second.pruner.history[0]) is type(whole.pruner.history[0]) is rmtspec.Plan


def test_a_file_can_be_saved_again_and_resumed_twice(tmp_path):
    path = tmp_path / "run.pt"
    run = Run(sgd).epochs(3)
    run.pruner.save(path, **run.others)
    for epoch in (4, 5):
        again = Run(sgd)
        again.pruner.resume(path, **again.others)
        again.epochs(epoch)
        again.pruner.save(path, **again.others)
    assert_equal(again.state(), Run(sgd).epochs(5).state())
    assert names_in(tmp_path) == ["run.pt"]


def test_state_dicts_alone(tmp_path):
    """Without `save`: the pruner's state first, since it makes the layers that the others fill."""
    run = Run(sgd).epochs(5)
    states = {"pruner": run.pruner.state_dict(), **run.state()}
    torch.save(states, tmp_path / "mine.pt")
    read = torch.load(tmp_path / "mine.pt", weights_only=True)
    new = Run(sgd, seed=3)
    new.pruner.load_state_dict(read["pruner"])
    new.model.load_state_dict(read["model"])
    new.optimizer.load_state_dict(read["optimizer"])
    assert_equal(new.model.state_dict(), run.model.state_dict())
    assert new.pruner.epoch == 5
    assert [type(m) for m in new.model.modules()] == [type(m) for m in run.model.modules()]
    assert new.model.fc.inner.rank == 6
    assert new.pruner.state_dict() == run.pruner.state_dict()
    flags = {name: p.requires_grad for name, p in run.model.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in new.model.named_parameters()}


def test_steps_are_matched_as_before_after_resuming(tmp_path):
    """The shares are those of the split: factors have changed since, and would give others."""
    run = Run(sgd).epochs(3)
    run.pruner.save(tmp_path / "run.pt", **run.others)
    new = Run(sgd)
    new.pruner.resume(tmp_path / "run.pt", **new.others)
    shares = [
        [pruner._optimizer._share[p] for p in model.parameters() if p in pruner._optimizer._share]
        for pruner, model in ((run.pruner, run.model), (new.pruner, new.model))
    ]
    assert shares[0] == shares[1]
    assert len(shares[0]) == 8


def test_dtype_flags_and_hooks_of_rebuilt_layers():
    def build():
        model = network().to(torch.bfloat16).eval()
        seen = []
        model.layers[0].register_forward_hook(lambda *_: seen.append(1))
        return model, pruner_of(model, sgd(model.parameters()), ranks={"layers.0": 5}), seen

    _, first, _ = build()
    first.step()
    model, second, seen = build()
    second.load_state_dict(first.state_dict())
    layer = model.layers[0]
    assert type(layer) is rt.SplitLinear
    assert layer.inner.weight.dtype == torch.bfloat16
    assert layer.training is layer.inner.training is False
    model(torch.ones(1, 40, dtype=torch.bfloat16))
    assert seen == [1]


# ------------------------------------------------------------------------------- schedulers, others


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
        lambda o: lr_scheduler.LambdaLR(o, lambda e: np.cos(e / 10)),  # a NumPy number
        lambda o: lr_scheduler.ReduceLROnPlateau(o),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
        ),
    ],
    ids=["MultiStepLR", "LambdaLR", "ReduceLROnPlateau", "CyclicLR", "SequentialLR"],
)
def test_states_of_schedulers_can_be_read(make, tmp_path):
    made = []
    for _ in range(2):
        model = network()
        optimizer = sgd(model.parameters())
        made.append((optimizer, make(optimizer), pruner_of(model, optimizer)))
    optimizer, scheduler, pruner = made[0]
    model(torch.ones(1, 40)).sum().backward()
    optimizer.step()
    scheduler.step(*([np.float64(0.5)] if "Plateau" in type(scheduler).__name__ else []))
    pruner.save(tmp_path / "run.pt", scheduler=scheduler)
    made[1][2].resume(tmp_path / "run.pt", scheduler=made[1][1])
    assert made[1][0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


class Part:
    def __init__(self, state):
        self.held = state

    def state_dict(self):
        return self.held

    def load_state_dict(self, state):
        self.held = state


def test_numbers_of_numpy_become_pythons(tmp_path):
    best = {"score": np.float32(0.5), "at": (np.int64(3), [np.bool_(True)]), "why": None}
    part = Part({**best, "order": collections.OrderedDict(a=1), 5: {"x": torch.ones(2)}})
    model = network()
    pruner = pruner_of(model, sgd(model.parameters()))
    pruner.save(tmp_path / "run.pt", best=part)
    new = Part({})
    pruner.resume(tmp_path / "run.pt", best=new)
    assert new.held["score"] == 0.5
    assert new.held["at"] == (3, [True])
    assert type(new.held["at"][0]) is int
    assert new.held["order"] == {"a": 1}
    assert torch.equal(new.held[5]["x"], torch.ones(2))


@pytest.mark.parametrize("held", [np.ones(3), Part({}), {"deep": [Part(None)]}, lambda: 1])
def test_what_could_not_be_read_again_is_not_written(held, tmp_path):
    model = network()
    pruner = pruner_of(model, sgd(model.parameters()))
    pruner.save(tmp_path / "run.pt")
    before = (tmp_path / "run.pt").read_bytes()
    with pytest.raises(InvalidTypeError, match=r"The state of 'odd' holds an object.*Leave it out"):
        pruner.save(tmp_path / "run.pt", odd=Part({"x": held}))
    assert (tmp_path / "run.pt").read_bytes() == before
    assert names_in(tmp_path) == ["run.pt"]


def test_others_that_cannot_be_saved(tmp_path):
    model = network()
    pruner = pruner_of(model, sgd(model.parameters()))
    with pytest.raises(InvalidTypeError, match="'epoch' is a int; expected an object with state"):
        pruner.save(tmp_path / "run.pt", epoch=3)
    with pytest.raises(InvalidValueError, match="'model' is saved anyway; leave it out"):
        pruner.save(tmp_path / "run.pt", model=model)
    assert not names_in(tmp_path)


# ------------------------------------------------------------------------------- refusals


@pytest.fixture
def saved(tmp_path):
    """Return the file of a training whose first layer was split."""
    model = network()
    optimizer = sgd(model.parameters())
    pruner = pruner_of(model, optimizer, ranks={"layers.0": 5})
    model(torch.ones(2, 40)).sum().backward()
    optimizer.step()
    pruner.step()
    pruner.save(tmp_path / "run.pt")
    return tmp_path / "run.pt"


def refused(pruner, path, kind, message, **others):
    """`resume` raises, and model, optimizer, pruner and random state are unchanged."""
    model, optimizer = pruner.model, pruner._optimizer.optimizer
    modules = list(model.modules())
    values = [p.clone() for p in model.parameters()]
    groups = [list(group["params"]) for group in optimizer.param_groups]
    state, random = pruner.state_dict(), torch.get_rng_state()
    with pytest.raises(kind, match=message):
        pruner.resume(path, **others)
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(map(torch.equal, values, model.parameters()))
    for before, group in zip(groups, optimizer.param_groups, strict=True):
        assert [id(p) for p in before] == [id(p) for p in group["params"]]
    assert pruner.state_dict() == state
    assert torch.equal(torch.get_rng_state(), random)


def fresh(dims=(40, 60, 50, 20), make=sgd):
    model = network(list(dims))
    return pruner_of(model, make(model.parameters()))


def test_a_file_of_another_model(saved):
    refused(fresh((40, 60, 50)), saved, InvalidValueError,
            r"of another model: not in this one: layers\.2\.weight, layers\.2\.bias")  # fmt: skip
    refused(fresh((40, 60, 50, 20, 7)), saved, InvalidValueError,
            r"not in the state's: layers\.3\.weight")  # fmt: skip
    refused(fresh((44, 60, 50, 20)), saved, InvalidValueError,
            r"layers\.0\.weight \(60, 40\), here \(60, 44\)")  # fmt: skip
    model = nn.Sequential(nn.Linear(40, 60))
    refused(pruner_of(model, sgd(model.parameters())), saved, InvalidValueError,
            r"not in this one: layers\.0\.weight, .* and 2 more; not in the state's")  # fmt: skip


def test_a_file_of_a_model_with_other_buffers(tmp_path):
    def build(track):
        model = nn.Sequential(nn.Linear(40, 60), nn.BatchNorm1d(60, track_running_stats=track))
        return pruner_of(model, sgd(model.parameters()), ranks={"0": 5})

    first = build(True)
    first.step()
    first.save(tmp_path / "run.pt")
    refused(build(False), tmp_path / "run.pt", InvalidValueError, r"1\.running_mean")


def test_a_file_of_another_optimizer(saved):
    refused(fresh(make=adamw), saved, InvalidValueError,
            "a training with SGD over groups of 6 parameters; this one has AdamW")  # fmt: skip
    model = network()
    first, *rest = model.parameters()
    optimizer = sgd([{"params": [first]}, {"params": rest}])
    pruner = pruner_of(model, optimizer)
    refused(pruner, saved, InvalidValueError, "this one has SGD over groups of 1, 5 parameters")


def test_other_names(saved, tmp_path):
    pruner = fresh()
    schedule = lr_scheduler.StepLR(pruner._optimizer.optimizer, 3)
    refused(pruner, saved, InvalidValueError,
            "holds the states of pruner, model, optimizer; you passed .*schedule",
            schedule=schedule)  # fmt: skip
    pruner.save(tmp_path / "with.pt", schedule=schedule)
    refused(pruner, tmp_path / "with.pt", InvalidValueError, "Expected the names that were saved")


def test_a_model_that_is_split_already(saved):
    model = network()
    pruner = pruner_of(model, sgd(model.parameters()), ranks={"layers.1": 5})
    pruner.step()
    refused(pruner, saved, InvalidValueError, "has changed since the pruner was made.*Build model")
    refused(pruner_of(model, sgd(model.parameters())), saved, InvalidValueError,
            "of another model")  # fmt: skip


def test_files_that_are_not_ours(saved, tmp_path):
    torch.save({"model": network().state_dict()}, tmp_path / "plain.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("epoch 3\n")
    (tmp_path / "json.pt").write_text('{"format": "rmtspec training"}')
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    whole = saved.read_bytes()
    for share in (0.01, 0.3, 0.8, 0.99):
        (tmp_path / f"cut{share}.pt").write_bytes(whole[: int(share * len(whole))])
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "x")
    rng = np.random.default_rng(0)
    for index in range(30):
        (tmp_path / f"noise{index}.pt").write_bytes(rng.bytes(1 + 3 * index))
    paths = [path for path in sorted(tmp_path.iterdir()) if path != saved]
    assert len(paths) == 41
    pruner = fresh()
    for path in paths:
        refused(pruner, path, FileError, f"{path.name} is not a file that RMTPruner.save wrote")
    refused(pruner, tmp_path / "none.pt", FileError, "cannot be read: no such file.*Check the path")
    refused(pruner, tmp_path, FileError, "cannot be read: is a directory")
    for path in (None, 3, saved.open("rb")):
        refused(pruner, path, InvalidTypeError, r"expected text or a pathlib\.Path")
        if hasattr(path, "close"):
            path.close()


def test_code_in_a_file_is_never_run(saved, tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return builtins.exec, ("import builtins; builtins.went_off = True",)

    path = tmp_path / "bomb.pt"
    torch.save({"format": "rmtspec training", "schema": 1, "states": Bomb()}, path)
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    pruner = fresh()
    for name in ("bomb.pt", "bomb.pkl"):
        refused(pruner, tmp_path / name, FileError, "is not a file that RMTPruner.save wrote")
    with pytest.raises(FileError, match=r"other objects than numbers.*nothing was run") as caught:
        pruner.resume(path)
    assert "trust" not in str(caught.value)  # torch's own advice is to run it
    assert not hasattr(builtins, "went_off")


def test_files_and_states_of_a_later_version(saved):
    content = torch.load(saved, weights_only=True)
    content["schema"] = 2
    torch.save(content, saved)
    refused(fresh(), saved, FileError, "has schema 2; this version of rmtspec reads up to 1")
    state = content["states"]["pruner"]
    for wrong in (None, [], {}, {"schema": 1}, content["states"]["optimizer"]):
        with pytest.raises(InvalidTypeError, match="not that of a pruner"):
            fresh().load_state_dict(wrong)
    with pytest.raises(InvalidValueError, match="The state has schema 2"):
        fresh().load_state_dict({**state, "schema": 2})


# ------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left"), RuntimeError])
def test_an_interruption_leaves_the_old_file(saved, error, monkeypatch, tmp_path):
    before = saved.read_bytes()
    real = torch.save

    def half(content, target):
        real(content, target)
        with open(target, "r+b") as stream:  # noqa: PTH123
            stream.truncate(len(before) // 2)
        raise error

    pruner = fresh()
    monkeypatch.setattr(torch, "save", half)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else FileError
    with pytest.raises(expected) as caught:
        pruner.save(saved)
    if expected is FileError:
        assert "What was there is unchanged" in str(caught.value)
    assert saved.read_bytes() == before
    with pytest.raises(expected):
        pruner.save(tmp_path / "new.pt")
    assert names_in(tmp_path) == ["run.pt"]
    monkeypatch.undo()
    fresh().resume(saved)


def test_places_that_cannot_be_written(saved, tmp_path):
    pruner = fresh()
    for path, words in (
        (tmp_path, "is a folder; expected a file name"),
        (tmp_path / "none" / "run.pt", "folder .* does not exist"),
        (saved / "run.pt", "is a file, not a folder"),
    ):
        with pytest.raises(FileError, match=words):
            pruner.save(path)
    for path in (None, 3, ""):
        with pytest.raises(InvalidTypeError, match=r"expected text or a pathlib\.Path"):
            pruner.save(path)


def test_the_file_holds_no_code_and_plain_numbers(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = torch.load(saved, weights_only=True)
    assert content["format"] == "rmtspec training"
    (entry,) = content["states"]["pruner"]["splits"]
    assert (entry["name"], entry["rank"], math.isfinite(entry["share"][0])) == ("layers.0", 5, True)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(saved) == []
