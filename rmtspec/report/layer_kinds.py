"""Where in a model a matrix stands, and what it does there, as far as its name tells."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rmtspec._text import natural

#: The role of a matrix by how its name within the block ends; the first that fits counts.
_ROLES: tuple[tuple[str, str], ...] = (
    (r"(qkv|query_key_value|c_attn|wqkv|w_pack|qkv_\w+|in_proj|in_proj_weight)", "query-key-value"),
    (r"(q|query|q_proj|attn_q|q_lin|wq|q_a_proj|q_b_proj)", "query"),
    (r"(k|key|k_proj|attn_k|k_lin|wk)", "key"),
    (r"(v|value|v_proj|attn_v|v_lin|wv)", "value"),
    (r"(kv|kv_proj|kv_a_proj_with_mqa|kv_b_proj)", "key-value"),
    (r"(attn|attention|self_attn|self_attention|selfattention|encdecattention|crossattention)\S*"
     r"\.(o|dense|c_proj|out_proj|o_proj|out_lin|proj|wo)", "attention output"),
    (r"(o_proj|attn_output|attention\.output\.dense|out_proj)", "attention output"),
    (r"(gate_up_proj|up_gate_proj|gate_up)", "gate-up"),
    (r"(gate|gate_proj|ffn_gate|w1|wi_0|router)", "gate"),
    (r"(up|up_proj|ffn_up|w3|wi_1|wi|fc1|c_fc|lin1|linear1|intermediate\.dense|dense_h_to_4h)",
     "up"),
    (r"(down|down_proj|ffn_down|w2|wo|fc2|lin2|linear2|output\.dense|dense_4h_to_h|c_proj)",
     "down"),
)  # fmt: skip
_NAMED = [(re.compile(rf"(^|.*[._]){pattern}$", re.IGNORECASE), role) for pattern, role in _ROLES]
#: Outside of blocks: before and after them.
_EMBEDDING = re.compile(r"(^|[._])(\w*embed\w*|embd|wte|wpe|shared|tok\w*_embd)$", re.IGNORECASE)
_HEAD = re.compile(r"(^|[._])(lm_head|embed_out|classifier|score|head|output)$", re.IGNORECASE)
#: The numbers after these words count parts of one block that stand side by side.
_BESIDE = ("expert", "experts", "heads", "branches")
_LAST = re.compile(r"\.(weight|kernel|embeddings|kernel:0)$")


class Place(NamedTuple):
    """Where a matrix stands: the name of its block, "" for embeddings and heads, and its role."""

    block: str
    role: str


def place_of(name: str, kind: str = "") -> Place:
    """Return the block of a matrix and its role, by its name and, if it is known, its kind.

    The block is the part of the name up to the last number ("model.layers.3"), without the numbers
    of experts, which stand side by side; a matrix outside of all blocks is one of its own. A role
    is "query", "key", "value", "query-key-value", "attention output", "up", "gate", "gate-up",
    "down", "conv", "embedding", "head", what the name has behind the block, or the kind.

    >>> place_of("model.layers.3.self_attn.q_proj.weight")
    Place(block='model.layers.3', role='query')
    >>> place_of("layer2.0.conv1.weight", "conv")
    Place(block='layer2.0', role='conv')
    """
    part = re.search(r"\[(\w+)\]", name)  # of a fused tensor
    plain = _LAST.sub("", re.sub(r"\[[^\]]*\]", "", name).replace("/", "."))
    pieces = plain.split(".")
    ends = [i for i, piece in enumerate(pieces) if _counts(pieces, i)]
    end = ends[-1] + 1 if ends else 0
    block, inner = ".".join(pieces[:end]), ".".join(pieces[end:])
    if "embedding" in kind or (not end and _EMBEDDING.search(plain)):
        return Place("", "embedding")
    if "conv" in kind:
        return Place(block or plain, "conv")
    if not end and _HEAD.search(plain):
        return Place("", "head")
    if part is not None and end:
        inner = part.group(1)
    if end:
        role = next((role for pattern, role in _NAMED if pattern.match(inner)), "")
        if role:
            return Place(block, role)
    shown = ".".join(piece for piece in inner.split(".") if not piece.isdecimal())
    return Place(block, shown or kind or "matrix") if end else Place(plain, kind or "matrix")


def _counts(pieces: Sequence[str], i: int) -> bool:
    """Tell whether a piece of a name numbers a block: "3", or "layer2" before other pieces."""
    if i and pieces[i - 1] in _BESIDE:
        return False
    return pieces[i].isdecimal() or (i < len(pieces) - 1 and bool(re.search(r"[0-9]$", pieces[i])))


def depths(places: Iterable[Place]) -> list[int]:
    """Return how deep in the model each place is: 0, 1, ... by block.

    Blocks whose names differ in numbers alone stand in the order of these, and such groups as they
    are listed first; embeddings come before all blocks, heads behind.
    """
    listed = list(places)
    groups: dict[str, None] = {}
    for place in listed:
        groups.setdefault(_unnumbered(place.block))
    rank = {group: i for i, group in enumerate(groups)}

    def key(place: Place) -> tuple[int, int, Sequence[object]]:
        ends = {"embedding": -1, "head": 1}
        end = 0 if place.block else ends.get(place.role, 0)
        return end, rank[_unnumbered(place.block)], natural(place.block)

    keys = [key(place) for place in listed]
    order: list[object] = []
    for each in sorted(keys):
        if not order or order[-1] != each:
            order.append(each)
    number = {str(each): i for i, each in enumerate(order)}
    return [number[str(each)] for each in keys]


def _unnumbered(block: str) -> str:
    return re.sub(r"[0-9]+", "#", block)
