"""Tensors that hold several matrices: q, k and v in one, gate and up in one, stacks of experts.

Which rows of a fused tensor are which is nowhere in a checkpoint: it is in the code of the model,
which config.json names ("model_type"). So here is a table of what that code does, taken from the
modelling files of transformers 5.23 and its table of conversions (conversion_mapping.py), from
timm 1.0, and for the few models with code of their own from that code. An entry says by which
rule the rows (or, `across`, the columns) are cut; the rule computes the sizes from the config, and
where they are not exactly those of the tensor, the tensor is left whole.

"gate" is the half that goes through the activation, whatever the model calls it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from rmtspec.checkpoint.stored import Part
from rmtspec.terms import Kind

_Config = Mapping[str, Any]
#: How a side is cut: into so many groups, each of consecutive blocks of these sizes. A part is the
#: same block of every group. A size of 0 is one that the config does not tell.
_Cut = tuple[int, tuple[int, ...]]
#: From the config, the length of the side, and the number of parts.
_Rule = Callable[[_Config, int, int], _Cut]
_UNKNOWN: _Cut = (0, ())

_HIDDEN = ("n_embed", "n_embd", "d_model", "hidden_size")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_HEADS = ("kv_n_heads", "multi_query_group_num", "num_kv_heads", "num_key_value_heads")


def _size(config: _Config, *names: str) -> int:
    """Return the first of the config's values that is a size, or 0."""
    nested = config.get("attn_config")  # of dbrx
    for section in (nested if isinstance(nested, Mapping) else {}, config):
        for name in names:
            value = section.get(name)
            if type(value) is int and 0 < value < 2**40:  # not True
                return value
    return 0


def _head_size(config: _Config) -> int:
    heads = _size(config, *_HEADS)
    return _size(config, "head_dim", "kv_channels") or (
        _size(config, *_HIDDEN) // heads if heads else 0
    )


def _inner_sizes(config: _Config) -> set[int]:
    """Return the inner sizes of the feed-forward layers that a config tells."""
    found: set[int] = set()
    for name, value in config.items():
        if re.search("intermediate_size|ffn_hidden_size$", str(name)):
            values = value if isinstance(value, list | tuple) else [value]
            found.update(v for v in values if type(v) is int)
    ratio: Any = config.get("mlp_ratio")
    if config.get("use_swiglu_ffn") is True and type(ratio) in (int, float) and 0 < ratio < 1000:
        wide = int(_size(config, *_HIDDEN) * ratio)  # of DINOv2
        found.add((int(wide * 2 / 3) + 7) // 8 * 8)
    return found


def _heads(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut into all heads of q, all of k, all of v; or of k and v only."""
    heads, size = _size(config, *_HEADS), _head_size(config)
    key = (_size(config, *_KEY_HEADS) or heads) * size
    return 1, (heads * size, key, key)[3 - n_parts :]


def _grouped(config: _Config, groups: int) -> _Cut:
    """Cut into groups of heads that share a k and a v: their q, the k, the v."""
    heads, size = _size(config, *_HEADS), _head_size(config)
    return (groups, (heads // groups * size, size, size)) if groups else _UNKNOWN


def _per_head(config: _Config, side: int, n_parts: int) -> _Cut:
    return _grouped(config, _size(config, *_HEADS))


def _per_key_head(config: _Config, side: int, n_parts: int) -> _Cut:
    return _grouped(config, _size(config, *_KEY_HEADS))


def _multi_query(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut as Falcon and GPT-BigCode do: there is a k for all heads, for each, or for a group."""
    if config.get("new_decoder_architecture") is True:
        return _per_key_head(config, side, n_parts)
    shared = config.get("multi_query")
    if not isinstance(shared, bool):
        return _UNKNOWN
    return _grouped(config, 1 if shared else _size(config, *_HEADS))


def _chatglm(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut as its second version does, or, where the config says nothing of shared k, its first."""
    shared = config.get("multi_query_attention")
    if shared is True:
        return _heads(config, side, n_parts)
    first = shared is False or "inner_hidden_size" in config  # and not a vision_config
    return _per_head(config, side, n_parts) if first else _UNKNOWN


def _codegen(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut into the four groups of its code, one for each core of a TPU."""
    return 4, (_size(config, *_HIDDEN) // 4,) * n_parts


def _linear_attention(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut into all q, k and v; where there is a z, each head of k has the four of them."""
    keys, key_size = _size(config, "linear_num_key_heads"), _size(config, "linear_key_head_dim")
    values = _size(config, "linear_num_value_heads") * _size(config, "linear_value_head_dim")
    if n_parts == 3:
        return 1, (keys * key_size, keys * key_size, values)
    return (keys, (key_size, key_size, *(values // keys,) * 2)) if keys else _UNKNOWN


def _inner(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut into gate and up, each of the inner size; or leave one of them whole."""
    size = side // n_parts
    return (1, (size,) * n_parts) if size in _inner_sizes(config) else _UNKNOWN


def _alternating(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut into a row of gate, a row of up, a row of gate, and so on."""
    return (side // 2, (1, 1)) if side // 2 in _inner_sizes(config) else _UNKNOWN


def _flat_experts(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut the experts of DBRX, which lie one below the other."""
    nested = config.get("ffn_config")
    section: _Config = nested if isinstance(nested, Mapping) else {}
    count, size = _size(section, "moe_num_experts"), _size(section, "ffn_hidden_size")
    return (1, (size,) * count) if side == count * size else _UNKNOWN


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the tensors of some models hold: `names` are the ends of their names, less ".weight"."""

    types: frozenset[str]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    rule: _Rule | None  # None: each part has as many rows as there are columns
    across: bool = False


def _layout(
    types: str, names: str, labels: str, rule: _Rule | None = None, *, across: bool = False
) -> _Layout:
    ends = tuple(f".{name}" for name in names.split())
    parts = tuple(labels.split()) or ("",)
    return _Layout(frozenset(types.split()), ends, parts, rule, across=across)


_GPT = "gpt2 openai-gpt imagegpt decision_transformer"
#: Models, most of them of images, whose q, k and v have as many rows each as columns.
_EQUAL = (
    "blip blip-2 blip_2 cohere_compass deepseek_ocr2 dots3_note ernie4_5_vl_moe florence florence2 "
    "glm4v glm4v_moe glm5_next glm_image glm_ocr got_ocr2 hiera instructblip instructblipvideo "
    "intern_vit_6b mgp-str pp_formulanet pp_ocrv5_mobile_rec pp_ocrv5_server_rec "
    "pp_ocrv6_small_rec qianfan_ocr qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_omni_moe "
    "qwen3_vl qwen3_vl_moe qwen4_exp radio sam sam2 sam2_hiera_det sam_hq seggpt slanext "
    "timesformer tipsv2 unlimited_ocr vitdet timm"
)
#: Architectures of timm of which the same is true (not so: tiny_vit, maxvit).
_TIMM = re.compile(
    r"(beit|beitv2|cait|convit|davit|deit|deit3|eva|eva02|flexivit|gcvit|hiera|mobilevit|mvitv2"
    r"|nest|pit|sam2|samvit|swin|swinv2|twins|vit|volo|xcit)_"
)
#: Models whose experts.gate_up_proj is (experts, 2 x inner, hidden).
_EXPERTS = (
    "afmoe axk1 axk2 bailing_hybrid beam cohere2_moe deepseek_ocr2 deepseek_v2 deepseek_v3 "
    "deepseek_v32 deepseek_v4 diffusion_gemma dots1 dots3_note ernie4_5_moe ernie4_5_vl_moe "
    "exaone_moe flex_olmo flint gemma4 glm4_moe glm4_moe_lite glm4v_moe glm5_next glm_moe_dsa "
    "granitemoe granitemoe_swa granitemoehybrid granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 "
    "inkling inkling_mm inkling2 jamba kimi_linear kolibri1 laguna lfm2_moe longcat_flash mellum "
    "mimo_v2_flash minimax minimax_m2 minimax_m3_vl mistral4 mistral_large4 mixtral olmoe phimoe "
    "qwen2_moe qwen3_5_moe qwen3_moe qwen3_next qwen3_omni_moe qwen3_vl_moe qwen4_exp solar_open "
    "step3p5 step3p7 unlimited_ocr zaya"
)
#: Models whose experts.gate_up_proj is (experts, hidden, 2 x inner), or was in older checkpoints.
_TURNED = "llama4 aria openai_privacy_filter qwen3_vl_moe"
_MATRICES = (
    _layout("phi3 phi4_multimodal", "self_attn.qkv_proj", "q k v", _heads),
    _layout("dbrx modernbert mpt nomic_bert", "attn.Wqkv", "q k v", _heads),
    _layout("jina_embeddings_v3", "mixer.Wqkv", "q k v", _heads),
    _layout("baichuan", "self_attn.W_pack", "q k v", _heads),
    _layout("gte", "attention.qkv_proj", "q k v", _heads),
    _layout("qwen", "attn.c_attn", "q k v", _heads),
    _layout("layoutlmv2", "self.qkv_linear", "q k v", _heads),
    _layout("molmo2", "self_attn.att_proj", "q k v", _heads),
    _layout("exaone4_5", "attn.qkv", "q k v", _heads),
    _layout("jetmoe", "self_attention.kv_proj self_attn.kv_proj", "k v", _heads),
    _layout(_GPT, "attn.c_attn", "q k v", _heads, across=True),
    _layout(_GPT, "crossattention.c_attn", "k v", _heads, across=True),
    _layout("gpt_neox gpt_neox_japanese bloom persimmon", "query_key_value", "q k v", _per_head),
    _layout("deberta", "self.in_proj", "q k v", _per_head),
    _layout("minimax", "self_attn.qkv_proj", "q k v", _per_head),
    _layout("internlm2", "attention.wqkv", "q k v", _per_key_head),
    _layout("falcon", "self_attention.query_key_value", "q k v", _multi_query),
    _layout("gpt_bigcode", "attn.c_attn", "q k v", _multi_query),
    _layout("chatglm", "query_key_value", "q k v", _chatglm),
    _layout("codegen", "attn.qkv_proj", "q v k", _codegen),
    _layout("qwen3_5 qwen3_5_moe qwen4_exp", "in_proj_qkv", "q k v", _linear_attention),
    _layout("qwen3_next", "in_proj_qkvz", "q k v z", _linear_attention),
    _layout("bark semantic coarse_acoustics fine_acoustics", "attn.att_proj", "q k v"),
    _layout("nemo_speechlm kimi_k25 unlimited_ocr", "w_qkv wqkv qkv_proj", "q k v"),
    _layout("hrm_text", "attn.gqkv_proj", "gate q k v"),
    _layout(
        _EQUAL, "attn.qkv attention.qkv self_attn.qkv window_attn.qkv channel_attn.qkv", "q k v"
    ),
    _layout("phi3 phi4_multimodal glm glm4 dia hrm_text", "mlp.gate_up_proj", "gate up", _inner),
    _layout("glm4v glm_image glm_ocr dots3_note", "mlp.gate_up_proj", "gate up", _inner),
    _layout("minimax_m3_vl", "mlp.gate_up_proj shared_experts.gate_up_proj", "gate up", _inner),
    _layout("zamba2", "feed_forward.gate_up_proj", "gate up", _inner),
    _layout("modernbert modernbert-decoder", "mlp.Wi", "gate up", _inner),
    _layout("chatglm", "mlp.dense_h_to_4h", "gate up", _inner),
    _layout("granitemoeshared granitemoehybrid", "shared_mlp.input_linear", "gate up", _inner),
    _layout("granitemoe_swa", "shared_mlp.input_linear", "gate up", _inner),
    _layout("dinov2 dinov2_with_registers", "mlp.weights_in", "gate up", _inner),
    _layout("tipsv2 sapiens2", "mlp.w12 ffn.w12", "gate up", _inner),
    _layout("moonshine", "mlp.fc1", "up gate", _inner),
    _layout("gte molmo2", "mlp.up_gate_proj mlp.ff_proj", "up gate", _inner),
    _layout("phi4_multimodal", "feed_forward_in.gate_up_proj", "up gate", _inner),
    _layout("phi4_multimodal", "feed_forward_out.gate_up_proj", "up gate", _inner),
    _layout("inkling inkling_mm", "mlp.w13_dn", "gate up", _alternating),
    _layout("dbrx", "experts.mlp.w1 experts.mlp.v1 experts.mlp.w2", "", _flat_experts),
)
_STACKS = (
    _layout(_EXPERTS, "experts.gate_up_proj block_sparse_moe.input_linear", "gate up", _inner),
    _layout("jetmoe", "mlp.input_linear", "gate up", _inner),
    _layout("jetmoe", "mlp.output_linear", "", _inner, across=True),
    _layout(_TURNED, "experts.gate_up_proj experts.fc1", "gate up", _inner, across=True),
    _layout("gpt_oss", "experts.gate_up_proj", "gate up", _alternating, across=True),
    _layout("inkling inkling_mm inkling2", "experts.w13_weight", "gate up", _alternating),
)


def parts_of(
    name: str,
    shape: tuple[int, ...],
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]] = {},
) -> list[Part]:
    """Return the matrices that a tensor of a checkpoint holds, in the order they are stored.

    None if the tensor is one matrix, or if what it holds is not known for sure. `config` is the
    config.json beside the weights, parsed, or empty. Sections in it ("text_config") count too: a
    tensor is cut if the sizes of one of them fit it, and all that fit agree. `shapes` are the sides
    of all tensors of the checkpoint; the gates of LSTM and GRU are told from them.
    """
    if len(shape) not in (2, 3) or 0 in shape:
        return []
    layer = "." + name.removesuffix(".weight")
    layouts = _MATRICES if len(shape) == 2 else _STACKS
    named = [layout for layout in layouts if layer.endswith(layout.names)]
    found = [
        parts
        for types, section in (_sections(config) if named else ())
        for layout in named
        if layout.types & types and (parts := _from_config(layout, shape, section))
    ]
    if found and all(parts == found[0] for parts in found):
        return found[0]
    return _from_name(name, shape, shapes)


def _sections(config: _Config) -> Iterator[tuple[set[str], _Config]]:
    """Yield the config and those within it, each with its model types, or else its parent's."""
    waiting: list[tuple[set[str], _Config]] = [(set(), config)]
    while waiting:
        types, section = waiting.pop()
        own, architecture = section.get("model_type"), section.get("architecture")
        if isinstance(own, str):
            part = r"(_(text|vision|audio|sam|encoder|decoder|model|thinker|talker))+$"
            types = {own, re.sub(part, "", own)}
        if isinstance(architecture, str) and _TIMM.match(architecture):
            types = types | {"timm"}
        yield types, section
        waiting += [(types, value) for value in section.values() if isinstance(value, Mapping)]


def _from_config(layout: _Layout, shape: tuple[int, ...], config: _Config) -> list[Part]:
    axis, other = (-1, -2) if layout.across else (-2, -1)
    labels, cut = layout.labels, _UNKNOWN
    if layout.rule is None:
        cut = 1, (shape[other],) * len(labels)
    elif shape[other] == _size(config, *_HIDDEN):
        cut = layout.rule(config, shape[axis], len(labels))
    if len(shape) == 3 or labels == ("",):
        kind = Kind.EXPERT
        labels = labels if len(shape) == 3 else tuple(map(str, range(len(cut[1]))))
    else:
        kind = Kind.ATTENTION if "k" in labels else Kind.MLP
    return _cut(shape, len(shape) + axis, cut, labels, kind=kind)


def _from_name(
    name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> list[Part]:
    """Return the parts that layers of torch and stacks of experts have in any model."""
    last = name.rpartition(".")[2]
    if len(shape) == 3:
        single = re.search(r"(^|\.)experts?\.\d+\.", name)  # then the sides are a kernel's
        stack = shape[0] > 1 and re.search("expert|moe", name.lower()) and not single
        return _cut(shape, 1, (1, (shape[1],)), ("",), kind=Kind.EXPERT) if stack else []
    if last == "in_proj_weight" and shape[0] == 3 * shape[1]:
        return _cut(shape, 0, (1, (shape[1],) * 3), tuple("qkv"), kind=Kind.ATTENTION)
    if re.fullmatch(r"weight_(ih|hh)(_l\d+(_reverse)?)?", last):
        start = name[: len(name) - len(last)]
        hidden, projected = (start + re.sub("_(ih|hh)", to, last) for to in ("_hh", "_hr"))
        state = shapes.get(hidden, shape if hidden == name else ())
        size = shapes.get(projected, state)[1:]
        count = shape[0] // size[0] if size and size[0] and state[:1] == shape[:1] else 0
        gates = {3: "rzn", 4: "ifgo"}.get(count, "")
        if gates:
            sizes = (size[0],) * len(gates)
            return _cut(shape, 0, (1, sizes), tuple(gates), kind=Kind.RECURRENT)
    return []


def _cut(
    shape: tuple[int, ...], axis: int, cut: _Cut, labels: tuple[str, ...], *, kind: Kind
) -> list[Part]:
    """Return the parts of a side, for each matrix of a stack; none if they do not make it up."""
    groups, sizes = cut
    length = sum(sizes)
    if 0 in sizes or groups * length != shape[axis]:
        return []
    view, inner = shape, axis
    if groups > 1:
        view, inner = (*shape[:axis], groups, length, *shape[axis + 1 :]), axis + 1
    spans = list(pairwise(accumulate(sizes, initial=0)))
    parts = []
    for index in range(shape[0]) if len(shape) == 3 else (None,):
        for label, span in zip(labels, spans, strict=True):
            box: list[tuple[int, int] | None] = [None] * len(view)
            box[inner] = span if len(sizes) > 1 else None
            words = [label] if label else []
            if index is not None:
                box[0], words = (index, index + 1), [str(index), *words]
            sides = [*shape]
            sides[axis] = groups * (span[1] - span[0])
            label, shown = ",".join(words), (sides[-2], sides[-1])
            parts.append(Part(label, kind, view=view, box=tuple(box), shape=shown))
    return parts
