"""Layouts that no library writes today, or writes in one way only, against arrays by hand."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors.torch import load_file, save_file

import rmtspec
from rmtspec.checkpoint import matrices_in

ROWS, COLUMNS = 40, 64


def only(folder, tensors, options, **config):
    """Return the one matrix of a folder, which is written."""
    folder.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    config = {"quantization_config": options, **config}
    (folder / "config.json").write_text(json.dumps(config))
    listed = matrices_in(folder)
    ((name, matrix),) = listed.matrices.items()
    assert name == "fc.weight"
    return matrix


def floats(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("shape", [(ROWS, 1), (ROWS,), (1,), (1, 1), ()])
@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
def test_floats_with_a_scale_for_each_row(tmp_path, dtype, shape, name):
    codes, scales = floats(ROWS, COLUMNS).to(dtype), floats(*shape, seed=1).abs()
    tensors = {"fc.weight": codes, f"fc.{name}": scales, "fc.input_scale_ub": torch.ones(1)}
    method = "fbgemm_fp8" if shape == (ROWS, 1) else "fp8"
    matrix = only(tmp_path / "in", tensors, {"quant_method": method})
    column = scales.reshape(-1, 1).numpy()
    assert_array_equal(matrix(), codes.float().numpy() * column)
    assert matrix.tensor.dtype == ("FP8 E5M2" if dtype == torch.float8_e5m2 else "FP8 E4M3")
    rmtspec.merge_checkpoint(tmp_path / "in", tmp_path / "out")
    dense = load_file(tmp_path / "out" / "model.safetensors")
    assert list(dense) == ["fc.weight"]
    assert torch.equal(dense["fc.weight"], torch.tensor(matrix()).bfloat16())


def test_the_steps_of_floats(tmp_path):
    """Of E4M3: eight values in each power of two, and the distance 2^-9 below 2^-6."""
    codes = torch.tensor([0.0, 2.0**-8, 1.125, 1.25, 15.0, 448.0] * 4).reshape(4, 6)
    tensors = {"fc.weight": codes.to(torch.float8_e4m3fn), "fc.weight_scale": torch.tensor(-2.0)}
    _, steps = only(tmp_path / "in", tensors, {"quant_method": "fp8"}).rounding()
    assert_array_equal(steps[0], [2 * 2.0**-9, 2 * 2.0**-9, 0.25, 0.25, 2.0, 64.0])


def test_exponents_as_bytes(tmp_path):
    codes = floats(ROWS, COLUMNS).to(torch.float8_e4m3fn)
    exponents = torch.tensor([[126, 127], [128, 120]], dtype=torch.uint8)
    tensors = {"fc.weight": codes, "fc.weight_scale_inv": exponents}
    options = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    scales = np.array([[0.5, 1.0], [2.0, 2.0**-7]], np.float32).repeat(32, 0)[:ROWS].repeat(32, 1)
    assert_array_equal(only(tmp_path / "in", tensors, options)(), codes.float().numpy() * scales)


def packed(codes, bits):
    """Return codes in words along the last axis, by whole numbers of Python."""
    words = []
    for row in codes:
        number = sum(int(code) << (bits * place) for place, code in enumerate(row))
        count = -(-bits * len(row) // 32)
        words.append([number >> (32 * i) & (2**32 - 1) for i in range(count)])
    return torch.tensor(np.array(words, np.uint32).view(np.int32))


def gptq(bits, groups, seed=2):
    rng = np.random.default_rng(seed)
    codes, zeros = rng.integers(0, 2**bits, (ROWS, COLUMNS)), rng.integers(1, 2**bits, (groups, 64))
    zeros = zeros[:, :ROWS]
    scales = rng.random((groups, ROWS)).astype(np.float16)
    tensors = {
        "fc.qweight": packed(codes, bits).T, "fc.qzeros": packed(zeros - 1, bits),
        "fc.scales": torch.tensor(scales),
    }  # fmt: skip
    return codes, zeros, scales.astype(np.float32), tensors


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_without_an_order(tmp_path, bits):
    codes, zeros, scales, tensors = gptq(bits, groups=4)
    options = {"quant_method": "gptq", "bits": bits, "group_size": 16, "desc_act": False}
    expected = (codes - zeros.T.repeat(16, 1)) * scales.T.repeat(16, 1)
    matrix = only(tmp_path / "in", tensors, options)
    assert_array_equal(matrix(), expected.astype(np.float32))
    assert_array_equal(matrix.rounding()[1], scales.T.repeat(16, 1))


def test_gptq_of_one_group(tmp_path):
    codes, zeros, scales, tensors = gptq(4, groups=1)
    options = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    expected = ((codes - zeros.T) * scales.T).astype(np.float32)
    assert_array_equal(only(tmp_path / "in", tensors, options)(), expected)


def test_gptq_whose_layers_differ(tmp_path):
    codes, zeros, scales, tensors = gptq(8, groups=2)
    tensors["fc.g_idx"] = torch.tensor(np.arange(COLUMNS) % 2, dtype=torch.int32)
    options = {"quant_method": "gptq", "bits": 4, "group_size": 16, "dynamic": {"fc": {"bits": 8}}}
    order = np.arange(COLUMNS) % 2
    expected = ((codes - zeros.T[:, order]) * scales.T[:, order]).astype(np.float32)
    matrix = only(tmp_path / "in", tensors, options)
    assert_array_equal(matrix(), expected)
    assert matrix.tensor.dtype == "GPTQ 8 bits"


def test_awq_of_one_group(tmp_path):
    rng = np.random.default_rng(3)
    codes, zeros = rng.integers(0, 16, (COLUMNS, ROWS)), rng.integers(0, 16, (1, ROWS))
    order = [8 * block + place for block in range(ROWS // 8) for place in (0, 2, 4, 6, 1, 3, 5, 7)]
    scales = rng.random((1, ROWS)).astype(np.float32)
    tensors = {
        "fc.qweight": packed(codes[:, order], 4), "fc.qzeros": packed(zeros[:, order], 4),
        "fc.scales": torch.tensor(scales),
    }  # fmt: skip
    options = {"quant_method": "awq", "bits": 4, "group_size": -1, "version": "gemm"}
    expected = ((codes - zeros) * scales).T.astype(np.float32)
    assert_array_equal(only(tmp_path / "in", tensors, options)(), expected)


def test_a_table_of_a_file(tmp_path):
    """Four bits in a kernel of four dimensions, stored as another dtype, with its own table."""
    rng = np.random.default_rng(4)
    shape, table = (20, 4, 3, 3), np.sort(rng.standard_normal(16)).astype(np.float32)
    codes = rng.integers(0, 16, 720).astype(np.uint8)
    scales = rng.random(12).astype(np.float32)  # blocks of 64, the last of 16
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": list(shape)}
    content = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    pairs = torch.tensor(codes[0::2] << 4 | codes[1::2]).reshape(-1, 1)
    tensors = {
        "fc.weight": pairs.view(-1).view(torch.bfloat16).reshape(-1, 1),
        "fc.weight.absmax": torch.tensor(scales), "fc.weight.quant_map": torch.tensor(table),
        "fc.weight.quant_state.bitsandbytes__nf4": content,
    }  # fmt: skip
    matrix = only(tmp_path / "in", tensors, {"quant_method": "bitsandbytes"})
    expected = table[codes] * scales.repeat(64)[:720]
    assert (matrix.kind, matrix.sides) == ("conv", (20, 36))
    assert_array_equal(matrix(), expected.reshape(20, 36))
    assert_array_equal(matrix.tensor(), expected.reshape(shape))
    assert matrix.rounding()[1].shape == (20, 36)


def test_a_zero_scale(tmp_path):
    codes, _, _, tensors = gptq(4, groups=4)
    tensors["fc.scales"] = torch.zeros_like(tensors["fc.scales"])
    options = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    matrix = only(tmp_path / "in", tensors, options)
    assert not matrix().any()
    (row,) = rmtspec.analyze_checkpoint(tmp_path / "in").rows
    assert (row["rounding_variance"], row["rounding_edge"]) == (0.0, 0.0)
    assert codes.any()
