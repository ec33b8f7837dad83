"""Parts of fused tensors, compared with how the models of transformers use those tensors."""

import importlib
import json

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import conversion_mapping

from rmtspec.adapters import torch as rt
from rmtspec.checkpoint.fused import parts_of


def parts_in(model, config):
    """Return (name, label) -> matrix for all parts in a model's tensors."""
    state = {name: p.detach() for name, p in model.named_parameters()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    parts = {}
    for name, tensor in state.items():
        for part in parts_of(name, shapes[name], config, shapes):
            parts[name, part.label] = torch.from_numpy(part.of(tensor.numpy()).copy())
    return parts


# Layers of torch itself: the names and matrices of the adapter, which knows their types.


def test_the_same_parts_as_in_a_model():
    class Moe(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 4, 5))

    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(8, 2),
            "lstm": nn.LSTM(5, 6, num_layers=2, bidirectional=True),
            "projecting": nn.LSTM(5, 6, proj_size=3),
            "gru": nn.GRUCell(5, 6),
            "rnn": nn.RNN(5, 6),
            "moe": Moe(),
        }
    )
    parts = parts_in(model, {})
    expected = {m.name: m for m in rt.weight_matrices(model) if m.name.endswith("]")}
    names = {
        f"{name}[{label}]".replace(".in_proj_weight", ""): m for (name, label), m in parts.items()
    }
    assert names.keys() == expected.keys()
    assert len(names) == 3 + 2 * 2 * 2 * 4 + 2 * 4 + 2 * 3 + 3
    for name, matrix in names.items():
        np.testing.assert_array_equal(matrix.numpy(), expected[name].matrix(), err_msg=name)


# transformers: what its forward makes of the fused tensor.


def tiny(model_type, options):
    """Return a model of one layer with random weights, and its config as saved in a file."""
    torch.manual_seed(7)
    config = transformers.CONFIG_MAPPING[model_type](**options)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.0 if name.endswith("bias") else 0.3)
    return model, json.loads(config.to_json_string())


class Recorder(TorchFunctionMode):
    """Records the operands of each product after the fused layer was called."""

    def __init__(self, fused):
        super().__init__()
        self.products, self.linears, self.splits, self.input = [], [], [], None
        fused.register_forward_hook(self.start)

    def start(self, module, args, output):
        self.products, self.linears, self.splits, self.input = [], [], [], args[0]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        out = function(*args, **kwargs)
        if self.input is not None:
            if name in ("matmul", "__matmul__", "bmm", "baddbmm"):
                tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
                self.products.append(tensors[-2:])
            elif name == "linear" and args[0] is not self.input:
                self.linears.append(args[0])
            elif name == "split":
                self.splits.append(out)
        return out


def fingerprint(tensor, count):
    """Return the sorted entries, whatever the order of the heads, their number and their scale."""
    entries = tensor.flatten().sort().values
    assert entries.numel() % count == 0
    entries = entries[:: entries.numel() // count]  # heads that are shared are repeated
    return entries / entries.norm()


def applied(x, matrix, module):
    return x @ (matrix if type(module).__name__ == "Conv1D" else matrix.T)


def assert_same(actual, expected):
    count = expected.numel()
    torch.testing.assert_close(
        fingerprint(actual, count), fingerprint(expected, count), rtol=1e-4, atol=1e-6
    )


GPT = {"n_embd": 24, "n_head": 6, "n_layer": 1, "n_positions": 8, "vocab_size": 11}
LLAMA = {
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_hidden_layers": 1,
    "intermediate_size": 20,
    "vocab_size": 11,
    "pad_token_id": 0,
}
MOE = LLAMA | {"num_key_value_heads": 2, "head_dim": 4, "moe_intermediate_size": 16}
ATTENTION = {
    "gpt2": ("gpt2", GPT),
    "openai-gpt": ("openai-gpt", GPT),
    "imagegpt": ("imagegpt", GPT),
    "gpt_bigcode": ("gpt_bigcode", GPT | {"multi_query": True}),
    "gpt_bigcode-heads": ("gpt_bigcode", GPT | {"multi_query": False}),
    "codegen": ("codegen", GPT | {"n_head": 4, "rotary_dim": 4, "n_ctx": 8}),
    "phi3": ("phi3", LLAMA | {"num_key_value_heads": 2}),
    "gpt_neox": ("gpt_neox", LLAMA),
    "gpt_neox_japanese": ("gpt_neox_japanese", LLAMA),
    "bloom": ("bloom", {"hidden_size": 24, "n_head": 6, "n_layer": 1, "vocab_size": 11}),
    "persimmon": ("persimmon", LLAMA | {"qk_layernorm": False}),
    "deberta": ("deberta", LLAMA | {"max_position_embeddings": 8, "type_vocab_size": 0}),
    "modernbert": ("modernbert", LLAMA),
    "mpt": ("mpt", {"d_model": 24, "n_heads": 6, "n_layers": 1, "vocab_size": 11}),
    "falcon": ("falcon", LLAMA | {"multi_query": True}),
    "falcon-heads": ("falcon", LLAMA | {"multi_query": False}),
    "falcon-groups": ("falcon", LLAMA | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "dbrx": (
        "dbrx",
        {
            "d_model": 24,
            "n_heads": 6,
            "n_layers": 1,
            "vocab_size": 11,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 1e6, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 20, "moe_num_experts": 3, "moe_top_k": 1},
        },
    ),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_q_k_and_v(case):
    model, config = tiny(*ATTENTION[case])
    parts = parts_in(model, config)
    (name,) = {name for name, label in parts if label == "k"}
    fused = model.get_submodule(name.removesuffix(".weight"))
    tokens = torch.tensor([[1], [3], [5]])  # at position 0, which rotary embeddings do not turn
    with torch.no_grad(), Recorder(fused) as record:
        model(input_ids=tokens)
    (left, right), (_, values) = record.products[:2]
    for label, used in zip("qkv", (left, right, values), strict=True):
        assert_same(used, applied(record.input, parts[name, label], fused))


def test_k_and_v_of_cross_attention():
    model, config = tiny("gpt2", GPT | {"add_cross_attention": True})
    parts = parts_in(model, config)
    name = "h.0.crossattention.c_attn.weight"
    fused = model.get_submodule(name.removesuffix(".weight"))
    tokens, states = torch.tensor([[1], [3]]), torch.randn(2, 4, 24)
    with torch.no_grad(), Recorder(fused) as record:
        model(input_ids=tokens, encoder_hidden_states=states)
    used = record.products[0][1], record.products[1][1]
    for label, tensor in zip("kv", used, strict=True):
        assert_same(tensor, applied(record.input, parts[name, label], fused))
    assert ("h.0.attn.c_attn.weight", "q") in parts


def test_k_and_v_of_jetmoe():
    model, config = tiny("jetmoe", MOE | {"kv_channels": 4, "num_local_experts": 3})
    parts = parts_in(model, config)
    name = "layers.0.self_attention.kv_proj.weight"
    fused = model.get_submodule(name.removesuffix(".weight"))
    with torch.no_grad(), Recorder(fused) as record:
        model(input_ids=torch.tensor([[1], [3]]))
    used = record.products[0][1], record.products[1][1]
    for label, tensor in zip("kv", used, strict=True):
        assert_same(tensor, applied(record.input, parts[name, label], fused))


LINEAR = {
    "layer_types": ["linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 3,
    "linear_value_head_dim": 5,
}
SPLIT = {
    "minimax": (MOE | {"layer_types": ["linear_attention"]}, "qkv_proj", functional.silu),
    "qwen3_next": (MOE | LINEAR, "in_proj_qkvz", lambda x: x),
    "qwen3_5_text": (MOE | LINEAR, "in_proj_qkv", lambda x: x),
}


@pytest.mark.parametrize("model_type", SPLIT)
def test_linear_attention(monkeypatch, model_type):
    options, end, activation = SPLIT[model_type]
    model, config = tiny(model_type, options)
    parts = parts_in(model, config)
    (name,) = {name for name, label in parts if label == "k"}
    assert name.endswith(f".{end}.weight")
    fused = model.get_submodule(name.removesuffix(".weight"))
    code = importlib.import_module(type(model).__module__)
    if hasattr(code, "causal_conv1d_fn"):  # between the layer and the split
        monkeypatch.setattr(code, "causal_conv1d_fn", lambda x, *args, **kwargs: x)
    with torch.no_grad(), Recorder(fused) as record:
        model(input_ids=torch.tensor([[1, 3, 5]]), use_cache=False)
    labels = [label for of, label in parts if of == name]
    assert labels == list("qkvz")[: len(record.splits[0])]
    for label, used in zip(labels, record.splits[0], strict=True):
        assert_same(used, activation(applied(record.input, parts[name, label], fused)))


VIT = {
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_hidden_layers": 1,
    "intermediate_size": 20,
    "image_size": 8,
    "patch_size": 4,
}
QWEN = {
    "depth": 1,
    "num_heads": 6,
    "patch_size": 2,
    "temporal_patch_size": 1,
    "spatial_merge_size": 2,
    "in_channels": 3,
    "in_chans": 3,
    "intermediate_size": 20,
}
GRID = torch.tensor([[1, 2, 2]])
IMAGES = {
    "blip": (
        {"vision_config": VIT, "text_config": LLAMA},
        lambda m: m.vision_model(torch.randn(1, 3, 8, 8)),
    ),
    "timesformer": (VIT | {"num_frames": 2}, lambda m: m(torch.randn(1, 2, 3, 8, 8))),
    "sam": (
        {
            "vision_config": VIT
            | {"output_channels": 8, "window_size": 2, "global_attn_indexes": []}
        },
        lambda m: m.vision_encoder(torch.randn(1, 3, 8, 8)),
    ),
    "qwen2_vl": (
        {"vision_config": QWEN | {"embed_dim": 24, "hidden_size": 24}, "text_config": LLAMA},
        lambda m: m.visual(torch.randn(4, 12), grid_thw=GRID),
    ),
    "exaone4_5": (
        {
            "vision_config": QWEN
            | {"hidden_size": 24, "num_key_value_heads": 2, "out_hidden_size": 24},
            "text_config": LLAMA | {"model_type": "exaone4", "layer_types": ["full_attention"]},
        },
        lambda m: m.visual(torch.randn(4, 12), grid_thw=GRID),
    ),
}


@pytest.mark.parametrize("model_type", IMAGES)
def test_models_of_images(monkeypatch, model_type):
    options, run = IMAGES[model_type]
    model, config = tiny(model_type, options)
    parts = parts_in(model, config)
    names = {name for name, label in parts if label == "k"}
    code = importlib.import_module(type(model).__module__)
    if hasattr(code, "apply_rotary_pos_emb_vision"):
        monkeypatch.setattr(code, "apply_rotary_pos_emb_vision", lambda q, k, *args: (q, k))
    for name in names:
        fused = model.get_submodule(name.removesuffix(".weight"))
        with torch.no_grad(), Recorder(fused) as record:
            run(model)
        (left, right), (_, values) = record.products[:2]
        for label, used in zip("qkv", (left, right, values), strict=True):
            assert_same(used, applied(record.input, parts[name, label], fused))
    assert names


# The feed-forward layers: down(act(gate(x)) * up(x)).


def gated(x, parts, name, activation):
    gate, up = parts[name, "gate"], parts[name, "up"]
    return activation(x @ gate.T) * (x @ up.T)


FEED_FORWARD = {
    "phi3": ("Phi3MLP", LLAMA | {"num_key_value_heads": 2}, "mlp.gate_up_proj", functional.silu),
    "glm": ("GlmMLP", MOE, "mlp.gate_up_proj", functional.silu),
    "glm4": ("Glm4MLP", MOE, "mlp.gate_up_proj", functional.silu),
    "modernbert": ("ModernBertMLP", LLAMA, "mlp.Wi", functional.gelu),
    "dia": ("DiaMLP", {"encoder_config": MOE}, "mlp.gate_up_proj", functional.silu),
    "moonshine": ("MoonshineDecoderMLP", MOE, "mlp.fc1", functional.silu),
    "granitemoeshared": (
        "GraniteMoeSharedMLP",
        MOE | {"shared_intermediate_size": 14},
        "shared_mlp.input_linear",
        functional.silu,
    ),
    "phi4_multimodal": (
        "Phi4MultimodalAudioMLP",
        {"audio_config": {"hidden_size": 16, "intermediate_size": 20, "activation": "swish"}},
        "feed_forward_in.gate_up_proj",
        functional.silu,
    ),
}


@pytest.mark.parametrize("model_type", FEED_FORWARD)
def test_gate_and_up(model_type):
    family, options, end, activation = FEED_FORWARD[model_type]
    config = transformers.CONFIG_MAPPING[model_type](**options)
    section = next((getattr(config, key) for key in options if key.endswith("_config")), config)
    code = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    torch.manual_seed(7)
    layer = getattr(code, family)(section, *(["silu"] if model_type == "moonshine" else [])).eval()
    fused = layer.get_submodule(end.rpartition(".")[2])
    nn.init.zeros_(fused.bias) if fused.bias is not None else None
    name = f"model.layers.0.{end}.weight"
    weight = fused.weight.detach().numpy()
    listed = parts_of(name, weight.shape, json.loads(config.to_json_string()))
    parts = {(name, part.label): torch.from_numpy(part.of(weight)) for part in listed}
    with torch.no_grad(), Recorder(fused) as record:
        layer(torch.randn(5, weight.shape[1]))
        expected = gated(record.input, parts, name, activation)
    torch.testing.assert_close(record.linears[0], expected, rtol=1e-4, atol=1e-6)


def gpt_oss(gate, up):
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


EXPERTS = {
    "mixtral": MOE | {"num_local_experts": 3},
    "qwen2_moe": MOE | {"num_experts": 3, "decoder_sparse_step": 1},
    "qwen3_moe": MOE | {"num_experts": 3, "decoder_sparse_step": 1},
    "deepseek_v3": MOE
    | {
        "n_routed_experts": 3,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 1,
        "first_k_dense_replace": 0,
    },
    "granitemoe": MOE | {"num_local_experts": 3},
    "aria_text": MOE | {"moe_num_experts": 3},
    "llama4_text": MOE | {"num_local_experts": 3},
    "gpt_oss": MOE | {"num_local_experts": 3, "layer_types": ["full_attention"]},
}


@pytest.mark.parametrize("model_type", EXPERTS)
def test_experts(model_type):
    model, config = tiny(model_type, EXPERTS[model_type])
    parts = parts_in(model, config)
    ends = {name.rpartition(".") for name, label in parts if label == "0,gate"}
    ((path, _, last),) = ends
    layer = model.get_submodule(path)
    tokens = torch.randn(3, 24)
    chosen = torch.tensor([[2], [0], [1]])
    with torch.no_grad():
        if model_type == "llama4_text":  # each expert gets its tokens, side by side
            actual = layer(tokens[[1, 2, 0]])[[2, 0, 1]]
        else:
            actual = layer(tokens, chosen, torch.ones(3, 1))
        for token, out, (expert,) in zip(tokens, actual, chosen.tolist(), strict=True):
            gate, up = (parts[f"{path}.{last}", f"{expert},{word}"] for word in ("gate", "up"))
            down = parts[f"{path}.down_proj", str(expert)]
            assert down.shape == gate.shape[::-1]
            if gate.shape[1] != 24:  # (in, out)
                gate, up, down = gate.T, up.T, down.T
            act = gpt_oss if model_type == "gpt_oss" else lambda g, u: functional.silu(g) * u
            expected = down @ act(gate @ token, up @ token)
            torch.testing.assert_close(out.view(24), expected, rtol=1e-4, atol=1e-5)


def test_experts_of_jetmoe():
    options = MOE | {"kv_channels": 4, "num_local_experts": 3, "num_experts_per_tok": 3}
    model, config = tiny("jetmoe", options)
    parts = parts_in(model, config)
    layer, x = model.layers[0].mlp, torch.randn(1, 1, 24)
    with torch.no_grad():
        weights = layer.router.layer(x[0, 0]).softmax(0)
        expected = sum(
            weights[i]
            * parts["layers.0.mlp.output_linear.weight", str(i)]
            @ gated(
                x[0, 0],
                {
                    ("", word): parts["layers.0.mlp.input_linear.weight", f"{i},{word}"]
                    for word in ("gate", "up")
                },
                "",
                functional.silu,
            )
            for i in range(3)
        )
        torch.testing.assert_close(layer(x)[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_experts_of_dbrx():
    model, config = tiny(*ATTENTION["dbrx"])
    parts = parts_in(model, config)
    layer = model.blocks[0].ffn.experts
    tokens, chosen = torch.randn(3, 24), torch.tensor([[2], [0], [1]])
    with torch.no_grad():
        actual = layer(tokens, chosen, torch.ones(3, 1))
        for token, out, (expert,) in zip(tokens, actual, chosen.tolist(), strict=True):
            w1, v1, w2 = (
                parts[f"blocks.0.ffn.experts.mlp.{word}", str(expert)]
                for word in ("w1", "v1", "w2")
            )
            expected = w2.T @ (functional.silu(w1 @ token) * (v1 @ token))
            torch.testing.assert_close(out.view(24), expected, rtol=1e-4, atol=1e-5)


# Checkpoints as published: what transformers' conversions make of them when it loads them.

SIZES = {"hidden_size": 24, "num_attention_heads": 6, "intermediate_size": 20}
SWIGLU = {"hidden_size": 24, "mlp_ratio": 4, "use_swiglu_ffn": True}  # 64 inner ones
PUBLISHED = [
    ("gte", "attention.qkv_proj.weight", {"model_type": "gte", **SIZES}, (72, 24)),
    ("gte", "mlp.up_gate_proj.weight", {"model_type": "gte", **SIZES}, (40, 24)),
    ("nomic_bert", "attn.Wqkv.weight", {"model_type": "nomic_bert", **SIZES}, (72, 24)),
    (
        "jina_embeddings_v3",
        "mixer.Wqkv.weight",
        {"model_type": "jina_embeddings_v3", **SIZES},
        (72, 24),
    ),
    ("Molmo2TextModel", "mlp.ff_proj.weight", {"model_type": "molmo2_text", **SIZES}, (40, 24)),
    ("Dinov2Model", "mlp.weights_in.weight", {"model_type": "dinov2", **SWIGLU}, (128, 24)),
    (
        "Dinov2WithRegistersModel",
        "mlp.weights_in.weight",
        {"model_type": "dinov2_with_registers", **SWIGLU},
        (128, 24),
    ),
    (
        "Tipsv2VisionModel",
        "mlp.w12.weight",
        {"model_type": "tipsv2", "vision_config": SWIGLU},
        (128, 24),
    ),
    ("Tipsv2VisionModel", "attn.qkv.weight", {"model_type": "tipsv2_vision_model"}, (72, 24)),
    ("sapiens2", "ffn.w12.weight", {"model_type": "sapiens2", **SIZES}, (40, 24)),
    ("radio", "blocks.0.attn.qkv.weight", {"model_type": "radio"}, (72, 24)),
    ("qianfan_ocr", "attn.qkv.weight", {"model_type": "qianfan_ocr"}, (72, 24)),
    ("kimi_k25", "blocks.0.wqkv.weight", {"model_type": "kimi_k25"}, (72, 24)),
    ("nemo_speechlm", "layers.0.attn.w_qkv.weight", {"model_type": "nemo_speechlm"}, (72, 24)),
    (
        "UnlimitedOcrVisionEncoder",
        "self_attn.qkv_proj.weight",
        {"model_type": "unlimited_ocr"},
        (72, 24),
    ),
    ("hrm_text", "attn.gqkv_proj.weight", {"model_type": "hrm_text"}, (96, 24)),
    ("hrm_text", "mlp.gate_up_proj.weight", {"model_type": "hrm_text", **SIZES}, (40, 24)),
    (
        "inkling_mm_model",
        "mlp.w13_dn.weight",
        {"model_type": "inkling_mm_model", **SIZES},
        (40, 24),
    ),
    (
        "inkling_mm_model",
        "mlp.experts.w13_weight",
        {"model_type": "inkling_text", **SIZES},
        (3, 40, 24),
    ),
]


@pytest.mark.parametrize(("key", "name", "config", "shape"), PUBLISHED)
def test_published_checkpoints(key, name, config, shape):
    converters = [
        converter
        for converter in conversion_mapping.get_checkpoint_conversion_mapping(key) or ()
        if getattr(converter, "operations", None)
        and converter.source_patterns[0].replace("\\", "").lstrip(".") in name
        and type(converter.operations[0]).__name__ in ("Chunk", "Interleave")
    ]
    if len(converters) != 1:
        pytest.skip(f"transformers {transformers.__version__} loads {key} in another way")
    (converter,) = converters
    tensor = torch.randn(shape)
    converted = {converter.source_patterns[0]: tensor}
    for operation in converter.operations:
        if type(operation).__name__ in ("Chunk", "Interleave"):  # rotary ones turn heads inside
            names = converter.source_patterns, converter.target_patterns
            converted = operation.convert(converted, *names)
    parts = {part.label: part.of(tensor.numpy()) for part in parts_of(f"x.{name}", shape, config)}
    expected = {}
    for target, matrix in converted.items():
        word = target.replace("\\", "").removesuffix(".weight").rpartition(".")[2]
        if word == "gate_up_proj":
            for index, expert in enumerate(matrix):
                gate_and_up = zip(("gate", "up"), expert.chunk(2), strict=True)
                expected |= {f"{index},{label}": half for label, half in gate_and_up}
        else:
            expected[word.removesuffix("_proj")] = matrix
    assert parts.keys() == expected.keys()
    for label, matrix in expected.items():
        np.testing.assert_array_equal(parts[label], matrix.numpy(), err_msg=label)
