"""Parts of fused tensors: each layout against a tensor put together by hand, and never a guess."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtspec.checkpoint import fused as _fused
from rmtspec.checkpoint.fused import parts_of

STACKS = _fused._layouts("stacks")
LAYOUTS = [*_fused._layouts("matrices"), *STACKS]


def noise(*shape, seed=3):
    return np.random.default_rng(seed).standard_normal(shape)


def found(name, tensor, config, shapes=None):
    """Return the parts as arrays by label."""
    parts = parts_of(name, tensor.shape, config, shapes or {})
    assert len({part.label for part in parts}) == len(parts)
    for part in parts:
        assert part.of(tensor).shape == part.shape
    return {part.label: part.of(tensor) for part in parts}


def assert_parts(name, tensor, config, expected, shapes=None):
    parts = found(name, tensor, config, shapes)
    assert list(parts) == list(expected)
    for label, matrix in expected.items():
        np.testing.assert_array_equal(parts[label], matrix, err_msg=label)


def kinds(name, shape, config, shapes=None):
    return {part.kind for part in parts_of(name, shape, config, shapes or {})}


def rows(heads, key_heads, head_size, hidden):
    return (
        noise(heads * head_size, hidden, seed=1),
        noise(key_heads * head_size, hidden, seed=2),
        noise(key_heads * head_size, hidden, seed=3),
    )


def by_head(q, k, v, key_heads):
    """For each head of k: the rows of its heads of q, its own, those of v."""
    blocks = []
    for head in range(key_heads):
        blocks += [np.split(matrix, key_heads)[head] for matrix in (q, k, v)]
    return np.concatenate(blocks)


def as_dict(labels, *matrices):
    return dict(zip(labels.split(), matrices, strict=True))


# By the config: attention.


def test_one_below_the_other():
    config = {
        "model_type": "phi3",
        "hidden_size": 24,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    q, k, v = rows(6, 2, 4, 24)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    fused = np.concatenate([q, k, v])
    assert_parts(name, fused, config, {"q": q, "k": k, "v": v})
    assert kinds(name, fused.shape, config) == {"attention"}
    # The heads may be larger than hidden / heads.
    q, k, v = rows(6, 2, 8, 24)
    assert_parts(
        name, np.concatenate([q, k, v]), config | {"head_dim": 8}, as_dict("q k v", q, k, v)
    )


@pytest.mark.parametrize(
    ("config", "key_heads"),
    [
        ({"model_type": "modernbert", "hidden_size": 24, "num_attention_heads": 6}, 6),
        ({"model_type": "mpt", "d_model": 24, "n_heads": 6, "attn_config": {"clip_qkv": None}}, 6),
        ({"model_type": "dbrx", "d_model": 24, "n_heads": 6, "attn_config": {"kv_n_heads": 2}}, 2),
    ],
)
def test_wqkv(config, key_heads):
    q, k, v = rows(6, key_heads, 4, 24)
    assert_parts(
        "l.0.attn.Wqkv.weight", np.concatenate([q, k, v]), config, as_dict("q k v", q, k, v)
    )


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("baichuan", "model.layers.1.self_attn.W_pack.weight"),
        ("qwen", "transformer.h.1.attn.c_attn.weight"),
        ("layoutlmv2", "encoder.layer.1.attention.self.qkv_linear.weight"),
    ],
)
def test_as_many_rows_each_as_hidden(model_type, name):
    config = {"model_type": model_type, "hidden_size": 24, "num_attention_heads": 6}
    q, k, v = rows(6, 6, 4, 24)
    assert_parts(name, np.concatenate([q, k, v]), config, as_dict("q k v", q, k, v))


@pytest.mark.parametrize("model_type", ["gpt2", "openai-gpt", "imagegpt"])
def test_gpt2_has_them_side_by_side(model_type):
    config = {"model_type": model_type, "n_embd": 24, "n_head": 6}
    q, k, v = (matrix.T for matrix in rows(6, 6, 4, 24))
    fused = np.concatenate([q, k, v], axis=1)
    assert_parts("h.0.attn.c_attn.weight", fused, config, as_dict("q k v", q, k, v))
    fused = np.concatenate([k, v], axis=1)
    assert_parts("h.0.crossattention.c_attn.weight", fused, config, {"k": k, "v": v})
    assert not parts_of("h.0.attn.c_attn.weight", fused.shape, config)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight"),
        ("gpt_neox_japanese", "layers.0.attention.query_key_value.weight"),
        ("bloom", "h.0.self_attention.query_key_value.weight"),
        ("persimmon", "model.layers.0.self_attn.query_key_value.weight"),
        ("deberta", "encoder.layer.0.attention.self.in_proj.weight"),
        ("minimax", "layers.0.self_attn.qkv_proj.weight"),
        ("chatglm", "transformer.layers.0.attention.query_key_value.weight"),
    ],
)
def test_head_after_head(model_type, name):
    config = {"model_type": model_type, "hidden_size": 24, "num_attention_heads": 6}
    if model_type == "chatglm":  # its first version
        config["inner_hidden_size"] = 96
    q, k, v = rows(6, 6, 4, 24)
    fused = by_head(q, k, v, 6)
    assert_parts(name, fused, config, as_dict("q k v", q, k, v))
    # Any number of heads would fit the sizes: without it nothing is cut.
    del config["num_attention_heads"]
    assert not parts_of(name, fused.shape, config)


def test_bloom_of_old_files():
    config = {"model_type": "bloom", "n_embed": 24, "hidden_size": 64, "n_head": 6}
    q, k, v = rows(6, 6, 4, 24)
    name = "h.0.self_attention.query_key_value.weight"
    assert_parts(name, by_head(q, k, v, 6), config, as_dict("q k v", q, k, v))


def test_internlm2_has_groups_of_heads():
    config = {
        "model_type": "internlm2",
        "hidden_size": 24,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    q, k, v = rows(6, 2, 4, 24)
    name = "model.layers.0.attention.wqkv.weight"
    assert_parts(name, by_head(q, k, v, 2), config, as_dict("q k v", q, k, v))


@pytest.mark.parametrize(
    ("flags", "key_heads"),
    [
        ({"new_decoder_architecture": True, "multi_query": True, "num_kv_heads": 2}, 2),
        ({"new_decoder_architecture": False, "multi_query": True, "num_kv_heads": 6}, 1),
        ({"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": 6}, 6),
    ],
)
def test_falcon_of_three_kinds(flags, key_heads):
    config = {"model_type": "falcon", "hidden_size": 24, "num_attention_heads": 6, **flags}
    q, k, v = rows(6, key_heads, 4, 24)
    name = "transformer.h.0.self_attention.query_key_value.weight"
    fused = by_head(q, k, v, key_heads)
    assert_parts(name, fused, config, as_dict("q k v", q, k, v))
    unsaid = {"multi_query": None, "new_decoder_architecture": None}
    assert not parts_of(name, fused.shape, config | unsaid)


@pytest.mark.parametrize(("multi_query", "key_heads"), [(True, 1), (False, 6)])
def test_gpt_bigcode(multi_query, key_heads):
    config = {"model_type": "gpt_bigcode", "n_embd": 24, "n_head": 6, "multi_query": multi_query}
    q, k, v = rows(6, key_heads, 4, 24)
    name = "transformer.h.0.attn.c_attn.weight"
    assert_parts(name, by_head(q, k, v, key_heads), config, as_dict("q k v", q, k, v))


def test_chatglm_with_shared_keys():
    config = {
        "model_type": "chatglm",
        "hidden_size": 24,
        "num_attention_heads": 6,
        "kv_channels": 4,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "ffn_hidden_size": 40,
    }
    q, k, v = rows(6, 2, 4, 24)
    name = "transformer.encoder.layers.0.self_attention.query_key_value.weight"
    assert_parts(name, np.concatenate([q, k, v]), config, as_dict("q k v", q, k, v))
    gate, up = noise(40, 24, seed=1), noise(40, 24, seed=2)
    name = "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight"
    assert_parts(name, np.concatenate([gate, up]), config, as_dict("gate up", gate, up))


def test_the_images_of_chatglm_are_left_whole():
    vision = {"hidden_size": 24, "num_heads": 6}
    config = {"model_type": "chatglm", "hidden_size": 48, "vision_config": vision}
    name = "transformer.vision.transformer.layers.0.attention.query_key_value.weight"
    assert not parts_of(name, (72, 24), config)


def test_codegen_has_four_groups_and_v_before_k():
    config = {"model_type": "codegen", "n_embd": 24, "n_head": 8}
    q, k, v = rows(8, 8, 3, 24)
    name = "transformer.h.0.attn.qkv_proj.weight"
    assert_parts(name, by_head(q, v, k, 4), config, as_dict("q v k", q, v, k))


def test_linear_attention():
    config = {
        "hidden_size": 20,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 3,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 5,
    }
    q, k, v, z = noise(6, 20), noise(6, 20, seed=4), noise(20, 20), noise(20, 20, seed=4)
    name = "model.language_model.layers.0.linear_attn.in_proj_qkv.weight"
    nested = {"model_type": "qwen3_5", "text_config": {"model_type": "qwen3_5_text", **config}}
    assert_parts(name, np.concatenate([q, k, v]), nested, as_dict("q k v", q, k, v))
    fused = np.concatenate([np.split(m, 2)[head] for head in (0, 1) for m in (q, k, v, z)])
    name = "model.layers.0.linear_attn.in_proj_qkvz.weight"
    config = {"model_type": "qwen3_next", **config}
    assert_parts(name, fused, config, as_dict("q k v z", q, k, v, z))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "qwen2_vl"}, "visual.blocks.0.attn.qkv.weight"),
        ({"model_type": "blip_vision_model"}, "encoder.layers.0.self_attn.qkv.weight"),
        ({"model_type": "sam_vision_model"}, "vision_encoder.layers.0.attn.qkv.weight"),
        ({"model_type": "timesformer"}, "encoder.layer.0.attention.attention.qkv.weight"),
        ({"architecture": "vit_base_patch16_224", "num_features": 768}, "blocks.0.attn.qkv.weight"),
        (
            {"model_type": "timm_wrapper", "architecture": "swin_tiny_patch4_window7_224"},
            "timm_model.layers.0.blocks.1.attn.qkv.weight",
        ),
        (
            {"model_type": "internvl_chat", "vision_config": {"model_type": "intern_vit_6b"}},
            "vision_model.encoder.layers.0.attn.qkv.weight",
        ),
    ],
)
def test_models_of_images(config, name):
    q, k, v = rows(3, 3, 4, 12)
    assert_parts(name, np.concatenate([q, k, v]), config, as_dict("q k v", q, k, v))
    assert not parts_of(name, (36, 11), config)


@pytest.mark.parametrize("architecture", ["tiny_vit_5m_224", "maxvit_tiny_tf_224", "resnet50", 3])
def test_other_architectures_of_timm_are_left_whole(architecture):
    assert not parts_of("blocks.0.attn.qkv.weight", (36, 12), {"architecture": architecture})


# By the config: feed-forward and experts.


@pytest.mark.parametrize(
    ("model_type", "name", "labels"),
    [
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight", "gate up"),
        ("glm4", "model.layers.0.mlp.gate_up_proj.weight", "gate up"),
        ("modernbert", "layers.0.mlp.Wi.weight", "gate up"),
        ("moonshine", "decoder.layers.0.mlp.fc1.weight", "up gate"),
        ("gte", "encoder.layer.0.mlp.up_gate_proj.weight", "up gate"),
    ],
)
def test_gate_and_up(model_type, name, labels):
    config = {"model_type": model_type, "hidden_size": 12, "intermediate_size": 20}
    first, second = noise(20, 12, seed=1), noise(20, 12, seed=2)
    fused = np.concatenate([first, second])
    assert_parts(name, fused, config, as_dict(labels, first, second))
    assert kinds(name, fused.shape, config) == {"mlp"}


def test_the_two_feed_forwards_of_phi4_multimodal():
    config = {
        "model_type": "phi4_multimodal",
        "hidden_size": 12,
        "intermediate_size": 20,
        "audio_config": {"hidden_size": 8, "intermediate_size": 10},
    }
    text = parts_of("layers.0.mlp.gate_up_proj.weight", (40, 12), config)
    audio = parts_of("a.encoders.0.feed_forward_in.gate_up_proj.weight", (20, 8), config)
    assert [part.label for part in text] == ["gate", "up"]
    assert [part.label for part in audio] == ["up", "gate"]


def test_dinov2_computes_the_inner_size():
    config = {"model_type": "dinov2", "hidden_size": 25, "mlp_ratio": 4, "use_swiglu_ffn": True}
    inner = 72  # two thirds of 4 x 25, to the next multiple of 8
    gate, up = noise(inner, 25, seed=1), noise(inner, 25, seed=2)
    name = "encoder.layer.0.mlp.weights_in.weight"
    assert_parts(name, np.concatenate([gate, up]), config, as_dict("gate up", gate, up))


MOE = {"hidden_size": 12, "intermediate_size": 20}


def experts(gate, up, layout):
    """Put three experts together in one of the orders that models have."""
    return {
        "below": lambda: np.concatenate([gate, up], axis=1),
        "beside": lambda: np.concatenate([gate.mT, up.mT], axis=2),
        "alternating below": lambda: np.stack([gate, up], axis=2).reshape(3, 40, 12),
        "alternating beside": lambda: np.stack([gate.mT, up.mT], axis=3).reshape(3, 12, 40),
    }[layout]()


@pytest.mark.parametrize(
    ("model_type", "name", "layout"),
    [
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj", "below"),
        ("qwen3_vl_moe", "model.layers.0.mlp.experts.gate_up_proj", "below"),
        ("qwen3_vl_moe", "model.layers.0.mlp.experts.gate_up_proj", "beside"),
        ("granitemoe", "model.layers.0.block_sparse_moe.input_linear.weight", "below"),
        ("jetmoe", "model.layers.0.mlp.input_linear.weight", "below"),
        ("llama4", "model.layers.0.feed_forward.experts.gate_up_proj", "beside"),
        ("aria", "model.layers.0.mlp.experts.fc1.weight", "beside"),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj", "alternating beside"),
        ("inkling_mm_model", "model.llm.layers.0.mlp.experts.w13_weight", "alternating below"),
    ],
)
def test_experts(model_type, name, layout):
    gate, up = noise(3, 20, 12, seed=1), noise(3, 20, 12, seed=2)
    tensor = experts(gate, up, layout)
    turn = (lambda m: m.T) if layout.endswith("beside") else (lambda m: m)
    expected = {}
    for index in range(3):
        expected[f"{index},gate"], expected[f"{index},up"] = turn(gate[index]), turn(up[index])
    config = {"model_type": model_type, **MOE}
    assert_parts(name, tensor, config, expected)
    assert kinds(name, tensor.shape, config) == {"expert"}


def test_what_leads_back_to_the_hidden_size():
    down = noise(3, 12, 20)
    for model_type, name in (("jetmoe", "layers.0.mlp.output_linear.weight"), ("", "moe.down")):
        config = {"model_type": model_type, **MOE}
        assert_parts(name, down, config, {str(index): down[index] for index in range(3)})


def test_dbrx_has_its_experts_in_one_matrix():
    config = {
        "model_type": "dbrx",
        "d_model": 12,
        "ffn_config": {"moe_num_experts": 3, "ffn_hidden_size": 20},
    }
    stack = noise(3, 20, 12)
    for matrix in ("w1", "v1", "w2"):
        name = f"transformer.blocks.0.ffn.experts.mlp.{matrix}"
        expected = {str(index): stack[index] for index in range(3)}
        assert_parts(name, stack.reshape(60, 12), config, expected)
        assert kinds(name, (60, 12), config) == {"expert"}
        assert not parts_of(name, (61, 12), config)


def test_experts_whose_order_is_unclear_are_not_cut_further():
    # Old files of this model are turned: (3, 24, 24) could be either.
    config = {"model_type": "qwen3_vl_moe", "hidden_size": 24, "moe_intermediate_size": 12}
    assert list(found("experts.gate_up_proj", noise(3, 24, 24), config)) == ["0", "1", "2"]
    config["model_type"] = "qwen3_moe"
    assert list(found("experts.gate_up_proj", noise(1, 24, 24), config)) == ["0,gate", "0,up"]


# Sections of the config.


def test_the_section_whose_sizes_fit_is_used():
    sizes = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
    name, shape = "language_model.model.layers.0.attention.wqkv.weight", (40, 24)
    for section in ("llm_config", "text_config", "anything"):
        config = {
            "model_type": "internvl_chat",
            "hidden_size": 999,
            "vision_config": {"model_type": "intern_vit_6b", "hidden_size": 24},
            section: {"model_type": "internlm2", **sizes},
        }
        assert [part.label for part in parts_of(name, shape, config)] == ["q", "k", "v"]
    config["anything"] = {"model_type": "internlm2", **sizes, "hidden_size": 25}
    assert not parts_of(name, shape, config)


def test_a_section_without_a_type_has_that_of_its_parent():
    name, sizes = "layers.0.query_key_value.weight", {"hidden_size": 24, "num_attention_heads": 6}
    assert len(parts_of(name, (72, 24), {"model_type": "bloom", "text_config": sizes})) == 3
    other = sizes | {"model_type": "other"}
    assert not parts_of(name, (72, 24), {"model_type": "bloom", "text_config": other})


def test_sections_that_contradict_each_other_leave_it_whole():
    name = "layers.0.attention.query_key_value.weight"
    section = {"model_type": "gpt_neox", "hidden_size": 24, "num_attention_heads": 6}
    assert len(parts_of(name, (72, 24), {"a_config": section, "b_config": dict(section)})) == 3
    other = section | {"num_attention_heads": 3}
    assert not parts_of(name, (72, 24), {"a_config": section, "b_config": other})


# By the name alone.


def test_multihead_attention():
    q, k, v = rows(3, 3, 4, 12)
    fused = np.concatenate([q, k, v])
    for name in ("in_proj_weight", "encoder.layers.0.self_attn.in_proj_weight"):
        assert_parts(name, fused, {}, as_dict("q k v", q, k, v))
        assert kinds(name, fused.shape, {}) == {"attention"}
        assert not parts_of(name, (36, 13), {})
        assert not parts_of(name, (35, 12), {})
    assert not parts_of("mamba.in_proj.weight", (36, 12), {})


@pytest.mark.parametrize("ending", ["", "_l0", "_l1_reverse", "_l12"])
@pytest.mark.parametrize(("gates", "labels"), [(4, "ifgo"), (3, "rzn"), (1, "")])
def test_recurrent(ending, gates, labels):
    inputs, state = f"rnn.weight_ih{ending}", f"rnn.weight_hh{ending}"
    shapes = {inputs: (5 * gates, 7), state: (5 * gates, 5), "rnn.other": (2, 2)}
    for name in (inputs, state):
        tensor = noise(*shapes[name])
        expected = {gate: tensor[5 * i : 5 * i + 5] for i, gate in enumerate(labels)}
        assert_parts(name, tensor, {}, expected, shapes)
        assert kinds(name, tensor.shape, {}, shapes) == ({"recurrent"} if labels else set())
    assert not parts_of(inputs, shapes[inputs], {})
    assert not parts_of(inputs, shapes[inputs], {}, {state: (5 * gates + 5, 5)})


def test_an_lstm_that_projects_its_state():
    shapes = {"weight_ih_l0": (24, 7), "weight_hh_l0": (24, 3), "weight_hr_l0": (3, 6)}
    for name in ("weight_ih_l0", "weight_hh_l0"):
        assert [part.label for part in parts_of(name, shapes[name], {}, shapes)] == list("ifgo")
    assert not parts_of("weight_hr_l0", (3, 6), {}, shapes)
    assert not parts_of("weight_ih_l0", (24, 7), {}, {"weight_hr_l0": (3, 6)})


@pytest.mark.parametrize("name", ["moe.w1", "layers.2.ffn.Experts.weight", "moe_layers.0.w"])
def test_a_stack_of_experts(name):
    stack = noise(3, 4, 5)
    assert_parts(name, stack, {}, {str(index): stack[index] for index in range(3)})
    assert kinds(name, stack.shape, {}) == {"expert"}
    assert not parts_of(name, (1, 4, 5), {})
    assert not parts_of(name, (3, 4), {})
    assert not parts_of(name, (3, 4, 5, 6), {})


def test_other_tensors_of_three_dimensions_are_no_stacks():
    for name in ("conv.weight", "experts.0.conv.weight", "attn.qkv.weight"):
        assert not parts_of(name, (3, 4, 5), {"model_type": "qwen2_vl"})


@pytest.mark.parametrize("shape", [(), (12,), (0, 12), (36, 0), (3, 0, 4), (1, 2, 3, 4, 5)])
def test_no_matrix(shape):
    for layout in LAYOUTS:
        assert not parts_of(f"moe{layout.names[0]}.weight", shape, config_for(layout))


@pytest.mark.parametrize(
    "name", ["", "weight", ".", "..", "lm_head.weight", "h.0.attn.c_attn.bias"]
)
def test_other_names(name):
    for config in ({}, {"model_type": "gpt2", "n_embd": 24, "n_head": 6}):
        assert not parts_of(name, (24, 72), config)


# For all layouts.


def config_for(layout, hidden=24, heads=6, key_heads=2, head_size=4, inner=20, n_experts=3):
    return {
        "model_type": min(layout.types),
        "architecture": "vit_x",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head_size,
        "intermediate_size": inner,
        "multi_query": True,
        "multi_query_attention": True,
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": heads,
        "linear_key_head_dim": head_size,
        "linear_value_head_dim": inner,
        "ffn_config": {"moe_num_experts": n_experts, "ffn_hidden_size": inner},
    }


def shape_for(layout, hidden=24, heads=6, key_heads=2, head_size=4, inner=20, n_experts=3):
    """Return the shape that a tensor of this layout has, by formulas of its own."""
    count = len(layout.labels)
    keys, all_heads = key_heads * head_size, heads * head_size
    with_keys = (2 * keys if count == 2 else all_heads + 2 * keys,)
    sides = {
        "_heads": with_keys,
        "_chatglm": with_keys,
        "_per_key_head": with_keys,
        "_per_head": (3 * all_heads,),
        "_multi_query": (all_heads + 2 * head_size,),
        "_codegen": (3 * hidden,),
        "_linear_attention": (2 * keys + (count - 2) * heads * inner,),
        "_inner": (count * inner,),
        "_alternating": (2 * inner,),
        "_flat_experts": (n_experts * inner,),
    }
    (side,) = (count * hidden,) if layout.rule is None else sides[layout.rule.__name__]
    matrix = (hidden, side) if layout.across else (side, hidden)
    return (n_experts, *matrix) if layout in STACKS else matrix


def assert_tiles(parts, shape):
    """Every entry of the tensor is in one part."""
    numbers = np.arange(math.prod(shape)).reshape(shape)
    pieces = np.concatenate([part.of(numbers).ravel() for part in parts])
    np.testing.assert_array_equal(np.sort(pieces), numbers.ravel())


sizes = st.fixed_dictionaries(
    {
        "head_size": st.integers(1, 5),
        "inner": st.integers(1, 9),
        "n_experts": st.integers(1, 4),
        "key_heads": st.integers(1, 3),
        "group": st.integers(1, 3),
        "wide": st.integers(1, 3),
    }
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.names[0] + str(layout.labels))
@settings(max_examples=8)
@given(sizes=sizes)
def test_parts_make_up_the_tensor(layout, sizes):
    sizes = dict(sizes)
    sizes["heads"] = sizes["key_heads"] * sizes.pop("group")
    sizes["hidden"] = 4 * sizes["heads"] * sizes.pop("wide")
    config, shape = config_for(layout, **sizes), shape_for(layout, **sizes)
    for end in layout.names:
        for name in (f"model.layers.0{end}", f"model.layers.0{end}.weight"):
            parts = parts_of(name, shape, config)
            if len(shape) == 2 or parts:  # the order of experts may be unclear, by their sizes
                assert_tiles(parts, shape)
                matrices = shape[0] if layout in STACKS else 1
                assert len(parts) % matrices == 0
                assert {part.kind for part in parts} <= {"attention", "mlp", "expert"}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.names[0] + str(layout.labels))
def test_sizes_that_do_not_fit_leave_it_whole(layout):
    config, shape = config_for(layout), shape_for(layout)
    name = f"model.layers.0{layout.names[0]}.weight"
    words = ",".join(part.label for part in parts_of(name, shape, config))
    assert layout.labels == ("",) or all(label in words for label in layout.labels)
    rows, columns = shape[-2:]
    for other in ((rows + 1, columns), (rows, columns + 1), (rows - 1, columns), (columns, rows)):
        labels = [part.label for part in parts_of(name, (*shape[:-2], *other), config)]
        if len(shape) == 3 and "experts" in name:
            assert labels == ["0", "1", "2"]
        else:
            assert labels == []
    for other in ("", "bert", "xyz_text", None, [min(layout.types)]):
        parts = parts_of(name, shape, config | {"model_type": other, "architecture": None})
        assert not any(label in part.label for part in parts for label in layout.labels if label)


numbers = st.sampled_from([0, 1, -3, 2, 24, 10**400, -(2**70), 1.5, 1e300, math.nan, math.inf])
others = st.sampled_from([None, True, False, "24", "", "gpt2", [], [24, None], [[20]], {}])
values = numbers | others | st.just({"hidden_size": 24, "x": {"model_type": 1}})
keys = st.sampled_from(
    sorted(
        {*config_for(LAYOUTS[0]), "attn_config", "text_config", "mlp_ratio", "use_swiglu_ffn"}
        | {"new_decoder_architecture", "moe_intermediate_size", "n_embd", "kv_channels"}
    )
)


@given(
    layout=st.sampled_from(LAYOUTS),
    odd=st.dictionaries(keys, values, max_size=6),
    nested=st.sampled_from(["text_config", "attn_config", "ffn_config", ""]),
    removed=st.sets(keys, max_size=4),
)
def test_odd_configs_never_raise(layout, odd, nested, removed):
    config = config_for(layout) | odd
    if nested:
        config[nested] = dict(odd)
    config = {key: value for key, value in config.items() if key not in removed}
    shape = shape_for(layout)
    parts = parts_of(f"model.layers.0{layout.names[0]}.weight", shape, config)
    if parts:
        assert_tiles(parts, shape)


@pytest.mark.parametrize("text", ["{}", '{"model_type": null}', '{"text_config": [{"a": 1}]}'])
def test_configs_that_tell_nothing(text):
    for layout in _fused._layouts("matrices"):
        name = f"model.layers.0{layout.names[0]}.weight"
        assert not parts_of(name, shape_for(layout), json.loads(text))
