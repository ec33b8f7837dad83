"""Adapters that `extract_lora` and `resize_lora` write, loaded by PEFT."""

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import rmtspec

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TOKENS = torch.arange(24).reshape(2, 12)
MODELS = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=64, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        ),
        ["q_proj", "down_proj", "embed_tokens"],
    ),
    "gpt2": (
        GPT2LMHeadModel, GPT2Config(vocab_size=64, n_embd=48, n_layer=2, n_head=4, n_positions=32),
        ["c_attn", "c_proj"],
    ),
}  # fmt: skip


def outputs(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.fixture(params=MODELS)
def tuned(request, tmp_path):
    """A base model, an adapter of PEFT on it, and the two merged, each in its folder."""
    torch.manual_seed(0)
    kind, config, targets = MODELS[request.param]
    base = kind(config)
    base.save_pretrained(tmp_path / "base")
    ranks = {"c_proj": 5} if request.param == "gpt2" else {"down_proj": 3}
    settings = peft.LoraConfig(
        r=8, lora_alpha=24, target_modules=targets, fan_in_fan_out=request.param == "gpt2",
        rank_pattern=ranks, alpha_pattern=dict.fromkeys(ranks, 7),
    )  # fmt: skip
    model = peft.get_peft_model(base, settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    expected = outputs(model)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "tuned")
    return kind, tmp_path, expected


def with_adapter(kind, folder, name):
    base = kind.from_pretrained(folder / "base")
    return outputs(peft.PeftModel.from_pretrained(base, folder / name))


def test_the_extracted_adapter_does_what_the_tuned_model_does(tuned):
    kind, folder, expected = tuned
    include = "embed_tokens|proj|attn"
    done = rmtspec.extract_lora(folder / "base", folder / "tuned", folder / "out", include=include)
    ranks = {row["name"].split(".")[-2]: row["rank"] for row in done.rows}
    assert ranks in (
        {"q_proj": 8, "down_proj": 3, "embed_tokens": 8}, {"c_attn": 8, "c_proj": 5}
    )  # fmt: skip
    torch.testing.assert_close(with_adapter(kind, folder, "out"), expected, atol=1e-5, rtol=1e-4)


def test_a_table_that_is_the_head_too_is_left_alone(tmp_path):
    """PEFT would change what is looked up, and not what the head multiplies by."""
    kind, config, _ = MODELS["llama"]
    torch.manual_seed(0)
    model = kind(type(config).from_dict(config.to_dict() | {"tie_word_embeddings": True}))
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in (
            model.model.embed_tokens.weight,
            model.model.layers[0].mlp.up_proj.weight,
        ):
            parameter += torch.outer(parameter[:, 0], parameter[0])
    model.save_pretrained(tmp_path / "tuned")
    done = rmtspec.extract_lora(
        tmp_path / "base", tmp_path / "tuned", None, include="embed|up_proj"
    )
    assert [row["name"] for row in done.rows] == ["model.layers.0.mlp.up_proj.weight"]
    reasons = {entry["name"]: entry["reason"] for entry in done.skipped}
    assert reasons["model.embed_tokens.weight"].startswith("tied to the head")


def test_magnitudes_of_dora_stay(tmp_path):
    torch.manual_seed(0)
    kind, config, _ = MODELS["llama"]
    base = kind(config)
    base.save_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(r=8, target_modules=["q_proj", "down_proj"], use_dora=True)
    model = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.normal_(std=0.05)
                parameter[(slice(None), slice(4, None)) if "lora_B" in name else slice(4, None)] = 0
            elif "magnitude" in name:
                parameter *= 1.2
    model.save_pretrained(tmp_path / "adapter")
    done = rmtspec.resize_lora(tmp_path / "adapter", tmp_path / "small")
    assert {row["rank"] for row in done.rows} == {4}
    torch.testing.assert_close(with_adapter(kind, tmp_path, "small"), outputs(model))


def test_an_adapter_of_peft_as_matrices_and_resized(tuned):
    kind, folder, expected = tuned
    report = rmtspec.analyze_checkpoint(folder / "adapter")
    assert not [row["name"] for row in report.rows if "lora" in row["name"]]
    assert {row["numerical_rank"] for row in report.rows} in ({8, 3}, {8, 5})
    base, merged = (kind.from_pretrained(folder / name) for name in ("base", "tuned"))
    before, after = base.state_dict(), merged.state_dict()
    for name, matrix in rmtspec.checkpoint.matrices_in(folder / "adapter").matrices.items():
        change = (after[name] - before[name]).numpy()
        if kind is GPT2LMHeadModel:  # stored as inputs x outputs
            change = change.T
        assert abs(matrix() - change).max() < 1e-5
    rmtspec.resize_lora(folder / "adapter", folder / "small")
    torch.testing.assert_close(with_adapter(kind, folder, "small"), expected, atol=1e-5, rtol=1e-4)
