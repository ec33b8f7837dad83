"""Tensors that hold several matrices: q, k and v in one, gate and up in one, stacks of experts.

A checkpoint does not say which rows of a fused tensor are which. That is in the code of the model,
which config.json names ("model_type"). fused.toml is therefore a table of what that code does,
taken from the modelling files of transformers 5.23 and its table of conversions
(conversion_mapping.py), from timm 1.0, and, for the few models that bring their own code, from that
code. Each entry names the rule by which the rows, or the columns, are cut. The rule computes the
sizes of the parts from the config; if they do not add up to the tensor, it is left whole.

"gate" is the half that goes through the activation, whatever the model calls it.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import accumulate, pairwise
from typing import Any

from rmtspec.checkpoint.stored import Part
from rmtspec.terms import Kind

_Config = Mapping[str, Any]
#: How a side is cut: the number of groups, and the sizes of the consecutive blocks in each. A part
#: is the same block of every group. A size of 0 is unknown: the config does not give it.
_Cut = tuple[int, tuple[int, ...]]
#: Takes the config, the length of the side and the number of parts.
_Rule = Callable[[_Config, int, int], _Cut]
_UNKNOWN: _Cut = (0, ())

_HIDDEN = ("n_embed", "n_embd", "d_model", "hidden_size")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_HEADS = ("kv_n_heads", "multi_query_group_num", "num_kv_heads", "num_key_value_heads")


def _size(config: _Config, *names: str) -> int:
    """Return the first of the config's values that is a valid size, or 0."""
    nested = config.get("attn_config")  # dbrx
    for section in (nested if isinstance(nested, Mapping) else {}, config):
        for name in names:
            value = section.get(name)
            if type(value) is int and 0 < value < 2**40:  # not True
                return value
    return 0


def _head_size(config: _Config) -> int:
    heads = _size(config, *_HEADS)
    own = _size(config, "head_dim", "kv_channels")
    return own or (_size(config, *_HIDDEN) // heads if heads else 0)


def _inner_sizes(config: _Config) -> set[int]:
    """Return the inner sizes of the feed-forward layers that a config gives."""
    sizes: set[int] = set()
    for name, value in config.items():
        if re.search("intermediate_size|ffn_hidden_size$", str(name)):
            values = value if isinstance(value, list | tuple) else [value]
            sizes.update(v for v in values if type(v) is int)
    ratio: Any = config.get("mlp_ratio")
    if config.get("use_swiglu_ffn") is True and type(ratio) in (int, float) and 0 < ratio < 1000:
        wide = int(_size(config, *_HIDDEN) * ratio)  # DINOv2
        sizes.add((int(wide * 2 / 3) + 7) // 8 * 8)
    return sizes


def _heads(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut into all heads of q, all of k and all of v; or into k and v only."""
    heads, size = _size(config, *_HEADS), _head_size(config)
    key = (_size(config, *_KEY_HEADS) or heads) * size
    return 1, (heads * size, key, key)[3 - n_parts :]


def _grouped(config: _Config, groups: int) -> _Cut:
    """Cut into groups of heads that share k and v: in each, their q, then k, then v."""
    heads, size = _size(config, *_HEADS), _head_size(config)
    return (groups, (heads // groups * size, size, size)) if groups else _UNKNOWN


def _per_head(config: _Config, side: int, n_parts: int) -> _Cut:
    return _grouped(config, _size(config, *_HEADS))


def _per_key_head(config: _Config, side: int, n_parts: int) -> _Cut:
    return _grouped(config, _size(config, *_KEY_HEADS))


def _multi_query(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut as in Falcon and GPT-BigCode: one k for all heads, for each head, or for a group."""
    if config.get("new_decoder_architecture") is True:
        return _per_key_head(config, side, n_parts)
    shared = config.get("multi_query")
    if not isinstance(shared, bool):
        return _UNKNOWN
    return _grouped(config, 1 if shared else _size(config, *_HEADS))


def _chatglm(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut as in its second version, or in the first if the config does not mention a shared k."""
    shared = config.get("multi_query_attention")
    if shared is True:
        return _heads(config, side, n_parts)
    first = shared is False or "inner_hidden_size" in config  # so it is not a vision_config
    return _per_head(config, side, n_parts) if first else _UNKNOWN


def _codegen(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut into the four groups of its code, one for each TPU core."""
    return 4, (_size(config, *_HIDDEN) // 4,) * n_parts


def _linear_attention(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut into all of q, k and v; if there is also a z, into the four of each head of k."""
    keys, key_size = _size(config, "linear_num_key_heads"), _size(config, "linear_key_head_dim")
    values = _size(config, "linear_num_value_heads") * _size(config, "linear_value_head_dim")
    if n_parts == 3:
        return 1, (keys * key_size, keys * key_size, values)
    return (keys, (key_size, key_size, *(values // keys,) * 2)) if keys else _UNKNOWN


def _inner(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut into parts of the inner size: gate and up, or a single matrix."""
    size = side // n_parts
    return (1, (size,) * n_parts) if size in _inner_sizes(config) else _UNKNOWN


def _alternating(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut into alternating rows of gate and up."""
    return (side // 2, (1, 1)) if side // 2 in _inner_sizes(config) else _UNKNOWN


def _flat_experts(config: _Config, side: int, n_parts: int) -> _Cut:
    """Cut into the experts of DBRX, which are stacked along the rows."""
    nested = config.get("ffn_config")
    section: _Config = nested if isinstance(nested, Mapping) else {}
    count, size = _size(section, "moe_num_experts"), _size(section, "ffn_hidden_size")
    return (1, (size,) * count) if side == count * size else _UNKNOWN


@dataclass(frozen=True, slots=True)
class _Layout:
    """How some models lay out a tensor; `names` are ends of tensor names, without ".weight"."""

    types: frozenset[str]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    rule: _Rule | None  # None: each part has as many rows as the tensor has columns
    across: bool


@cache
def _tables() -> dict[str, Any]:
    """Return the content of fused.toml."""
    text = resources.files("rmtspec.checkpoint").joinpath("fused.toml").read_text("utf-8")
    return tomllib.loads(text)


@cache
def _layouts(section: str) -> tuple[_Layout, ...]:
    """Return the layouts of fused.toml for "matrices" or for "stacks"."""
    return tuple(
        _Layout(
            frozenset(types.split()), tuple(f".{name}" for name in names.split()),
            labels=tuple(entry["labels"].split()) or ("",),
            rule=_RULES[entry["rule"]] if "rule" in entry else None,
            across=entry.get("across", False),
        )
        for entry in _tables()[section]
        for names, types in entry["types"].items()
    )  # fmt: skip


#: The rules by their names in fused.toml.
_RULES = {
    rule.__name__[1:]: rule
    for rule in (_heads, _per_head, _per_key_head, _multi_query, _chatglm, _codegen,
                 _linear_attention, _inner, _alternating, _flat_experts)
}  # fmt: skip
#: Words at the end of a model type that name a part of a model.
_PARTS = ["text", "vision", "audio", "sam", "encoder", "decoder", "model", "thinker", "talker"]
#: Sections of a config, and entries of a section; those of models have fewer.
_MOST_SECTIONS, _LONGEST = 100, 2000
#: Architectures of timm whose q, k and v have as many rows each as columns; tiny_vit and maxvit
#: do not.
_TIMM = re.compile(
    r"(beit|beitv2|cait|convit|davit|deit|deit3|eva|eva02|flexivit|gcvit|hiera|mobilevit|mvitv2"
    r"|nest|pit|sam2|samvit|swin|swinv2|twins|vit|volo|xcit)_"
)


def parts_of(
    name: str,
    shape: tuple[int, ...],
    config: "_Config | Sections",
    shapes: Mapping[str, tuple[int, ...]] = {},
) -> list[Part]:
    """Return the matrices that a tensor of a checkpoint holds, in the order they are stored.

    The list is empty if the tensor is one matrix, or if its content is not known for sure. `config`
    is the parsed config.json next to the weights, or empty, or its `Sections`. Each section
    ("text_config") counts: a tensor is cut if the sizes of at least one fit it and all that fit
    agree. `shapes` are those of all tensors, which reveal the gates of LSTM and GRU layers.
    """
    if len(shape) not in (2, 3) or 0 in shape:
        return []
    sections = config if isinstance(config, Sections) else Sections(config)
    layer = "." + name.removesuffix(".weight")
    layouts = _layouts("matrices" if len(shape) == 2 else "stacks")
    named = [layout for layout in layouts if layer.endswith(layout.names)]
    fitting = [
        parts
        for types, section in (sections if named else ())
        for layout in named
        if layout.types & types and (parts := _from_config(layout, shape, section))
    ]
    if fitting and all(parts == fitting[0] for parts in fitting):
        return fitting[0]
    return _heads_apart(layer, shape, sections) or _from_name(name, shape, shapes)


def _heads_apart(layer: str, shape: tuple[int, ...], sections: "Sections") -> list[Part]:
    """Return the matrix of an attention weight whose heads are an axis: (hidden, heads, size).

    Its rows are the hidden units, whichever side these are on: fused.toml has the models.
    """
    for names, types in _tables()["heads_apart"].items():
        ends = tuple(f".{name}" for name in names.split())
        if len(shape) == 3 and layer.endswith(ends):
            for own, section in sections:
                heads = _size(section, *_HEADS)
                if own & set(types.split()) and shape[:2] == (_size(section, *_HIDDEN), heads):
                    sides = (shape[0], shape[1] * shape[2])
                    view = (None, None)
                    return [Part("heads", Kind.ATTENTION, view=sides, box=view, shape=sides)]
    return []


class Sections(list[tuple[set[str], _Config]]):
    """A config and its sections, each with its model types or those of its parent.

    There are none if it has more sections than any model's config: then nothing is known for sure.
    Long tables in it, such as the names of classes, are no sections.
    """

    def __init__(self, config: _Config) -> None:
        super().__init__()
        waiting: list[tuple[set[str], _Config]] = [(set(), config)]
        while waiting:
            types, section = waiting.pop()
            if len(section) > _LONGEST:
                continue
            own, architecture = section.get("model_type"), section.get("architecture")
            if isinstance(own, str):
                types = {own, _whole_model(own)}
            if isinstance(architecture, str) and _TIMM.match(architecture):
                types = types | {"timm"}
            self.append((types, section))
            waiting += [(types, value) for value in section.values() if isinstance(value, Mapping)]
            if len(self) + len(waiting) > _MOST_SECTIONS:
                self.clear()
                return


def _whole_model(own: str) -> str:
    """Return the model type without the words for parts of a model at its end."""
    words = own.split("_")
    while len(words) > 1 and words[-1] in _PARTS:
        words.pop()
    return "_".join(words)


def stack_by_name(name: str) -> bool:
    """Tell whether a tensor of three dimensions is called as a stack of matrices is."""
    layer = "." + name.removesuffix(".weight")
    by_layout = any(layer.endswith(layout.names) for layout in _layouts("stacks"))
    return by_layout or re.search("expert|moe", name.lower()) is not None


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
    """Return the parts that torch layers and stacks of experts have in any model."""
    last = name.rpartition(".")[2]
    if len(shape) == 3:
        single = re.search(r"(^|\.)experts?\.\d+\.", name)  # then it is a convolution kernel
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
    """Return the parts of each matrix of a stack; none if they do not add up to the side."""
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
