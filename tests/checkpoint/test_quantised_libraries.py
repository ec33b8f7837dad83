"""Each layout against what its own library makes of it: tests/reference/make_quantised.py."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rmtspec
from rmtspec.checkpoint import matrices_in
from rmtspec.checkpoint.stored import named_dtype

CASES = sorted(Path(__file__).parents[1].glob("reference/quantised/*.safetensors"))
METHODS = {
    "awq": "AWQ 4 bits", "bnb_nf4": "bitsandbytes NF4", "bnb_fp4": "bitsandbytes FP4",
    "bnb_nf4_plain": "bitsandbytes NF4", "bnb_int8": "bitsandbytes int8",
    "gptq_2_gptq_v2": "GPTQ 2 bits", "gptq_3_gptq": "GPTQ 3 bits", "gptq_8_gptq": "GPTQ 8 bits",
    "gptq_4_gptq": "GPTQ 4 bits", "gptq_4_gptq_v2": "GPTQ 4 bits", "mxfp4": "MXFP4",
    "fp8_block": "FP8 E4M3", "fp8_exponents": "FP8 E4M3", "fp8_tensor": "FP8 E4M3",
    "fp8_stack": "FP8 E4M3", "ct_int4": "compressed-tensors int4",
    "ct_int4_zeros": "compressed-tensors int4", "ct_int8_packed": "compressed-tensors int8",
    "ct_int3_zeros": "compressed-tensors int3", "ct_int8": "compressed-tensors int8",
    "ct_int8_zeros": "compressed-tensors int8", "ct_float8": "compressed-tensors FP8 E4M3",
    "ct_float8_block": "compressed-tensors FP8 E4M3", "ct_mxfp8": "compressed-tensors FP8 E4M3",
    "ct_mxfp4": "MXFP4", "ct_nvfp4": "NVFP4",
}  # fmt: skip


def unfolded(file, folder):
    """Write the layer of a reference as a checkpoint; return the dense weight and its name."""
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["config"])
    tensors = load_file(file)
    ((name, dense),) = ((n, t) for n, t in tensors.items() if n.startswith("dense:"))
    folder.mkdir(exist_ok=True)
    held = {n: t for n, t in tensors.items() if not n.startswith("dense:")}
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return name.removeprefix("dense:"), dense, config


def test_every_reference_is_tested():
    assert [file.stem for file in CASES] == sorted(METHODS)


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_as_the_library_has_it(tmp_path, file):
    name, dense, config = unfolded(file, tmp_path / "in")
    listed = matrices_in(tmp_path / "in", parts=False)
    assert listed.skipped == []
    assert list(listed.tensors) == [name]
    tensor = listed.tensors[name]
    assert (tensor.dtype, tensor.shape) == (METHODS[file.stem], tuple(dense.shape))
    ours = torch.tensor(tensor()).to(dense.dtype)
    # int8 of bitsandbytes: they multiply by 1 / 127, here the scale is divided by 127
    exact = file.stem != "bnb_int8"
    torch.testing.assert_close(ours, dense, rtol=0 if exact else 3e-7, atol=0, equal_nan=True)
    # The matrices of a stack, one by one.
    for matrix in listed.matrices.values():
        part = matrix.part
        expected = tensor() if part is None else part.of(tensor())
        assert (matrix() == expected.reshape(matrix.sides)).all()
        method, steps = matrix.rounding()
        assert method == METHODS[file.stem]
        assert steps.shape == matrix.sides
    # The dense export, and prune, which refuses.
    config["torch_dtype"] = "float16"
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    assert rmtspec.merge_checkpoint(tmp_path / "in", tmp_path / "out") == [name]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert list(found) == [name]
    torch.testing.assert_close(found[name], torch.tensor(tensor()).half(), rtol=0, atol=0)
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert kept == {key: value for key, value in config.items() if key != "quantization_config"}
    with pytest.raises(rmtspec.errors.FileError, match=r"never pruned\. .*rmtspec merge IN OUT"):
        rmtspec.prune_checkpoint(tmp_path / "in", tmp_path / "no", gate=None)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_the_dtype_of_the_layout(tmp_path, file):
    name, dense, _ = unfolded(file, tmp_path / "in")
    (layout,) = (t.layout for t in matrices_in(tmp_path / "in").tensors.values())
    rmtspec.merge_checkpoint(tmp_path / "in", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")[name]
    assert named_dtype(layout.dtype).itemsize == found.element_size()
    if file.stem.startswith(("bnb_nf4", "bnb_fp4", "ct_", "awq", "mxfp4")):
        assert found.dtype == dense.dtype
        assert torch.equal(found, dense)
    shutil.rmtree(tmp_path / "out")
