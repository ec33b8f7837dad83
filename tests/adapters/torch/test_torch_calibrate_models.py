"""Calibrated, pruned, saved, loaded, merged and refitted: random models of transformers."""

import pytest
import torch
import transformers

from rmtspec.adapters import torch as rt

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 100,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
SAMPLED, PROBES = "labels sampled from the model's own softmax", "random signs of the outputs"
#: Model, config, its options, where gradients come from, layers and different inputs seen.
MODELS = {
    "llama, tied": ("LlamaForCausalLM", "LlamaConfig", {**GROUPED, "tie_word_embeddings": True},
                    SAMPLED, 14, 8),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config",
             {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100}, SAMPLED, 8, 8),
    "masked bert": ("BertForMaskedLM", "BertConfig", SIZES, SAMPLED, 13, 9),
    "bert, classes": ("BertForSequenceClassification", "BertConfig", {**SIZES, "num_labels": 3},
                      SAMPLED, 14, 10),
    "bert, answers": ("BertForQuestionAnswering", "BertConfig", SIZES, SAMPLED, 13, 9),
    "bert": ("BertModel", "BertConfig", SIZES, PROBES, 13, 9),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 4},
                SAMPLED, 8, 4),
    "t5": ("T5ForConditionalGeneration", "T5Config",
           {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16,
            "vocab_size": 100}, SAMPLED, 32, 21),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_every_journey(name, tmp_path):
    model_name, config_name, options, gradient, layers, inputs = MODELS[name]
    config = getattr(transformers, config_name)(**options)

    def build():
        torch.manual_seed(0)
        return getattr(transformers, model_name)(config).eval()

    model = build()
    ids = torch.randint(3, 100, (4, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 12:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if name == "t5":
        batch["decoder_input_ids"] = ids[:, :9]
    stats = rt.calibrate(model, [batch, batch])
    assert (stats.gradient, stats.without_gradient) == (gradient, {})
    assert (len(stats.inputs), len(stats.input_moments)) == (layers, inputs)
    smaller, report = rt.prune(model, calibration=stats, budget=0.6)
    assert len(report.cut) >= 6
    rt.save(smaller, tmp_path / "small")
    loaded = rt.load(build(), tmp_path / "small").eval()
    with torch.no_grad():
        found = smaller(**batch)[0]
        torch.testing.assert_close(loaded(**batch)[0], found, rtol=0, atol=0)
        torch.testing.assert_close(rt.merge(smaller)(**batch)[0], found, rtol=1e-3, atol=1e-5)
    better, curve = rt.refit(smaller, model, [batch], steps=3)
    assert len(curve.losses) == 3
    assert type(better) is type(model)
