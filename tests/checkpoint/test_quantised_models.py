"""Models whose quantised weights are written as plain numbers, against transformers' own way."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import rmtspec

TOKENS = torch.arange(20)[None] * 7
SIZES = {"vocab_size": 200, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "dtype": "bfloat16"}  # fmt: skip


def written(folder, model, quantise, scheme):
    """Save a model with each of its weights as `quantise` has it, by name."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors |= quantise(name, tensor) or {name: tensor}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": scheme}
    (folder / "config.json").write_text(json.dumps(config))


def gpt_oss(folder):
    from transformers import GptOssConfig, GptOssForCausalLM, Mxfp4Config

    config = GptOssConfig(
        **SIZES, hidden_size=64, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2
    )

    def quantise(name, tensor):
        if not name.endswith(("gate_up_proj", "down_proj")):
            return None
        experts, inputs, outputs = tensor.shape
        shape = experts, outputs, inputs // 32
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        scales = torch.randint(118, 124, shape, dtype=torch.uint8)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}

    spared = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
              "lm_head"]  # fmt: skip
    scheme = {"quant_method": "mxfp4", "modules_to_not_convert": spared}
    written(folder, GptOssForCausalLM(config), quantise, scheme)
    return Mxfp4Config(dequantize=True), 4


def llama(folder):
    from transformers import FineGrainedFP8Config, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES, hidden_size=128, intermediate_size=256)

    def quantise(name, tensor):
        if "_proj" not in name:
            return None
        grid = tensor.shape[0] // 32, tensor.shape[1] // 32
        codes = (200 * tensor.float()).to(torch.float8_e4m3fn)
        return {name: codes, f"{name}_scale_inv": torch.rand(grid) / 200}

    scheme = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    written(folder, LlamaForCausalLM(config), quantise, scheme)
    return FineGrainedFP8Config(dequantize=True, weight_block_size=[32, 32]), 14


@pytest.mark.parametrize("model", [gpt_oss, llama])
def test_the_same_logits(tmp_path, model):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    way, count = model(tmp_path / "in")
    assert len(rmtspec.merge_checkpoint(tmp_path / "in", tmp_path / "out")) == count
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "in", quantization_config=way)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert ours.dtype == theirs.dtype == torch.bfloat16
    with torch.no_grad():
        logits = ours(TOKENS).logits
        assert torch.equal(logits, theirs(TOKENS).logits)
    assert logits.abs().max() > 0.1
