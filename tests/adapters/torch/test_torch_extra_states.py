"""Modules that keep more than tensors in the state dict: saved as JSON, given back on loading."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import rmtspec
from rmtspec import cli
from rmtspec.adapters import torch as rt
from rmtspec.errors import FileError, InvalidValueError, RmtspecWarning
from rmtspec.terms import Why


class Counting(nn.Module):
    """A network that counts, inside a block, and keeps its extra state as given."""

    def __init__(self, state=None):
        super().__init__()
        self.fc = nn.Linear(60, 80)
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state

    def forward(self, x):
        return self.fc(x)


def saved(state, place):
    smaller, _ = rt.prune(nn.Sequential(Counting(state)), ranks={"0.fc": 5})
    return rt.save(smaller, place)


@pytest.mark.parametrize(
    "state", [{"calls": 3, "rates": [0.1, None], "on": True}, [], "x", None, 0.1]
)
def test_values_come_back(tmp_path, state):
    folder = saved(state, tmp_path / "m")
    loaded = rt.load(nn.Sequential(Counting("other")), folder)
    assert loaded[0].state == state
    assert type(loaded[0].state) is type(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_come_back(tmp_path, dtype):
    folder = saved(torch.arange(6, dtype=dtype), tmp_path / "m")
    loaded = rt.load(nn.Sequential(Counting()), folder)
    assert torch.equal(loaded[0].state, torch.arange(6, dtype=dtype))


@pytest.mark.parametrize(
    "state", [{1: 2}, (1, 2), object(), float("nan"), {"deep": [torch.ones(2)]}, b"bytes"]
)
def test_what_json_would_change_is_refused(tmp_path, state):
    with pytest.raises(InvalidValueError, match=r"'0\._extra_state', a \w+ that cannot be saved"):
        saved(state, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_skeleton_without_the_state_or_with_one_more(tmp_path):
    folder = saved(7, tmp_path / "with")
    plain = nn.Sequential(nn.ModuleDict({"fc": nn.Linear(60, 80)}))
    with pytest.raises(InvalidValueError, match=r"not in the skeleton: 0\._extra_state"):
        rt.load(plain, folder)
    rt.save(rt.prune(plain, ranks={"0.fc": 5})[0], tmp_path / "without")
    with pytest.raises(InvalidValueError, match=r"not in the file: 0\._extra_state"):
        rt.load(nn.Sequential(Counting()), tmp_path / "without")


def test_under_the_names_of_a_wrapper(tmp_path):
    folder = saved({"n": 2}, tmp_path / "m")
    loaded = rt.load(nn.ModuleDict({"module": nn.Sequential(Counting())}), folder)
    assert loaded["module"][0].state == {"n": 2}


def test_a_dense_file_cannot_hold_it(tmp_path):
    folder = saved({"n": 2}, tmp_path / "m")
    with pytest.warns(RmtspecWarning, match=r"0\._extra_state are left out"):
        rmtspec.merge_checkpoint(folder, tmp_path / "dense")
    done = CliRunner().invoke(cli.main, ["merge", str(folder), str(tmp_path / "again")])
    assert done.exit_code == 0
    assert done.stderr.startswith("Warning: ")


def test_a_damaged_manifest(tmp_path):
    folder = saved({"n": 2}, tmp_path / "m")
    content = json.loads((folder / "rmtspec.json").read_text())
    (folder / "rmtspec.json").write_text(json.dumps(content | {"extra_states": 3}))
    with pytest.raises(FileError, match=r"'extra_states' is 3; expected a dict"):
        rt.load(nn.Sequential(Counting()), folder)


def test_a_layer_with_one_stays_whole():
    """Its factors have no place for it."""

    class Own(nn.Linear):
        def get_extra_state(self):
            return 1

        def set_extra_state(self, state):
            pass

    plan = rt.plan(nn.Sequential(Own(60, 80)), bulk_keep=0.0, gate=None)
    assert plan.row("0")["reason"] == Why.HOLDS_MORE.words(type="Own")
