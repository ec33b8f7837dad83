"""Checkpoints of training loops, TorchScript archives and foreign .bin files."""

import argparse
import copy
import importlib.util
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch._storage import pickled as _pickled
from rmtspec.adapters.torch._storage import state_dict as _state_dict
from rmtspec.checkpoint import matrices_in
from rmtspec.cli.commands import main
from rmtspec.errors import FileError, InvalidOptionError, InvalidOptionTypeError


@pytest.fixture(autouse=True)
def nothing_open():
    _pickled._opened.cache_clear()


def made():
    """Return a model and an optimizer that has made a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 40)).square().mean().backward()
    optimizer.step()
    return model, optimizer


MODEL, OPTIMIZER = made()
STATE = MODEL.state_dict()
OTHER = {f"net.{name}": 2.0 * tensor for name, tensor in STATE.items()}
MORE = {"optimizer": OPTIMIZER.state_dict(), "epoch": 3, "rng": torch.get_rng_state()}


def by_name(model, optimizer):
    """Return an optimizer's state under the names of the parameters, as FSDP saves it."""
    state = optimizer.state_dict()
    names = [name for name, _ in model.named_parameters()]
    return {**state, "state": {names[i]: entry for i, entry in state["state"].items()}}


@pytest.mark.parametrize(
    ("content", "key", "others"),
    [
        ({"epoch": 3, "model": STATE, "optimizer": OPTIMIZER.state_dict()}, "model",
         {"epoch", "optimizer"}),
        ({"step": 9, "model_state": STATE, "optimizer_state": OPTIMIZER.state_dict()},
         "model_state", {"step", "optimizer_state"}),
        ({"model_state_dict": STATE, "loss": torch.tensor(0.2), **MORE}, "model_state_dict",
         {"loss", *MORE}),
        ({"state_dict": STATE, "best_acc1": 71.0, "arch": "r18", **MORE}, "state_dict",
         {"best_acc1", "arch", *MORE}),
        ({"state_dict": STATE, "ema_state_dict": OTHER}, "state_dict", {"ema_state_dict"}),
        ({"state_dict": STATE, "pytorch-lightning_version": "2.4", "hyper_parameters": {"lr": 0.1},
          "optimizer_states": [OPTIMIZER.state_dict()], "loops": {"fit": {"epoch": 1}}},
         "state_dict",
         {"pytorch-lightning_version", "hyper_parameters", "optimizer_states", "loops"}),
        ({"ema": {"model": STATE, "decay": 0.99}, "updates": 7}, "ema.model", {"updates"}),
        ({"ema": {"module": {"state_dict": STATE}}}, "ema.module.state_dict", set()),
        ({"net": STATE, "optim": by_name(MODEL, OPTIMIZER)}, "net", {"optim"}),
        ({"weights": STATE, "args": argparse.Namespace(lr=0.1, out=Path("runs"))}, "weights",
         {"args"}),
        ({"params": STATE, "best": np.float64(0.9), "when": np.float32(2.0)}, "params",
         {"best", "when"}),
        ({"0": {"weight": STATE["0.weight"]}}, "0", set()),
    ],
    ids=["epoch-model-optimizer", "model_state", "model_state_dict", "state_dict", "ema-beside",
         "lightning", "ema-nested", "ema-deeper", "optimizer-by-name", "namespace", "numpy-scalar",
         "single-layer"],
)  # fmt: skip
def test_the_state_dict_is_found_and_the_rest_named(tmp_path, content, key, others):
    path = tmp_path / "last.pth.tar"
    torch.save(content, path)
    checkpoint = matrices_in(path)
    expected = content
    for part in key.split("."):
        expected = expected[part]
    assert list(checkpoint.tensors) == list(expected)
    beside = {e["name"] for e in checkpoint.unread if "beside the weights" in e["reason"]}
    assert beside == others
    again = rt.read_state_dict(path, key=key)
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    name, load = next(iter(checkpoint))
    np.testing.assert_array_equal(load(), expected[name].numpy())


def test_entries_that_are_no_tensors_are_named(tmp_path):
    torch.save({**STATE, "scaler._extra_state": {"v": 1}}, tmp_path / "m.pt")
    checkpoint = matrices_in(tmp_path / "m.pt")
    assert list(checkpoint.tensors) == list(STATE)
    assert {"name": "scaler._extra_state", "reason": "a dict, not a tensor"} in checkpoint.skipped
    assert rt.read_state_dict(tmp_path / "m.pt").keys() == STATE.keys()


def test_of_several_one_has_to_be_named(tmp_path):
    path = tmp_path / "gan.pt"
    torch.save({"generator": STATE, "critic": OTHER, "epoch": 1}, path)
    with pytest.raises(
        FileError, match=r"2 state dicts: 'generator' \(4 entries\), 'critic'.*--key"
    ):
        matrices_in(path)
    assert list(matrices_in(path, key="critic").tensors) == list(OTHER)
    with pytest.raises(FileError, match="no state dict under the key 'epoch'; expected one of"):
        matrices_in(path, key="epoch")
    with pytest.raises(InvalidOptionTypeError, match="`key` is 3"):
        matrices_in(path, key=3)
    np.savez(tmp_path / "m.npz", w=np.ones((20, 16)))
    with pytest.raises(InvalidOptionError, match=r"only files of torch\.save have keys"):
        matrices_in(tmp_path / "m.npz", key="w")


def test_the_commands_take_a_key(tmp_path):
    path = tmp_path / "gan.pt"
    torch.save({"generator": STATE, "critic": OTHER}, path)
    run = CliRunner().invoke
    refused = run(main, ["analyze", str(path)])
    assert refused.exit_code != 0
    assert "--key generator" in refused.output
    shown = run(main, ["analyze", str(path), "--key", "critic"])
    assert shown.exit_code == 0, shown.output
    assert "net.0.weight" in shown.output
    cut = ["prune", str(path), str(tmp_path / "out"), "--key", "critic", "--rank", "net.0=5"]
    done = run(main, cut)
    assert done.exit_code == 0, done.output
    written = load_file(tmp_path / "out" / "rmtspec.safetensors")
    assert tuple(written["net.0.outer.weight"].shape) == (30, 5)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = copy.deepcopy(MODEL)
        self.register_buffer("scale", torch.full((20,), 0.5))
        self.sizes = [1, 2, 3]
        self.head = nn.Linear(20, 20).to(torch.bfloat16)

    def forward(self, x):
        return self.head((self.body(x) * self.scale).to(torch.bfloat16)) * self.sizes[0]


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
@pytest.mark.parametrize("frozen", [False, True])
def test_torchscript_is_read_as_its_state_dict(tmp_path, monkeypatch, frozen):
    path, model = tmp_path / "m.pt", Gated().eval()
    scripted = torch.jit.script(model)
    torch.jit.save(torch.jit.freeze(scripted) if frozen else scripted, path)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was compiled"))
    found = rt.read_state_dict(path)
    if frozen:
        tensors = [tensor for name, tensor in found.items() if name.startswith("constants.")]
        for wanted in model.parameters():
            assert any(t.shape == wanted.shape and torch.equal(t, wanted) for t in tensors)
        return
    assert found.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(tensor, found[name])
    checkpoint = matrices_in(path)
    assert set(checkpoint.matrices) == {"body.0.weight", "body.2.weight", "head.weight"}
    assert rmtspec.analyze_many(checkpoint).rows[0]["name"] == "body.0.weight"


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_damaged_torchscript_is_refused_by_its_name(tmp_path):
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(MODEL), path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            matrices_in(path)
        except FileError:
            refused += 1
    assert refused > 10
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/constants.pkl", b"x")
    with pytest.raises(FileError, match="is a TorchScript archive that cannot be read"):
        matrices_in(path)


def test_code_in_the_pickle_of_an_archive_is_not_run(tmp_path):
    path = tmp_path / "m.pt"
    bomb = b"\x80\x02cbuiltins\nexec\nX\x10\x00\x00\x00raise SystemExit\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/constants.pkl", b"\x80\x02).")
        archive.writestr("m/data.pkl", bomb)
    assert matrices_in(path).tensors == {}


def test_a_model_of_ctranslate2_is_named(tmp_path):
    name = b"TransformerSpec\0"
    start = struct.pack("<IH", 6, len(name)) + name + struct.pack("<II", 3, 9)
    (tmp_path / "model.bin").write_bytes(start + bytes(100))
    with pytest.raises(FileError, match=r"model\.bin is a model of CTranslate2.*converted from"):
        matrices_in(tmp_path / "model.bin")


def test_stand_ins_are_known_to_torch_for_one_call_only(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"m": STATE, "args": argparse.Namespace()}, tmp_path / "m.pt")
    matrices_in(tmp_path / "m.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    assert all(issubclass(cls, _state_dict.Inert) for cls in _state_dict._stand_ins())


def folder_of(package):
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


@pytest.mark.slow
def test_a_speaker_encoder_of_the_old_format(needs_packages):
    needs_packages("resemblyzer")
    checkpoint = matrices_in(folder_of("resemblyzer") / "pretrained.pt")
    assert checkpoint.tensors["linear.weight"].shape == (256, 256)
    assert len(checkpoint.matrices) == 25  # the gates of three LSTM layers, and the last layer
    beside = {e["name"] for e in checkpoint.unread}
    assert beside == {"step", "optimizer_state"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_a_voice_detector_in_torchscript(needs_packages):
    needs_packages("silero_vad")
    path = folder_of("silero_vad") / "data" / "silero_vad.jit"
    found = rt.read_state_dict(path)
    expected = torch.jit.load(path).state_dict()
    assert len(expected) == 30
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert "_model.decoder.rnn.weight_ih[f]" in matrices_in(path).matrices
