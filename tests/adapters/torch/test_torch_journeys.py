"""From a saved folder through the command's pruning back into the model's own class."""

import copy

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.errors import FileError, InvalidValueError

SMALL = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
SIDES = {
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 160, "decoder_ffn_dim": 160,
    "vocab_size": 128, "d_model": 64,
}  # fmt: skip
IMAGES = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
ENDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
HALF = {"num_key_value_heads": 2}
#: Class, and arguments of its config.
MODELS = {
    "GPT2LMHeadModel": {
        "vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "LlamaForCausalLM": {**SMALL, **HALF, "tie_word_embeddings": True},
    "MistralForCausalLM": {**SMALL, **HALF},
    "Qwen2ForCausalLM": {**SMALL, **HALF, "tie_word_embeddings": True},
    "Qwen3ForCausalLM": {**SMALL, **HALF, "head_dim": 16},
    "Gemma2ForCausalLM": {**SMALL, **HALF, "head_dim": 16},
    "PhiForCausalLM": SMALL,
    "OPTForCausalLM": {
        "vocab_size": 128, "hidden_size": 64, "ffn_dim": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "word_embed_proj_dim": 64,
    },
    "BloomForCausalLM": {"vocab_size": 128, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "GPTNeoXForCausalLM": SMALL,
    "FalconForCausalLM": {
        "vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4
    },
    "BertForMaskedLM": SMALL,
    "RobertaForMaskedLM": SMALL,
    "ElectraForMaskedLM": {**SMALL, "embedding_size": 64},
    "AlbertForMaskedLM": {**SMALL, "embedding_size": 64},
    "DebertaV2ForMaskedLM": SMALL,
    "DistilBertForMaskedLM": {
        "vocab_size": 128, "dim": 64, "hidden_dim": 160, "n_layers": 2, "n_heads": 4
    },
    "T5ForConditionalGeneration": {
        "vocab_size": 128, "d_model": 64, "d_kv": 16, "d_ff": 160, "num_layers": 2, "num_heads": 4
    },
    "BartForConditionalGeneration": {**SIDES, **ENDS},
    "WhisperForConditionalGeneration": {
        **SIDES, **ENDS, "num_mel_bins": 16, "max_source_positions": 50,
        "max_target_positions": 32, "decoder_start_token_id": 1,
    },
    "ViTForImageClassification": IMAGES,
    "CLIPModel": {"text_config": SMALL, "vision_config": IMAGES, "projection_dim": 64},
    "Wav2Vec2Model": {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4, "conv_dim": [32, 32], "conv_kernel": [10, 3],
        "conv_stride": [5, 2],
    },
    "Gemma3ForCausalLM": {**SMALL, **HALF, "head_dim": 16},
}  # fmt: skip
QUICK = ("GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM", "ViTForImageClassification")
ASKED = {
    "rule": "fraction", "keep": 0.3, "gate": None,
    "exclude": "conv|patch|pos_|position|relative|token_type|embedding_hidden",
}  # fmt: skip


def built(name):
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**copy.deepcopy(MODELS[name]))).eval()


@pytest.fixture(autouse=True)
def quiet():
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def with_merged_lora(model):
    """Return a model into whose linear layers an adapter was merged."""
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return tuned.merge_and_unload().eval()


def in_file(model, folder, **options):
    model.save_pretrained(folder / "model")
    return rmtspec.prune_checkpoint(folder / "model", folder / "small", **ASKED, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_folder_is_pruned_as_the_model_in_memory(name, lora, tmp_path):
    model = with_merged_lora(built(name)) if lora else built(name)
    in_file(model, tmp_path)
    loaded = rt.load(type(model).from_pretrained(tmp_path / "model"), tmp_path / "small")
    expected, _ = rt.prune(model, **ASKED)
    assert sum(isinstance(m, rt.SplitLayer) for m in loaded.modules()) >= 4
    assert loaded.state_dict().keys() == expected.state_dict().keys()
    merged = rt.merge(expected).state_dict()
    for key, value in rt.merge(loaded).state_dict().items():
        torch.testing.assert_close(value, merged[key])
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and model.config.tie_word_embeddings:
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    # Without factors every loader takes it, those of transformers too.
    rmtspec.merge_checkpoint(tmp_path / "small", tmp_path / "dense")
    dense = type(model).from_pretrained(tmp_path / "dense").state_dict()
    for key, value in merged.items():
        torch.testing.assert_close(dense[key], value, rtol=1e-5, atol=1e-6)
    asked = {**ASKED, "mode": "truncate"}
    rmtspec.prune_checkpoint(tmp_path / "model", tmp_path / "truncated", **asked)
    truncated = type(model).from_pretrained(tmp_path / "truncated").state_dict()
    # The command truncates q, k and v of a fused tensor by themselves, each to its own rank.
    matrices = rmtspec.checkpoint.matrices_in(tmp_path / "model").matrices.values()
    divided = [matrix.tensor.name for matrix in matrices if matrix.part is not None]
    for key, value in rt.prune(model, **asked)[0].state_dict().items():
        if not any(key.endswith(name) for name in divided):
            torch.testing.assert_close(truncated[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_parts_of_a_parameter_have_no_factors(tmp_path):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SMALL, **HALF, num_local_experts=4)
    model = transformers.MixtralForCausalLM(config).eval()
    in_file(model, tmp_path)
    with pytest.raises(InvalidValueError, match=r"experts.*part of one parameter.*--as dense"):
        rt.load(model, tmp_path / "small")
    rmtspec.merge_checkpoint(tmp_path / "small", tmp_path / "dense")
    assert type(model).from_pretrained(tmp_path / "dense")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(40, 60), nn.Linear(60, 40)

    def forward(self, x):
        return self.last(self.first(x).relu())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", ""])
def test_prefixes_of_wrappers(prefix, tmp_path):
    net = Net()
    state = {f"{prefix}{key}": value for key, value in net.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    rmtspec.prune_checkpoint(
        tmp_path / "model.safetensors", tmp_path / "small", ranks=_ranks(state)
    )
    loaded = rt.load(Net(), tmp_path / "small")
    x = torch.randn(5, 40)
    expected, _ = rt.prune(net, ranks={"first": 8, "last": 8}, gate=None)
    torch.testing.assert_close(loaded(x), expected(x))
    if prefix:  # and the other way round: the model is wrapped, the file is not
        wrapper = nn.ModuleDict({prefix.rstrip("."): net})
        rt.save(expected, tmp_path / "plain")
        again = rt.load(wrapper, tmp_path / "plain")[prefix.rstrip(".")]
        assert torch.equal(again(x), expected(x))


def _ranks(state):
    return {key: 8 for key in state if key.endswith("weight")}


def test_names_that_fit_nothing_are_told(tmp_path):
    save_file({"a.weight": torch.randn(40, 60)}, tmp_path / "model.safetensors")
    rmtspec.prune_checkpoint(tmp_path / "model.safetensors", tmp_path / "small", ranks={"a": 5})
    with pytest.raises(InvalidValueError, match="`skeleton` has no layer 'a'"):
        rt.load(Net(), tmp_path / "small")
    assert load_file(tmp_path / "small/rmtspec.safetensors").keys() == {
        "a.outer.weight", "a.inner.weight",
    }  # fmt: skip


# In one call.


def pruned_llama(tied):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, **HALF, tie_word_embeddings=tied)
    model = transformers.LlamaForCausalLM(config).eval()
    batches = [{"input_ids": torch.randint(0, 128, (2, 30))} for _ in range(3)]
    return model, rt.prune(model, calibration=batches, budget=0.6)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("saved_by", ["rt.save", "save_pretrained"])
@torch.no_grad()
def test_from_pretrained_restores_class_config_and_factors(saved_by, tied, tmp_path):
    model, smaller = pruned_llama(tied)
    ids = torch.randint(0, 128, (2, 12))
    if saved_by == "rt.save":
        rt.save(smaller, tmp_path / "small")
    else:
        smaller.save_pretrained(tmp_path / "small")
    loaded = rt.from_pretrained(tmp_path / "small")
    assert type(loaded) is type(model)
    assert torch.equal(loaded(ids).logits, smaller(ids).logits)
    assert loaded.generate(ids[:1, :4], max_new_tokens=3, do_sample=False).shape == (1, 7)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    # The other way is refused aloud; without a mark the layers would be random.
    for cls in (transformers.LlamaForCausalLM, transformers.AutoModelForCausalLM):
        with pytest.raises((ValueError, OSError)):
            cls.from_pretrained(tmp_path / "small")
    # Dense again, it is a model like any.
    rt.merge(loaded).save_pretrained(tmp_path / "dense")
    dense = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(dense(ids).logits, smaller(ids).logits, rtol=1e-4, atol=1e-4)
    assert getattr(model.config, "quantization_config", None) is None


@pytest.mark.filterwarnings("ignore")
def test_from_pretrained_takes_what_the_command_wrote(tmp_path):
    model = built("BertForMaskedLM")
    in_file(model, tmp_path)
    loaded = rt.from_pretrained(tmp_path / "small")
    assert type(loaded) is type(model)
    expected = rt.load(type(model)(model.config), tmp_path / "small")
    state = expected.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_folders_that_from_pretrained_cannot_take(tmp_path):
    with pytest.raises(FileError, match="does not exist; expected a folder of a pruned model"):
        rt.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileError, match=r"has no config.json.*rt.load"):
        rt.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FileError, match=r"config.json cannot be read"):
        rt.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["Strange"]}')
    with pytest.raises(InvalidValueError, match="names the class 'Strange', which transformers"):
        rt.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_the_tokenizer_is_carried_along(tmp_path):
    model, _ = pruned_llama(False)
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "notes.txt", "run.py"):
        (tmp_path / "model" / name).write_text("{}")
    loaded = type(model).from_pretrained(tmp_path / "model")
    rt.save(rt.prune(loaded, ranks={"model.layers.0.mlp.up_proj": 5})[0], tmp_path / "small")
    names = {file.name for file in (tmp_path / "small").iterdir()}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "config.json"}
    assert not names & {"notes.txt", "run.py", "model.safetensors"}


def test_a_vocabulary_grows_after_the_split(tmp_path):
    """transformers refuses a head that is no Linear, before or after it was merged."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, tie_word_embeddings=False)
    ranks = {"lm_head": 8, "model.embed_tokens": 8}
    split, _ = rt.prune(transformers.LlamaForCausalLM(config), ranks=ranks)
    with pytest.raises(TypeError, match=r"SplitLinear|SplitEmbedding"):
        split.resize_token_embeddings(140)
    merged = rt.merge(rt.prune(transformers.LlamaForCausalLM(config), ranks=ranks)[0])
    merged.resize_token_embeddings(140, mean_resizing=False)
    assert merged(torch.tensor([[1, 139]])).logits.shape == (1, 2, 140)
