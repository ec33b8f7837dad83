"""Saving and loading: the same function, the sizes reported, no pickle, and every bad file."""

import contextlib
import json
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from torch import nn
from transformers import pytorch_utils

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch.callbacks import split_as
from rmtspec.errors import FileError, InvalidTypeError, InvalidValueError
from rmtspec.runs.prune import prune_checkpoint


class Net(nn.Module):
    """A bit of everything: convolution with groups, buffers, an embedding, tied weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(32, 48, 3, groups=2)
        self.norm = nn.BatchNorm2d(48)
        self.fc = nn.Linear(48, 64)
        self.table = nn.Embedding(90, 32)
        self.head = nn.Linear(32, 90, bias=False)
        self.head.weight = self.table.weight
        self.other = nn.Embedding(70, 20, padding_idx=0)
        self.register_buffer("scale", torch.arange(3))

    def forward(self, x, tokens):
        y = self.fc(self.norm(self.conv(x)).mean((2, 3)))
        return y.sum() + self.head(self.table(tokens)) + self.other(tokens).sum()


RANKS = {"conv": 9, "fc": 12, "other": 5}
INPUTS = (torch.linspace(-1, 1, 32 * 49).reshape(1, 32, 7, 7), torch.tensor([3, 5, 69]))


def build(seed=0):
    torch.manual_seed(seed)
    return Net().eval()


@pytest.fixture
def pruned():
    return rt.prune(build(), ranks=RANKS)


@pytest.fixture
def saved(pruned, tmp_path):
    return rt.save(pruned[0], tmp_path / "small")


def run(model):
    with torch.no_grad():
        return model(*INPUTS)


def test_round_trip_is_bit_equal_and_strict(pruned, saved):
    model, _ = pruned
    loaded = rt.load(build(seed=1), saved)
    assert torch.equal(run(loaded), run(model))
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
        assert a.dtype == b.dtype
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert loaded.head.weight is loaded.table.weight
    merged = rt.merge(loaded)
    assert list(merged.state_dict()) == list(build().state_dict())
    torch.testing.assert_close(run(merged), run(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["split", "load", "assign", "resume", "split_as"])
@pytest.mark.parametrize(
    ("make", "layout"),
    [(nn.Conv2d, torch.channels_last), (nn.Conv3d, torch.channels_last_3d)],
)
def test_factors_lie_in_memory_and_are_trained_as_the_layer_was(way, make, layout, tmp_path):
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(make(16, 24, 3), nn.ReLU(), make(24, 16, 3)).to(memory_format=layout)
        model[2].weight.requires_grad_(way == "resume")  # the pruner leaves frozen layers alone
        return model

    def pruner_of(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return rt.RMTPruner(model, optimizer, every=1, ranks=ranks)

    ranks = {"0": 5, "2": 6}
    small, _ = rt.prune(build(), ranks=ranks)
    if way == "split":
        made = small
    elif way == "resume":
        first = pruner_of(build())
        first.step()
        first.save(tmp_path / "run.pt")
        made = build()
        pruner_of(made).resume(tmp_path / "run.pt")
    elif way == "split_as":
        made = split_as(build(), small.state_dict())
    else:
        made = rt.load(build(), rt.save(small, tmp_path / "small"), assign=way == "assign")
    for place, dense in ((0, build()[0]), (2, build()[2])):
        layer = made[place]
        assert type(layer) is type(small[place])
        assert not layer.inner.weight.is_contiguous()
        for factor in (layer.inner, layer.outer):
            assert factor.weight.is_contiguous(memory_format=layout)
            assert factor.weight.requires_grad is dense.weight.requires_grad
        assert layer.bias.requires_grad
        assert not layer.merged().weight.is_contiguous()


def test_a_layer_that_is_not_split_lies_in_memory_as_in_the_skeleton(tmp_path):
    def build():
        return nn.Conv2d(16, 24, 3).to(memory_format=torch.channels_last)

    loaded = rt.load(build(), rt.save(build(), tmp_path / "whole"))
    assert loaded.weight.is_contiguous(memory_format=torch.channels_last)


def test_report_counts_what_is_on_disk(pruned, saved):
    model, report = pruned
    stored = safetensors.torch.load_file(saved / "rmtspec.safetensors")
    assert (
        sum(t.numel() * t.element_size() for t in stored.values()) == report.totals["bytes_after"]
    )
    buffers = {name for name, _ in model.named_buffers()}
    numbers = sum(t.numel() for name, t in stored.items() if name not in buffers)
    assert numbers == report.totals["parameters_after"] == rt.count_parameters(model)
    row = report.row("fc")
    factors = [stored["fc.inner.weight"], stored["fc.outer.weight"]]
    assert sum(f.numel() for f in factors) == row["parameters_after"]
    assert sum(f.numel() * f.element_size() for f in factors) == row["bytes_after"]
    assert report.totals["bytes_before"] == sum(
        t.numel() * t.element_size()
        for name, t in build().state_dict().items()
        if "head" not in name
    )


def test_mnist_counts_and_outputs(mnist_net, mnist, tmp_path):
    smaller, report = rt.prune(mnist_net, bulk_keep=0)
    folder = rt.save(smaller, tmp_path / "mnist")
    data = (folder / "rmtspec.safetensors").stat().st_size
    header = 8 + int.from_bytes((folder / "rmtspec.safetensors").read_bytes()[:8], "little")
    assert data - header == report.totals["bytes_after"] == 4 * report.totals["parameters_after"]
    fresh = nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 10))
    loaded = rt.load(fresh, folder)
    with torch.no_grad():
        assert torch.equal(loaded(mnist[1]), smaller(mnist[1]))


def test_only_safetensors_and_json_are_written(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["rmtspec.json", "rmtspec.safetensors"]
    content = json.loads((saved / "rmtspec.json").read_text())
    assert content["schema"] == 1
    entries = {entry["name"]: entry for entry in content["splits"]}
    assert entries["conv"]["groups"] == 2
    assert (entries["fc"]["rank"], entries["fc"]["shape"]) == (12, [64, 48])
    assert entries["fc"]["original"] == "torch.nn.modules.linear.Linear"
    assert content["tied"] == {"head.weight": "table.weight"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_the_saved_one(dtype, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 20)).to(dtype)
    smaller, _ = rt.prune(model, ranks={"0": 7})
    skeleton = nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 20))  # float32
    loaded = rt.load(skeleton, rt.save(smaller, tmp_path / "m"))
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    x = torch.ones(2, 40, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(loaded(x), smaller(x))


def test_factory_and_meta_skeletons(pruned, saved):
    model, _ = pruned
    assert torch.equal(run(rt.load(build, saved)), run(model))
    with torch.device("meta"):
        skeleton = Net().eval()
    with pytest.raises(InvalidValueError, match="assign=True"):
        rt.load(skeleton, saved)
    loaded = rt.load(skeleton, saved, assign=True)
    assert torch.equal(run(loaded), run(model))
    assert loaded.head.weight is loaded.table.weight
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))


def test_what_nothing_can_fill_is_named(tmp_path):
    class WithConstant(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(30, 40)
            self.register_buffer("grid", torch.ones(3), persistent=False)

    torch.manual_seed(0)
    smaller, _ = rt.prune(WithConstant(), ranks={"fc": 5})
    folder = rt.save(smaller, tmp_path / "m")
    with torch.device("meta"):
        skeleton = WithConstant()
    with pytest.raises(InvalidValueError, match="grid of `skeleton` are on the meta device"):
        rt.load(skeleton, folder, assign=True)


def test_without_assign_parameters_stay_the_same_objects(saved):
    skeleton = build(seed=1)
    table, bias = skeleton.table.weight, skeleton.fc.bias
    skeleton.fc.weight.requires_grad_(False)
    loaded = rt.load(skeleton, saved)
    assert loaded.table.weight is table
    assert loaded.fc.outer.bias is bias
    assert not loaded.fc.inner.weight.requires_grad
    assert loaded.conv.inner.weight.requires_grad


def test_a_layer_split_twice_and_a_model_that_is_one_layer(tmp_path):
    torch.manual_seed(0)
    once, _ = rt.prune(nn.Sequential(nn.Linear(60, 80)), ranks={"0": 40})
    twice, _ = rt.prune(once, ranks={"0.inner": 10, "0.outer": 12})
    loaded = rt.load(nn.Sequential(nn.Linear(60, 80)), rt.save(twice, tmp_path / "twice"))
    x = torch.ones(3, 60)
    assert torch.equal(loaded(x), twice(x))
    assert loaded[0].inner.rank == 10
    single, _ = rt.prune(nn.Linear(60, 80), ranks={"(model)": 8})
    loaded = rt.load(nn.Linear(60, 80), rt.save(single, tmp_path / "single"))
    assert torch.equal(loaded(x), single(x))


def test_a_model_without_splits_and_one_with_odd_tensors(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scalar = nn.Parameter(torch.tensor(2.0))
            self.turned = nn.Parameter(torch.arange(12.0).reshape(3, 4).T)
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("nothing", torch.zeros(0, 3))

    odd = Odd()
    loaded = rt.load(Odd, rt.save(odd, tmp_path / "odd"))
    for name, value in odd.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


# -- what the command wrote


def test_load_reads_what_the_command_wrote(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "m.safetensors")
    prune_checkpoint(tmp_path / "m.safetensors", tmp_path / "out", ranks={"0": 7, "2": 9})
    loaded = rt.load(nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50)),
                     tmp_path / "out")  # fmt: skip
    smaller, _ = rt.prune(model, ranks={"0": 7, "2": 9})
    x = torch.randn(5, 40)
    torch.testing.assert_close(loaded(x), smaller(x))
    assert loaded[0].rank == 7


def test_embeddings_and_transposed_layers_of_the_command(tmp_path):

    def build():
        torch.manual_seed(0)
        return nn.ModuleDict({"wte": nn.Embedding(90, 32), "attn": pytorch_utils.Conv1D(60, 32)})

    model = build()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "m.safetensors")
    prune_checkpoint(tmp_path / "m.safetensors", tmp_path / "out", ranks={"wte": 6, "attn": 8})
    loaded = rt.load(build(), tmp_path / "out")
    smaller, _ = rt.prune(model, ranks={"wte": 6, "attn": 8})
    x, tokens = torch.randn(5, 32), torch.tensor([3, 80])
    assert isinstance(loaded["wte"], rt.SplitEmbedding)
    torch.testing.assert_close(loaded["wte"](tokens), smaller["wte"](tokens))
    torch.testing.assert_close(loaded["attn"](x), smaller["attn"](x))
    merged = rt.merge(loaded)
    assert isinstance(merged["attn"], pytorch_utils.Conv1D)
    assert merged["attn"].weight.shape == (32, 60)


# -- transformers


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers about itself
        yield


def bert():
    config = transformers.BertConfig(
        vocab_size=500, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.BertModel(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=200, n_positions=64, n_embd=96, n_layer=2, n_head=4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("build", [bert, gpt2])
def test_transformers_models(build, tmp_path):
    with quiet():
        torch.manual_seed(0)
        model = build().eval()
        report = rt.analyze(model)
        assert all(row["reason"] for row in report.rows if row["accepted"] is None)
        smaller, report = rt.prune(model)
        cut = [row for row in report.rows if row["action"] == "split"]
        assert len(cut) == (37 if build is bert else 8)
        folder = rt.save(smaller, tmp_path / "small")
        assert (folder / "config.json").exists()
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder)
        loaded = rt.load(lambda: type(model)(config).eval(), folder)
        tokens = torch.arange(12).reshape(2, 6)
        with torch.no_grad():
            assert torch.equal(smaller(tokens)[0], loaded(tokens)[0])
            if build is gpt2:
                options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
                mask = torch.ones_like(tokens)
                first = smaller.generate(tokens, attention_mask=mask, **options)
                assert torch.equal(first, loaded.generate(tokens, attention_mask=mask, **options))
                assert loaded.lm_head.weight is loaded.transformer.wte.weight
            back = rt.merge(loaded)
            torch.testing.assert_close(back(tokens)[0], smaller(tokens)[0], rtol=1e-3, atol=1e-4)
        assert list(back.state_dict()) == list(model.state_dict())


def test_a_split_folder_is_not_taken_for_the_dense_model(tmp_path):
    """`from_pretrained` must fail on it, not fill in random weights with a warning."""
    with quiet():
        torch.manual_seed(0)
        model = gpt2()
        smaller, _ = rt.prune(model, ranks={"transformer.h.0.mlp.c_fc": 5})
        folder = rt.save(smaller, tmp_path / "small")
        with pytest.raises(OSError, match="no file named"):
            type(model).from_pretrained(folder)


# -- bad input


def test_skeleton_of_another_architecture_is_refused_and_untouched(saved):
    class Other(Net):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(48, 65)

    class Without(Net):
        def __init__(self):
            super().__init__()
            del self.fc

    class More(Net):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(3, 2)
            self.norm = nn.BatchNorm2d(47)

    class Untied(Net):
        def __init__(self):
            super().__init__()
            self.head.weight = nn.Parameter(torch.zeros(90, 32))

    for kind, message in [
        (Other, r"weight \(65, 48\).*it was a Linear with weight \(64, 48\)"),
        (Without, "no layer 'fc', which was split"),
        (More, r"not in the file: extra.weight, extra.bias; of another shape: norm.weight \(47,\)"),
    ]:
        skeleton = kind()
        before = {k: v.clone() for k, v in skeleton.state_dict().items()}
        with pytest.raises(InvalidValueError, match=message):
            rt.load(skeleton, saved)
        assert type(skeleton.conv) is nn.Conv2d
        assert all(torch.equal(before[k], v) for k, v in skeleton.state_dict().items())
    loaded = rt.load(Untied(), saved)  # equal values, two parameters: the skeleton's own choice
    assert torch.equal(loaded.head.weight, loaded.table.weight)


def test_ties_that_the_file_lacks_are_refused(tmp_path):
    torch.manual_seed(0)
    model = Net()
    model.head.weight = nn.Parameter(torch.zeros(90, 32))
    folder = rt.save(rt.prune(model, ranks={"fc": 12})[0], tmp_path / "m")
    with pytest.raises(InvalidValueError, match="one parameter in the skeleton, two in the file"):
        rt.load(Net(), folder)


def test_unexpected_keys_are_named(tmp_path):
    torch.manual_seed(0)
    folder = rt.save(nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20)), tmp_path / "m")
    with pytest.raises(InvalidValueError, match=r"not in the skeleton: 1\.bias, 1\.weight"):
        rt.load(nn.Sequential(nn.Linear(20, 30)), folder)


def test_truncated_and_tampered_files(saved):
    file = saved / "rmtspec.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(FileError, match="truncated"):
        rt.load(build(), saved)
    with pytest.raises(FileError, match="truncated"):
        rt.load(build(), saved, verify=False)
    changed = bytearray(whole)
    changed[-5] ^= 1
    file.write_bytes(changed)
    with pytest.raises(FileError, match="has changed since it was saved"):
        rt.load(build(), saved)
    file.unlink()
    with pytest.raises(FileError, match="does not exist"):
        rt.load(build(), saved)


def test_manifests_of_later_versions_and_of_nothing(saved, tmp_path):
    manifest = saved / "rmtspec.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "schema": 2}))
    with pytest.raises(FileError, match="schema 2; this version of rmtspec reads up to 1"):
        rt.load(build(), saved)
    manifest.unlink()
    with pytest.raises(FileError, match=r"has no rmtspec\.json"):
        rt.load(build(), saved)
    with pytest.raises(FileError, match="does not exist"):
        rt.load(build(), tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder(tmp_path):
    torch.save(build().state_dict(), tmp_path / "m.pt")
    with pytest.raises(FileError, match="read_state_dict"):
        rt.load(build(), tmp_path / "m.pt")
    with pytest.raises(InvalidTypeError, match="Module, or a function"):
        rt.load("Net", tmp_path / "m.pt")


def test_save_refuses_what_cannot_be_saved(pruned, tmp_path):
    model, _ = pruned
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    with pytest.raises(FileError, match="is not empty"):
        rt.save(model, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["precious.txt"]
    (tmp_path / "empty").mkdir()
    rt.save(model, tmp_path / "empty")
    with pytest.raises(FileError, match="does not exist"):
        rt.save(model, tmp_path / "no" / "where")
    with torch.device("meta"):
        hollow = nn.Linear(20, 20)
    with pytest.raises(InvalidValueError, match="'weight', which cannot be saved: on the meta"):
        rt.save(hollow, tmp_path / "hollow")
    with pytest.raises(InvalidTypeError, match="a OrderedDict; expected"):
        rt.save(model.state_dict(), tmp_path / "dict")
    assert not (tmp_path / "hollow").exists()


def test_a_failing_write_leaves_nothing(pruned, tmp_path, monkeypatch):
    model, _ = pruned

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="no space left on device"):
        rt.save(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# -- reading state dicts


def test_read_state_dict_reads_every_format(tmp_path):
    torch.manual_seed(0)
    state = nn.Linear(4, 3).state_dict()
    torch.save(state, tmp_path / "a.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "b.ckpt")
    torch.save(state, tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, tmp_path / "d.safetensors")
    for name in ("a.pt", "b.ckpt", "c.bin", "d.safetensors"):
        state = rt.read_state_dict(tmp_path / name)
        assert {k: v.tolist() for k, v in state.items()} == {
            k: v.tolist() for k, v in state.items()
        }


class Harmful:
    ran = False

    def __reduce__(self):
        return (Path.touch, (Path(os.environ["HARM"]),))


def test_pickled_code_never_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    torch.save({"weight": Harmful()}, tmp_path / "bad.pt")
    (tmp_path / "raw.bin").write_bytes(pickle.dumps(Harmful()))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("bad.pt", "raw.bin", "module.pt"):
        with pytest.raises(FileError, match="never done here"):
            rt.read_state_dict(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_bad_weight_files(tmp_path):
    torch.save(nn.Linear(40, 30).state_dict(), tmp_path / "a.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-600])
    (tmp_path / "empty.pt").touch()
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "x.onnx").touch()
    np.save(tmp_path / "x.npy", np.ones(3))
    for name, message in [
        ("cut.pt", "damaged"),
        ("empty.pt", "damaged"),
        ("list.pt", "holds a list, not a state dict"),
        ("x.onnx", "suffix '.onnx'"),
        ("nowhere.pt", "does not exist"),
    ]:
        with pytest.raises(FileError, match=message):
            rt.read_state_dict(tmp_path / name)


def test_errors_are_all_ours(saved):
    with pytest.raises(rmtspec.RmtspecError):
        rt.load(nn.Linear(3, 2), saved)
