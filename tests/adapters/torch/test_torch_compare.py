"""`rt.compare`: two models, a model and its pruned one, a model and a file."""

import copy

import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file
from torch import nn

from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidTypeError


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(60, 90), nn.ReLU(), nn.Linear(90, 40), nn.MultiheadAttention(40, 4)
    )


def test_layers_that_changed():
    before = net()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after[0].weight += torch.randn(90, 2) @ torch.randn(2, 60)
        after[3].in_proj_weight[40:80] += 0.1 * torch.randn(40, 40)
    done = rt.compare(before, after)
    changes = {row["name"]: row["change"] for row in done}
    assert changes == {
        "0": "low rank", "2": "unchanged", "3[q]": "unchanged", "3[k]": "noise",
        "3[v]": "unchanged", "3.out_proj": "unchanged",
    }  # fmt: skip
    assert done.row("0")["rank"] == 2
    assert any(entry["name"] == "0.bias" for entry in done.skipped)
    assert len(rt.compare(before, after, include="^0$")) == 1
    assert not before[0].weight.grad


def test_a_split_layer_stands_for_its_product(mnist_net):
    smaller, _ = rt.prune(mnist_net, ranks={"0": 100}, gate=None)
    row = rt.compare(mnist_net, smaller).row("0")
    assert (row["numerical_rank_after"], row["change"]) == (100, "structured")
    weight = mnist_net[0].weight.detach()
    error = torch.linalg.norm(smaller[0].weight.detach() - weight) / torch.linalg.norm(weight)
    assert_allclose(row["relative_change"], float(error), rtol=1e-4)
    assert row["left_overlap"] > 0.999
    assert row["reason"].startswith("684 of 784 singular values are components")


def test_a_split_convolution_and_its_groups():
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(64, 96, 3, groups=2), nn.Embedding(50, 40))
    after = copy.deepcopy(before)
    after[0] = rt.SplitConv2d.from_layer(before[0], 20)
    after[1] = rt.SplitEmbedding.from_layer(before[1], 10)
    done = rt.compare(before, after)
    ranks = {row["name"]: row["numerical_rank_after"] for row in done}
    assert ranks == {"0[0]": 20, "0[1]": 20, "1": 10}
    assert all(0 < row["relative_change"] < 1 for row in done)


def test_a_model_and_a_file(tmp_path):
    model = net()
    file = tmp_path / "m.safetensors"
    save_file({f"model.{name}": tensor for name, tensor in model.state_dict().items()}, file)
    for sides in ((model, file), (file, model)):
        done = rt.compare(*sides)
        names = {tuple(sorted((r["name"], r["name_after"]))) for r in done}
        assert ("0.weight", "model.0.weight") in names
        assert done.counts == {"unchanged": 6}
        assert "'model.' before those of" in done.settings["names"]


def test_wrong_models():
    with pytest.raises(InvalidTypeError, match=r"`b` is None"):
        rt.compare(net(), None)
    with pytest.raises(InvalidTypeError, match=r"DataParallel"):
        rt.compare(net(), nn.DataParallel(net()))


def test_a_folder_of_peft_is_what_peft_merges(tmp_path, needs_packages):
    needs_packages("peft")
    import peft

    base = nn.Sequential(nn.Linear(60, 90), nn.ReLU(), nn.Linear(90, 40))
    torch.manual_seed(1)
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    config = peft.LoraConfig(r=6, lora_alpha=12, target_modules=["0", "2"], use_rslora=True)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    by_factors = rt.compare(base, tmp_path / "adapter")
    merged = rt.compare(base, model.merge_and_unload())
    assert len(by_factors) == len(merged) == 2
    for row, other in zip(by_factors, merged, strict=True):
        assert row["change"] == other["change"] == "low rank"
        assert row["rank"] == other["rank"] == row["adapter_rank"] == 6
        for key in ("relative_change", "effective_rank", "bulk_edge_after", "norm_after"):
            assert_allclose(row[key], other[key], rtol=1e-4)
