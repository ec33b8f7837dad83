"""Folders of several files, and splits undone on disk: the same as in memory."""

import contextlib
import json
import warnings

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn
from transformers import pytorch_utils

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.checkpoint.index_writer import file_names
from rmtspec.checkpoint.manifest import MANIFEST, WEIGHTS, Manifest
from rmtspec.checkpoint.safetensors_reader import stored_tensors
from rmtspec.checkpoint.safetensors_writer import Outgoing, write_safetensors
from rmtspec.errors import FileError, InvalidValueError


class Net(nn.Module):
    """A bit of everything: convolutions with groups, buffers, tables, tied weights."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(16, 32, 3, groups=4)
        self.plane = nn.Conv2d(32, 48, 3, groups=2)
        self.space = nn.Conv3d(16, 20, 2)
        self.norm = nn.BatchNorm2d(48)
        self.fc = nn.Linear(48, 64)
        self.table = nn.Embedding(90, 32)
        self.head = nn.Linear(32, 90, bias=False)
        self.head.weight = self.table.weight
        self.other = nn.Embedding(70, 20, padding_idx=0)


RANKS = {"line": 3, "plane": 9, "space": 6, "fc": 12, "other": 5}


def build(seed=0):
    torch.manual_seed(seed)
    return Net()


@pytest.fixture
def model():
    return rt.prune(build(), ranks=RANKS)[0]


def in_shards(folder, count=3):
    """Write the tensors of a saved folder into several files, as `prune` does."""
    manifest = Manifest.read(folder)
    file = folder / WEIGHTS
    tensors = [
        Outgoing(t.name, t.dtype, t.shape, lambda t=t: t().copy(), t.nbytes)
        for t in stored_tensors(file)
    ]
    files = {}
    for i, name in enumerate(file_names(WEIGHTS, count)):
        digest = write_safetensors(folder / name, tensors[i::count], {"format": "pt"})
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": digest}
    file.unlink()
    Manifest(manifest.splits, manifest.tied, files, manifest.versions).write(folder)
    return folder


def assert_equal(tensors, expected):
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        assert torch.equal(tensors[name], value), name
        assert tensors[name].dtype == value.dtype, name


# -- loading


def test_loading_shards_is_loading_one_file(model, tmp_path):
    folder = in_shards(rt.save(model, tmp_path / "small"))
    assert len(list(folder.glob("*.safetensors"))) == 3
    loaded = rt.load(build(seed=1), folder)
    assert_equal(loaded.state_dict(), model.state_dict())
    assert loaded.head.weight is loaded.table.weight
    with torch.device("meta"):
        skeleton = Net()
    assert_equal(rt.load(skeleton, folder, assign=True).state_dict(), model.state_dict())


def test_a_tensor_in_two_files_is_refused(model, tmp_path):
    folder = rt.save(model, tmp_path / "small")
    content = json.loads((folder / MANIFEST).read_text())
    (folder / "again.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    content["files"]["again.safetensors"] = content["files"][WEIGHTS]
    (folder / MANIFEST).write_text(json.dumps(content))
    skeleton = build()
    with pytest.raises(FileError, match=r"again\.safetensors and rmtspec\.safetensors both hold"):
        rt.load(skeleton, folder)
    assert type(skeleton.fc) is nn.Linear


def test_a_file_or_a_key_that_is_missing(model, tmp_path):
    folder = in_shards(rt.save(model, tmp_path / "small"))
    content = json.loads((folder / MANIFEST).read_text())
    file = folder / "rmtspec-00002-of-00003.safetensors"
    lost = sorted(tensor.name for tensor in stored_tensors(file))
    file.unlink()
    with pytest.raises(FileError, match="does not exist"):
        rt.load(build(), folder)
    with pytest.raises(FileError, match=r"00002-of-00003\.safetensors cannot be read: no such"):
        rt.load(build(), folder, verify=False)
    del content["files"][file.name]
    (folder / MANIFEST).write_text(json.dumps(content))
    skeleton = build()
    with pytest.raises(InvalidValueError, match="not in the file: ") as caught:
        rt.load(skeleton, folder)
    assert lost[0] in str(caught.value)
    assert type(skeleton.fc) is nn.Linear
    content["files"] = {}
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(FileError, match="has no weight files in its manifest; expected one"):
        rt.load(build(), folder)


def sharded_checkpoint(state, folder):
    """Save a state dict as transformers does, in two shards with an index."""
    folder.mkdir()
    names = file_names("model.safetensors", 2)
    keys = list(state)
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    for name, half in zip(names, halves, strict=True):
        part = {key: state[key].contiguous() for key in half}
        safetensors.torch.save_file(part, folder / name, metadata={"format": "pt"})
    places = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_loading_what_prune_wrote_of_shards(tmp_path):
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50), nn.Embedding(90, 32))
    folder = sharded_checkpoint(model.state_dict(), tmp_path / "model")
    ranks = {"0": 7, "2": 9, "3": 4}
    rmtspec.prune_checkpoint(folder, tmp_path / "small", ranks=ranks)
    assert len(list((tmp_path / "small").glob("*.safetensors"))) == 2
    fresh = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50), nn.Embedding(90, 32))
    loaded = rt.load(fresh, tmp_path / "small")
    smaller, _ = rt.prune(model, ranks=ranks)
    assert (loaded[0].rank, loaded[2].rank, loaded[3].rank) == (7, 9, 4)
    expected = rt.merge(smaller).state_dict()
    for name, value in rt.merge(loaded).state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)  # of float32


# -- merging on disk


def assert_merged(model, folder, tmp_path):
    """Compare the merge on disk with that in memory; return the former."""
    out = tmp_path / "dense"
    rmtspec.merge_checkpoint(folder, out)
    merged = {}
    for file in sorted(out.glob("*.safetensors")):
        part = safetensors.torch.load_file(file)
        assert not merged.keys() & part.keys()
        merged |= part
    expected = rt.merge(model).state_dict()
    assert sorted(merged) == sorted(expected)
    for name, value in expected.items():
        got = merged[name]
        assert (got.dtype, got.shape) == (value.dtype, value.shape), name
        if name in model.state_dict():
            assert torch.equal(got, value), name
            continue
        # A factor that was split again is rounded to the dtype in memory, and not on disk.
        eps = torch.finfo(value.dtype).eps
        torch.testing.assert_close(got, value, rtol=eps, atol=4 * eps * value.abs().max().item())
    return merged


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_merging_on_disk_is_merging_in_memory(model, tmp_path, dtype):
    model = model.to(dtype)
    state = assert_merged(model, rt.save(model, tmp_path / "small"), tmp_path)
    fresh = build(seed=1).to(dtype)
    fresh.load_state_dict(state, strict=True)
    assert torch.equal(state["head.weight"], state["table.weight"])


def test_merging_shards_on_disk(model, tmp_path):
    folder = in_shards(rt.save(model, tmp_path / "small"))
    assert_merged(model, folder, tmp_path)
    assert len(list((tmp_path / "dense").glob("model-0000?-of-00003.safetensors"))) == 3


def test_merging_channels_last_and_a_model_of_one_layer(tmp_path):
    torch.manual_seed(0)
    model = nn.Conv2d(16, 24, 3).to(memory_format=torch.channels_last)
    model, _ = rt.prune(model, ranks={"(model)": 4})
    assert_merged(model, rt.save(model, tmp_path / "small"), tmp_path)


def test_merging_layers_split_twice(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 80), nn.Conv2d(32, 48, 3, groups=2), nn.Embedding(90, 64))
    once, _ = rt.prune(model, ranks={"0": 40, "1": 20, "2": 30})
    ranks = {
        "0.inner": 10, "0.outer": 12, "1.inner": 9, "1.outer": 5, "2.inner": 8, "2.outer": 7,
    }  # fmt: skip
    twice, _ = rt.prune(once, ranks=ranks)
    assert isinstance(twice[2].outer, rt.SplitLinear)
    assert_merged(twice, rt.save(twice, tmp_path / "small"), tmp_path)
    single, _ = rt.prune(nn.Linear(60, 80), ranks={"(model)": 30})
    single, _ = rt.prune(single, ranks={"inner": 8})
    (tmp_path / "single").mkdir()
    assert_merged(single, rt.save(single, tmp_path / "single" / "small"), tmp_path / "single")


def test_merging_a_layer_with_two_names(tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(40, 30), "c": nn.Linear(30, 40)})
    model["a"] = model["b"] = rt.SplitLinear.from_layer(model["a"], 5)
    state = assert_merged(model, rt.save(model, tmp_path / "small"), tmp_path)
    assert torch.equal(state["a.weight"], state["b.weight"])


def test_a_model_without_splits_is_copied(tmp_path):
    model = build()
    folder = rt.save(model, tmp_path / "whole")
    assert rmtspec.merge_checkpoint(folder, tmp_path / "out") == []
    tensors = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert sorted(tensors) == sorted(model.state_dict())
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())


def test_altered_factors_are_refused_on_disk_as_in_memory(tmp_path):
    model, _ = rt.prune(nn.Sequential(nn.Linear(60, 80)), ranks={"0": 8})
    model[0].inner.bias = nn.Parameter(torch.ones(8))
    with pytest.raises(InvalidValueError, match=r"'0\.inner' is not as the split made it"):
        rt.merge(model)
    folder = rt.save(model, tmp_path / "small")
    with pytest.raises(FileError, match="factor 'inner' of '0' has been changed since the split"):
        rmtspec.merge_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- transformers


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers about itself
        yield


@pytest.mark.parametrize("shards", [1, 2])
def test_gpt2_merged_on_disk_is_a_pretrained_model(tmp_path, shards):
    with quiet():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=200, n_positions=64, n_embd=48, n_layer=2, n_head=4,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config).eval()
        model, _ = rt.prune(model, ranks={f"transformer.h.{i}.mlp.c_fc": 9 for i in range(2)})
        folder = rt.save(model, tmp_path / "small")
        if shards > 1:
            in_shards(folder, shards)
        state = assert_merged(model, folder, tmp_path)
        assert torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
        loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "dense").eval()
        tokens = torch.arange(12).reshape(2, 6)
        with torch.no_grad():
            torch.testing.assert_close(loaded(tokens)[0], model(tokens)[0], rtol=1e-4, atol=1e-5)


def test_pruned_on_disk_merged_on_disk(tmp_path):
    """As stored, a table and a Conv1D are matrices like any other, and come back as such."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"wte": nn.Embedding(90, 32), "attn": pytorch_utils.Conv1D(60, 32)})
    folder = sharded_checkpoint(model.state_dict(), tmp_path / "model")
    options = {"ranks": {"wte": 6, "attn": 8}}
    rmtspec.prune_checkpoint(folder, tmp_path / "small", **options)
    rmtspec.prune_checkpoint(folder, tmp_path / "cut", mode="truncate", **options)
    rmtspec.merge_checkpoint(tmp_path / "small", tmp_path / "dense")
    for file in (tmp_path / "cut").glob("*.safetensors"):
        expected = safetensors.torch.load_file(file)
        tensors = safetensors.torch.load_file(tmp_path / "dense" / file.name)
        assert sorted(tensors) == sorted(expected)
        for name, value in expected.items():
            torch.testing.assert_close(tensors[name], value, rtol=1e-5, atol=1e-6)  # of float32
