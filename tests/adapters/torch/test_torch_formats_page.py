"""The page on formats: every line of it is run, on files of each kind."""

import json
import re
import shutil
from pathlib import Path

import gguf
import h5py
import msgpack
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rmtspec import cli, ensembles
from rmtspec.adapters import torch as rt

PAGE = Path(__file__).parents[3] / "docs/formats.md"
# PEFT asks transformers by an old name; exporters speak of themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=1, bos_token_id=0,
    num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False, eos_token_id=1,
    use_cache=False,
)  # fmt: skip
TOKENS = torch.arange(24).reshape(2, 12)


def sections():
    """The blocks of code of each section by its heading."""
    found = {}
    for part in PAGE.read_text("utf-8").split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        found[heading] = re.findall(r"```(console|python)\n(.*?)```", body, re.DOTALL)
    return found


def with_signal(rows, columns, seed):
    """Noise with three components far beyond it, so that pruning has something to find."""
    return ensembles.spiked(rows, columns, [30, 40, 50], rng=seed).astype(np.float32)


def build():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(90, 120), nn.ReLU(), nn.Linear(120, 100))
    with torch.no_grad():
        for seed, layer in enumerate((net[0], net[2])):
            layer.weight.copy_(torch.from_numpy(0.02 * with_signal(*layer.weight.shape, seed)))
    return net


@pytest.fixture(scope="module")
def language_model():
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    with torch.no_grad():
        for seed, (name, weight) in enumerate(model.named_parameters()):
            if weight.ndim == 2 and "embed" not in name:
                weight.copy_(torch.from_numpy(0.03 * with_signal(*weight.shape, seed)))
    return model


def as_gguf(model, path):
    """Write a Llama model as the converter of llama.cpp does."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if re.search(r"[qk]_proj", name):
            array = array.reshape(4, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        found = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(found, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prepared(heading, folder, model):
    """Put the files that a section speaks of into a folder; return what its Python may name."""
    names = {"build": build}
    if heading.startswith(".safetensors"):
        model.save_pretrained(folder / "model")
    elif heading.startswith("Files of torch"):
        content = {"epoch": 3, "model": build().state_dict(), "ema": build().state_dict()}
        torch.save(content, folder / "epoch-3.ckpt")
    elif heading == "Arrays":
        np.savez(folder / "arrays.npz", **{"fc.weight": with_signal(120, 90, 0)})
    elif heading == "GGUF":
        as_gguf(model, folder / "model.gguf")
    elif heading.startswith("Quantised"):
        (folder / "quantised").mkdir()
        weight, scale = torch.from_numpy(with_signal(256, 128, 0)), torch.tensor(0.5)
        codes = (weight / scale).to(torch.float8_e4m3fn)
        tensors = {"fc.weight": codes, "fc.weight_scale_inv": scale}
        save_file(tensors, folder / "quantised/model.safetensors")
        config = {"torch_dtype": "float32", "quantization_config": {"quant_method": "fp8"}}
        (folder / "quantised/config.json").write_text(json.dumps(config))
    elif heading == "ONNX":
        example = (torch.ones(1, 90),)
        torch.onnx.export(build(), example, folder / "model.onnx", dynamo=True, verbose=False)
    elif heading.startswith("Keras"):
        with h5py.File(folder / "model.weights.h5", "w") as file:
            file.create_dataset("layers/dense/vars/0", data=with_signal(90, 120, 0))
        kernel = with_signal(90, 120, 0)
        content = msgpack.packb((kernel.shape, "float32", kernel.tobytes()), use_bin_type=True)
        tree = {"params": {"fc": {"kernel": msgpack.ExtType(1, content)}}}
        (folder / "model.msgpack").write_bytes(msgpack.packb(tree, use_bin_type=True))
    elif heading.startswith("Adapters"):
        model.save_pretrained(folder / "base")
        shutil.copytree(folder / "base", folder / "tuned")
        tensors = load_file(folder / "base/model.safetensors")
        for name in tensors:
            if "up_proj" in name:
                rows = torch.from_numpy(ensembles.wishart(256, 4, rng=1).astype(np.float32))
                columns = torch.from_numpy(ensembles.wishart(4, 128, rng=2).astype(np.float32))
                tensors[name] = tensors[name] + 0.01 * rows @ columns
        save_file(tensors, folder / "tuned/model.safetensors", {"format": "pt"})
    elif heading == "In memory":
        names |= {"weight": build()[0].weight, "arrays": build().state_dict()}
    else:
        smaller, _ = rt.prune(model)
        names |= {"smaller": smaller, "rt": rt, "torch": torch, "tokens": TOKENS,
                  "AutoModelForCausalLM": AutoModelForCausalLM}  # fmt: skip
    return names


@pytest.mark.parametrize("heading", sections())
def test_every_line_does_what_it_says(heading, tmp_path, monkeypatch, language_model, capsys):
    blocks = sections()[heading]
    assert blocks
    names = prepared(heading, tmp_path, language_model)
    monkeypatch.chdir(tmp_path)
    for kind, code in blocks:
        if kind == "console":
            for line in code.splitlines():
                assert line.startswith("$ rmtspec ")
                done = CliRunner().invoke(cli.main, line.split()[2:], catch_exceptions=False)
                assert done.exit_code == 0, f"{line}\n{done.output}"
        else:
            exec(code, names)
    check(heading, names, capsys.readouterr().out)


def check(heading, names, printed):
    """Hold what a section made against what it says of it."""

    def outputs(model):
        with torch.no_grad():
            return model.eval()(TOKENS).logits

    def same(model, other):
        torch.testing.assert_close(outputs(model), outputs(other), atol=2e-4, rtol=1e-3)

    if heading.startswith(".safetensors"):
        same(names["smaller"], names["merged"])
        same(names["dense"], names["merged"])
        assert names["smaller"].num_parameters() < names["merged"].num_parameters()
    elif heading.startswith("Files of torch"):
        inputs = torch.ones(1, 90)
        torch.testing.assert_close(names["smaller"](inputs), names["dense"](inputs))
        assert type(names["smaller"][0]).__name__ == "SplitLinear"
    elif heading == "Arrays":
        np.testing.assert_allclose(names["product"], names["merged"], rtol=1e-5, atol=1e-4)
    elif heading.startswith("Quantised"):
        dense = load_file("plain/model.safetensors")["fc.weight"]
        torch.testing.assert_close(
            dense, torch.from_numpy(with_signal(256, 128, 0)), rtol=0.07, atol=1
        )
        assert Path("smaller/rmtspec.safetensors").stat().st_size < dense.nbytes
    elif heading == "ONNX":
        given = {names["smaller"].get_inputs()[0].name: np.ones((1, 90), np.float32)}
        one, other = (names[key].run(None, given)[0] for key in ("smaller", "merged"))
        np.testing.assert_allclose(one, other, atol=1e-4)
        assert Path("smaller.onnx").stat().st_size < Path("merged.onnx").stat().st_size
    elif heading == "GGUF":
        assert names["smaller"].num_parameters() < names["plain"].num_parameters()
    elif heading.startswith("Adapters"):
        same(names["tuned"], AutoModelForCausalLM.from_pretrained("tuned"))
    elif heading == "In memory":
        torch.testing.assert_close(
            names["dense"](torch.ones(1, 90)), names["merged"](torch.ones(1, 90))
        )
    elif heading.startswith("Ways"):
        same(names["again"], names["smaller"])
        same(rt.from_pretrained("saved"), names["smaller"])
        same(AutoModelForCausalLM.from_pretrained("plain"), names["smaller"])
        assert "refused: " in printed
        assert Path("smaller.onnx").exists()


def test_every_format_that_is_read_is_in_the_table():
    from rmtspec.checkpoint.paths import PLAIN

    table = PAGE.read_text("utf-8").split("\n## ")[0]
    assert [suffix for suffix in (*PLAIN, ".pt", ".onnx") if suffix not in table] == []
