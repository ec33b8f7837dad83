"""What is written into the weight of a split layer becomes its factors; adapters merge rightly."""

import copy

import pytest
import torch
from torch import nn

from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidValueError


def split(form="plain"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60))
    return rt.prune(model, ranks={"0": 8}, gate=None, form=form)[0][0]


def low_rank(rank=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(60, rank, generator=generator) @ torch.randn(rank, 40, generator=generator)


def copied(layer, W):
    layer.weight.copy_(W)
    return W


def added_to_data(layer, W):
    before = layer.weight.clone()
    layer.weight.data += W
    return before + W


def data_replaced(layer, W):
    layer.weight.data = W
    return W


def zeroed(layer, W):
    layer.weight.zero_()
    return torch.zeros_like(W)


def rows_set(layer, W):
    expected = layer.weight.clone()
    layer.weight[3:5] = expected[3:5] = W[:2]
    return expected


def added(layer, W):
    before, weight = layer.weight.clone(), layer.weight
    weight += W
    return before + W


def scaled(layer, W):
    before = layer.weight.clone()
    layer.weight.mul_(-2)
    return -2 * before


def initialised(layer, W):
    nn.init.constant_(layer.weight, 0.5)
    return torch.full_like(W, 0.5)


def put_out(layer, W):
    torch.add(W, W, out=layer.weight)
    return 2 * W


WRITES = [
    copied, added_to_data, data_replaced, zeroed, rows_set, added, scaled, initialised, put_out,
]  # fmt: skip


@pytest.mark.parametrize("form", ["plain", "pivoted"])
@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
@torch.no_grad()
def test_a_write_takes_effect(write, form):
    layer, W = split(form), low_rank()
    expected = write(layer, W)
    torch.testing.assert_close(layer.weight + 0, expected, rtol=1e-4, atol=1e-5)
    assert layer.form == form
    assert layer.rank <= 13
    x = torch.randn(7, 40)
    torch.testing.assert_close(
        layer(x), nn.functional.linear(x, expected, layer.bias), rtol=1e-4, atol=1e-4
    )


def test_the_parameters_stay_the_same_where_the_rank_does():
    layer = split()
    before = [layer.inner.weight, layer.outer.weight]
    with torch.no_grad():
        layer.weight.mul_(3.0)
    assert layer.inner.weight is before[0]
    assert layer.outer.weight is before[1]
    assert layer.outer.bias.requires_grad


def test_reading_is_reading():
    layer = split()
    assert type(layer.weight @ torch.ones(40)) is torch.Tensor
    assert layer.weight.shape == (60, 40)
    layer.weight.square().sum().backward()
    assert layer.inner.weight.grad.any()
    assert torch.equal(copy.deepcopy(layer).weight + 0, layer.weight + 0)
    view = layer.weight.detach().clone()
    view.zero_()
    assert layer.weight.any()


@pytest.mark.parametrize("kind", ["embedding", "conv"])
@torch.no_grad()
def test_other_layers_too(kind):
    torch.manual_seed(0)
    layer = nn.Embedding(50, 30) if kind == "embedding" else nn.Conv2d(8, 24, 3)
    cls = rt.SplitEmbedding if kind == "embedding" else rt.SplitConv2d
    thin = cls.from_layer(layer, 5)
    thin.weight.copy_(layer.weight)
    torch.testing.assert_close(thin.weight + 0, layer.weight, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_cannot_be_written():
    layer = split()
    with pytest.raises(InvalidValueError, match="nan or infinite entries"):
        layer.weight.fill_(float("nan"))
    with pytest.raises(InvalidValueError, match=r"has shape \(3, 3\)"):
        layer.weight.data = torch.ones(3, 3)
    model = nn.Sequential(layer)
    thin = rt.quantize_factors(model)[0]
    with pytest.raises(InvalidValueError, match="stored as codes, which cannot be written"):
        thin.weight.zero_()
    with pytest.raises((AttributeError, KeyError)):
        layer.weight = nn.Parameter(torch.ones(60, 40))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["plain", "pivoted"])
@torch.no_grad()
def test_lora_is_merged_into_a_split_base(form):
    import peft

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 40))
    tuned = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["0", "2"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    smaller, report = rt.prune(
        tuned, include="base_layer", rule="fraction", keep=0.3, gate=None, form=form
    )
    assert {row["name"].rpartition(".")[2] for row in report.cut} == {"base_layer"}
    x = torch.randn(9, 40)
    with_adapter = smaller(x)
    assert (with_adapter - smaller.base_model.model[0].base_layer(x)[:, :40]).any()
    merged = smaller.merge_and_unload()
    torch.testing.assert_close(merged(x), with_adapter, rtol=1e-4, atol=1e-4)
    assert isinstance(merged[0], rt.SplitLinear)
    assert merged[0].rank == report.cut[0]["rank"] + 4
    torch.testing.assert_close(rt.merge(merged)(x), with_adapter, rtol=1e-4, atol=1e-4)
