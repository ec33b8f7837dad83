"""Factors in int8 and bfloat16: near the same function, fewer bytes, every journey."""

import copy

import pytest
import torch
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidOptionError, InvalidValueError


@pytest.fixture(params=["plain", "pivoted"])
def pruned(request):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 80, bias=False))
    smaller, _ = rt.prune(model, ranks={"0": 20, "2": 30}, gate=None, form=request.param)
    return model, smaller


def batch():
    return torch.randn(50, 64, generator=torch.Generator().manual_seed(0))


def stored(model):
    return sum(v.numel() * v.element_size() for v in model.state_dict().values())


@pytest.mark.parametrize(
    ("dtype", "error", "share"), [("int8", 0.02, 0.45), ("bfloat16", 0.01, 0.65)]
)
@torch.no_grad()
def test_it_is_nearly_the_same_in_fewer_bytes(pruned, dtype, error, share):
    _, smaller = pruned
    thin = rt.quantize_factors(smaller, dtype)
    x = batch()
    assert (thin(x) - smaller(x)).norm() < error * smaller(x).norm()
    assert stored(thin) < share * stored(smaller)
    assert thin(x).dtype == torch.float32
    assert thin(x.double()).dtype == torch.float64 or thin[0].bias is not None
    assert type(smaller[0].inner) is nn.Linear  # unchanged
    assert thin[0].weight.shape == (96, 64)


@torch.no_grad()
def test_codes_are_the_nearest(pruned):
    _, smaller = pruned
    inner = rt.quantize_factors(smaller)[0].inner
    weight = smaller[0].inner.weight
    assert inner.codes.abs().amax(1).tolist() == [127] * 20
    assert (abs(inner.weight - weight) <= inner.scale[:, None] / 2 * 1.0001).all()


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
@torch.no_grad()
def test_saved_loaded_and_merged(pruned, tmp_path, dtype):
    model, smaller = pruned
    thin = rt.quantize_factors(smaller, dtype)
    rt.save(thin, tmp_path / "thin")
    loaded = rt.load(copy.deepcopy(model), tmp_path / "thin")
    x = batch()
    assert torch.equal(loaded(x), thin(x))
    assert loaded[0].inner.codes.dtype == {"int8": torch.int8, "bfloat16": torch.bfloat16}[dtype]
    merged = rt.merge(thin)
    assert type(merged[0]) is nn.Linear
    assert merged[0].weight.dtype == torch.float32
    torch.testing.assert_close(merged(x), thin(x), rtol=1e-4, atol=1e-5)
    rmtspec.merge_checkpoint(tmp_path / "thin", tmp_path / "dense")
    state = rt.read_state_dict(next((tmp_path / "dense").glob("*.safetensors")))
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_codes_keep_their_dtype_when_the_model_changes_its_own(pruned):
    thin = rt.quantize_factors(pruned[1])
    half = copy.deepcopy(thin).half()
    assert half[0].inner.codes.dtype == torch.int8
    assert half(batch().half()).dtype == torch.float16
    again = rt.quantize_factors(thin)  # nothing is left to do
    assert torch.equal(again(batch()), thin(batch()))


def test_rows_of_zeros_stay_zeros(pruned):
    _, smaller = pruned
    with torch.no_grad():
        smaller[0].inner.weight[3] = 0.0
    assert not rt.quantize_factors(smaller)[0].inner.weight[3].any()


def test_what_cannot_be_quantised(pruned):
    model, smaller = pruned
    with pytest.raises(InvalidValueError, match="has no split linear layer"):
        rt.quantize_factors(model)
    with pytest.raises(InvalidOptionError, match="`dtype` is 'int4'; expected one of int8, bf"):
        rt.quantize_factors(smaller, "int4")
    thin = rt.quantize_factors(smaller)
    with pytest.raises(InvalidValueError, match="'0' are stored in int8 already, not in bfloat16"):
        rt.quantize_factors(thin, "bfloat16")
    assert rt.quantize_factors(thin).state_dict().keys() == thin.state_dict().keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_torchao_quantises_the_factors_too(pruned):
    torchao = pytest.importorskip("torchao.quantization")
    _, smaller = pruned
    before = smaller(batch())
    thin = copy.deepcopy(smaller)
    torchao.quantize_(thin, torchao.Int8WeightOnlyConfig())
    assert type(thin[0].inner.weight) is not nn.Parameter
    assert (thin(batch()) - before).norm() < 0.02 * before.norm()
