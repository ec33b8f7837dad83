"""Weights of three dimensions: as the modelling code multiplies them, as named, or not at all."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    ConvBertConfig,
    ConvBertModel,
    FunnelConfig,
    FunnelModel,
    XLNetConfig,
    XLNetModel,
)

from rmtspec.adapters import torch as rt
from rmtspec.checkpoint import matrices_in
from rmtspec.errors import InvalidValueError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def xlnet():
    return XLNetModel(XLNetConfig(vocab_size=50, d_model=24, n_layer=1, n_head=4, d_inner=32))


def funnel():
    sizes = {"d_model": 24, "n_head": 4, "d_head": 6, "d_inner": 32}
    return FunnelModel(FunnelConfig(vocab_size=50, block_sizes=[1], num_decoder_layers=0, **sizes))


def found(model):
    return {name: m for name, m in rt.weight_matrices(model) if not m.reason}


def reasons(model):
    return {name: m.reason for name, m in rt.weight_matrices(model) if m.reason}


def test_attention_of_xlnet_is_one_matrix_each():
    model = xlnet()
    layer, matrices = model.layer[0].rel_attn, found(model)
    assert {n for n in matrices if "rel_attn" in n} == {
        f"layer.0.rel_attn.{letter}" for letter in "qkvor"
    }
    x = torch.randn(3, 24)
    query = torch.einsum("bh,hnd->bnd", x, layer.q).reshape(3, -1)
    torch.testing.assert_close(x @ torch.tensor(matrices["layer.0.rel_attn.q"]()).T, query)
    heads = torch.randn(3, 4, 6)
    out = torch.einsum("bnd,hnd->bh", heads, layer.o)
    given = heads.reshape(3, -1) @ matrices["layer.0.rel_attn.o"].tensor().T
    torch.testing.assert_close(given, out)
    assert matrices["layer.0.rel_attn.q"].kind == "attention"
    left = reasons(model)
    assert left["layer.0.rel_attn.r_w_bias"] == "a bias or a mask: added, not multiplied"
    assert "3 dimensions in a XLNetRelativeAttention" in left["layer.0.rel_attn.seg_embed"]
    assert len(matrices) < 12


def test_attention_of_funnel_and_groups_of_convbert():
    model = funnel()
    name = next(n for n in found(model) if n.endswith("r_kernel"))
    matrix = found(model)[name]
    r = torch.randn(5, 24)
    expected = torch.einsum("td,dnh->tnh", r, model.get_parameter(name)).reshape(5, -1)
    torch.testing.assert_close(r @ matrix.tensor().T, expected)
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 32}
    model = ConvBertModel(
        ConvBertConfig(vocab_size=50, num_hidden_layers=1, num_groups=2, embedding_size=24, **sizes)
    )
    layer = model.encoder.layer[0].intermediate.dense
    prefix = "encoder.layer.0.intermediate.dense"
    blocks = [found(model)[f"{prefix}[{i}]"].tensor() for i in range(2)]
    x = torch.randn(1, 3, 24)
    by_group = torch.cat([x[0, :, 12 * i : 12 * (i + 1)] @ blocks[i].T for i in range(2)], dim=1)
    torch.testing.assert_close(by_group + layer.bias, layer(x)[0])


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.w_q = nn.Parameter(torch.randn(4, 24, 6))
        self.b_q = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        return torch.einsum("bh,nhd->bnd", x, self.w_q)


def test_unknown_axes_are_one_skipped_row_until_they_are_named():
    model = nn.Sequential(Heads())
    assert list(found(model)) == ["0.b_q"]
    assert re.search(r"matrix_axes, under the key 'w_q'", reasons(model)["0.w_q"])
    model[0].matrix_axes = {"w_q": "n h d -> (n d) h"}
    matrix = found(model)["0.w_q"]
    x = torch.randn(3, 24)
    torch.testing.assert_close(x @ matrix.tensor().T, model(x).reshape(3, -1))
    np.testing.assert_array_equal(matrix(), matrix.tensor().detach().numpy())
    values = np.random.default_rng(0).standard_normal(matrix.shape).astype(np.float32)
    matrix.write(values)
    np.testing.assert_array_equal(matrix(), values)
    torch.testing.assert_close(x @ torch.tensor(values).T, model(x).reshape(3, -1))
    stack = rt.plan(model, include="w_q", rule="fraction", keep=0.2, mode="truncate", gate=None)
    assert stack.row("0.w_q")["rank"] == 4
    model[0].matrix_axes = {"w_q": "n h d -> n d h"}
    assert [n for n in found(model) if "w_q" in n] == [f"0.w_q[{i}]" for i in range(4)]
    torch.testing.assert_close(x @ found(model)["0.w_q[2]"].tensor().T, model(x)[:, 2])


@pytest.mark.parametrize("pattern", ["n h d", "n h -> n h", "n h d -> (n d) x", "n n d -> n d", 3])
def test_a_pattern_that_is_none_is_refused(pattern):
    model = nn.Sequential(Heads())
    model[0].matrix_axes = {"w_q": pattern}
    with pytest.raises(
        InvalidValueError, match=r"Heads\.matrix_axes\['w_q'\].*expected the 3 axes"
    ):
        list(rt.weight_matrices(model))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 20, 24))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(3, 20))


def test_biases_of_a_stack_of_experts_are_no_matrix():
    model = nn.ModuleDict({"experts": Experts()})
    assert list(found(model)) == [f"experts.gate_up_proj[{i}]" for i in range(3)]
    assert reasons(model) == {
        "experts.gate_up_proj_bias": "a bias or a mask: added, not multiplied"
    }


def test_the_same_in_files(tmp_path):
    for make, kind, count in ((xlnet, "xlnet", 5), (funnel, "funnel", 1)):
        folder = tmp_path / kind
        model = make()
        model.save_pretrained(folder)
        checkpoint = matrices_in(folder)
        heads = [m for _, m in checkpoint if m.kind == "attention"]
        assert len(heads) == count, list(checkpoint.matrices)
        for matrix in heads:
            assert matrix.sides == (24, 24)
            ours = found(model)[matrix.tensor.name]()
            np.testing.assert_array_equal(matrix(), ours if ".o" in matrix.name else ours.T)
        skipped = {e["name"]: e["reason"] for e in checkpoint.skipped}
        segments = next(name for name in skipped if name.endswith("seg_embed"))
        assert "3 dimensions of unknown use" in skipped[segments]
    save_file({"attn.w_q": torch.randn(4, 24, 6), "c.weight": torch.randn(4, 24, 6)},
              tmp_path / "m.safetensors")  # fmt: skip
    checkpoint = matrices_in(tmp_path / "m.safetensors")
    assert list(checkpoint.matrices) == ["c.weight"]
    assert "pass analyze the matrix" in checkpoint.skipped[0]["reason"]


def test_attention_of_transformerlens():
    # The class by its name and package; the einsums are those of its forward.
    family = type(
        "Attention", (nn.Module,), {"__module__": "transformer_lens.components.attention"}
    )
    layer = family()
    layer.W_Q = nn.Parameter(torch.randn(4, 24, 6))
    layer.W_O = nn.Parameter(torch.randn(4, 6, 24))
    layer.b_Q = nn.Parameter(torch.randn(4, 6))
    matrices = found(nn.ModuleDict({"attn": layer}))
    assert list(matrices) == ["attn.W_Q", "attn.W_O"]
    x = torch.randn(3, 24)
    query = torch.einsum("bm,nmh->bnh", x, layer.W_Q)
    torch.testing.assert_close(x @ matrices["attn.W_Q"].tensor().T, query.reshape(3, -1))
    out = torch.einsum("bnh,nhm->bm", query, layer.W_O)
    torch.testing.assert_close(query.reshape(3, -1) @ matrices["attn.W_O"].tensor().T, out)
