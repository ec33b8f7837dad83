import pytest

from rmtspec.report.layer_kinds import Place, depths, place_of

PLACES = {
    "model.layers.12.self_attn.q_proj.weight": ("model.layers.12", "query"),
    "model.layers.0.self_attn.o_proj.weight": ("model.layers.0", "attention output"),
    "model.layers.0.mlp.gate_proj": ("model.layers.0", "gate"),
    "model.layers.0.mlp.gate_up_proj.weight": ("model.layers.0", "gate-up"),
    "model.layers.0.self_attn.qkv_proj.weight[k]": ("model.layers.0", "key"),
    "model.layers.0.mlp.experts.7.down_proj.weight": ("model.layers.0", "down"),
    "blk.3.ffn_up.weight": ("blk.3", "up"),
    "blk.3.attn_output.weight": ("blk.3", "attention output"),
    "token_embd.weight": ("", "embedding"),
    "lm_head.weight": ("", "head"),
    "transformer.h.1.attn.c_attn.weight": ("transformer.h.1", "query-key-value"),
    "transformer.h.1.attn.c_proj.weight": ("transformer.h.1", "attention output"),
    "transformer.h.1.mlp.c_fc.weight": ("transformer.h.1", "up"),
    "transformer.h.1.mlp.c_proj.weight": ("transformer.h.1", "down"),
    "encoder.layer.0.attention.output.dense.weight": ("encoder.layer.0", "attention output"),
    "encoder.layer.0.attention.self.key.weight": ("encoder.layer.0", "key"),
    "encoder.layer.0.intermediate.dense.weight": ("encoder.layer.0", "up"),
    "encoder.layer.0.output.dense.weight": ("encoder.layer.0", "down"),
    "encoder.block.0.layer.1.DenseReluDense.wo.weight": ("encoder.block.0.layer.1", "down"),
    "decoder.block.0.layer.0.SelfAttention.o": ("decoder.block.0.layer.0", "attention output"),
    "0.weight": ("0", "matrix"),
    "fc1.weight": ("fc1", "matrix"),
    "conv1": ("conv1", "matrix"),
    "W": ("W", "matrix"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_places(name):
    assert place_of(name) == Place(*PLACES[name])


def test_kinds_decide():
    assert place_of("layer1.0.conv1.weight", "conv2d") == Place("layer1.0", "conv")
    assert place_of("x.weight", "embedding") == Place("", "embedding")


def test_depth_is_natural_and_ends_are_ends():
    names = ["lm_head.weight", "model.embed_tokens.weight", "model.layers.10.mlp.up_proj.weight",
             "model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.down_proj"]  # fmt: skip
    assert depths(map(place_of, names)) == [3, 0, 2, 1, 1]


def test_what_stands_outside_of_blocks_stays_where_it_is_listed():
    names = ["conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "linear.weight"]
    assert depths(place_of(name, "conv") for name in names) == [0, 1, 2, 3]
    assert depths(map(place_of, ["fc1.weight", "fc2.weight", "fc3.weight"])) == [0, 1, 2]
    assert depths(map(place_of, ["proj_in", "blocks.0.a", "blocks.1.a", "out"])) == [0, 1, 2, 3]


def test_a_sorted_report_has_the_same_depths():
    names = [f"layers.{i}.up_proj" for i in (3, 11, 0)]
    assert depths(map(place_of, names)) == [1, 2, 0]


def test_experts_stand_side_by_side():
    names = [f"layers.{i}.experts.{e}.up_proj" for i in (0, 1) for e in range(3)]
    assert depths(map(place_of, names)) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "name", ["", ".", "...", "1", "a" * 5000, "[", "x[]", "layers." * 2000, "\n"]
)
def test_any_name_has_a_place(name):
    assert place_of(name).role
