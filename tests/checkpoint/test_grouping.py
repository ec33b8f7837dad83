"""Which tensors are matrices, of which kind, and why the others are not."""

import json

import ml_dtypes
import numpy as np
import pytest
from checkpoints import noise, write_safetensors
from numpy.testing import assert_array_equal

import rmtspec
from rmtspec.checkpoint import matrices_in

VECTOR = "1 dimension: a vector has no spectrum"
BIAS = "a bias or a mask: added, not multiplied"
BUFFER = "a buffer: computed, not trained"
SCALES = "scales of a quantised weight, no weight matrix"


def listed(tmp_path, tensors, **options):
    return matrices_in(write_safetensors(tmp_path / "m.safetensors", tensors), **options)


def found(tmp_path, name, array):
    """Return what one tensor is: kinds and shapes by name of matrix, or the reason of none."""
    checkpoint = listed(tmp_path, {name: array})
    assert len(checkpoint.skipped) + bool(checkpoint.matrices) == 1
    if checkpoint.skipped:
        assert checkpoint.skipped[0]["name"] == name
        return checkpoint.skipped[0]["reason"]
    return {name: (matrix.kind, matrix.sides) for name, matrix in checkpoint}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        # GPT-2 has its causal mask in the file, as a buffer called bias.
        ("h.0.attn.bias", (1, 1, 64, 64), BIAS),
        ("h.0.attn.masked_bias", (), "0 dimensions: a number has no spectrum"),
        ("attn.relative_position_bias", (8, 20, 20), BIAS),
        ("encoder.attn_mask", (64, 64), BUFFER),
        ("rotary_emb.inv_freq", (1, 32), BUFFER),
        ("rotary_emb.cos_cached", (1, 1, 64, 32), BUFFER),
        ("freqs_cis", (32, 16), BUFFER),
        ("bn.running_mean", (6, 4), BUFFER),
        ("fc.weight_scale", (64, 2), SCALES),
        ("fc.scales", (64, 2), SCALES),
        ("fc.weight_scale_inv", (4, 4), SCALES),
        ("cls_token", (1, 1, 768), VECTOR),
        ("logit_scale_weights.weight", (20, 16), "matrix"),  # not called a scale at its end
        ("biased.weight", (20, 16), "matrix"),
        ("maskformer.weight", (20, 16), "matrix"),
        ("attn.relative_attention_bias.weight", (32, 8), "embedding"),
    ],
)
def test_what_is_no_weight_by_its_name(tmp_path, name, shape, expected):
    result = found(tmp_path, name, noise(*shape))
    if expected in ("matrix", "embedding"):
        assert result == {name: (expected, shape)}
    else:
        assert result == expected


def test_integers_other_dtypes_and_dimensions(tmp_path):
    assert found(tmp_path, "w", np.ones((4, 4), "int64")).startswith("dtype int64: whole numbers")
    assert found(tmp_path, "w", np.ones((4, 4), "uint8")).startswith("dtype uint8: whole numbers")
    assert found(tmp_path, "w", noise(4)) == VECTOR
    assert found(tmp_path, "w", noise(0, 4)) == "empty"
    assert found(tmp_path, "w", noise(4, 0, 3)) == "empty"
    assert found(tmp_path, "w", noise(0)) == "empty"
    assert found(tmp_path, "w", noise(*[2] * 6)).startswith("6 dimensions: neither a matrix nor")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 197, 48), {"pos_embed[0]": ("parameter", (197, 48))}),
        ((1, 14, 1, 48), {"pos_embed[0]": ("parameter", (14, 48))}),
        ((1, 14, 14, 48), {"pos_embed": ("conv", (1, 14 * 14 * 48))}),
    ],
)
def test_a_parameter_with_a_batch_side(tmp_path, shape, expected):
    array = noise(*shape)
    assert found(tmp_path, "pos_embed", array) == expected
    for _, matrix in matrices_in(tmp_path / "m.safetensors"):
        assert_array_equal(matrix(), array.reshape(matrix.sides))
    # A kernel of one output channel is a kernel.
    assert found(tmp_path, "conv.weight", array) == {
        "conv.weight": ("conv", (1, int(np.prod(shape[1:]))))
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("wpe.weight", "embedding"),
        ("shared.weight", "embedding"),
        ("embed_out.weight", "matrix"),
        ("lm_head.weight", "matrix"),
        ("membership.weight", "matrix"),
    ],
)
def test_embeddings(tmp_path, name, kind):
    assert found(tmp_path, name, noise(20, 16)) == {name: (kind, (20, 16))}
    assert found(tmp_path, name, noise(20, 16, 3)) == {name: ("conv", (20, 48))}


def test_bytes_whose_scales_are_beside_are_no_entries(tmp_path):
    fp8 = noise(64, 48, dtype=ml_dtypes.float8_e4m3fn)
    tensors = {
        "blocks.weight": fp8,
        "blocks.weight_scale_inv": noise(4, 3),
        "rows.weight": fp8,
        "rows.weight_scale": noise(64, 1),
        "one.weight": fp8,
        "one.weight_scale": noise(1),
        "none.weight": fp8,
        "wide.weight": noise(64, 48),
        "wide.weight_scale": noise(64, 1),
    }
    checkpoint = listed(tmp_path, tensors)
    # One number for all of it leaves the spectrum's shape; what has more than 8 bits is itself.
    assert list(checkpoint.matrices) == ["none.weight", "one.weight", "wide.weight"]
    why = {entry["name"]: entry["reason"] for entry in checkpoint.skipped}
    assert why["blocks.weight"] == (
        "quantised, its scales are in blocks.weight_scale_inv: convert it to BF16 first"
    )
    assert why["rows.weight"].startswith("quantised, its scales are in rows.weight_scale:")
    assert why["rows.weight_scale"] == SCALES


def test_a_stack_of_experts_with_and_without_parts(tmp_path):
    stack = noise(3, 30, 20)
    for parts in (True, False):
        checkpoint = listed(tmp_path, {"layers.0.mlp.experts.w1": stack}, parts=parts)
        names = [f"layers.0.mlp.experts.w1[{i}]" for i in range(3)]
        assert list(checkpoint.matrices) == names
        for index, (_, matrix) in enumerate(checkpoint):
            assert matrix.kind == "expert"
            assert_array_equal(matrix(), stack[index])


def test_a_fused_tensor_with_and_without_parts(tmp_path):
    config = {
        "model_type": "phi3", "hidden_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 40,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    qkv = noise(32 + 2 * 16, 32)
    tensors = {"model.layers.0.self_attn.qkv_proj.weight": qkv}
    (name,) = tensors
    checkpoint = listed(tmp_path, tensors)
    assert [n.removeprefix(name) for n in checkpoint.matrices] == ["[q]", "[k]", "[v]"]
    parts = [matrix() for _, matrix in checkpoint]
    assert_array_equal(np.concatenate(parts), qkv)
    assert [part.shape for part in parts] == [(32, 32), (16, 32), (16, 32)]
    assert list(listed(tmp_path, tensors, parts=False).matrices) == [name]
    (tmp_path / "config.json").unlink()
    assert list(listed(tmp_path, tensors).matrices) == [name]


def test_a_tensor_called_as_a_part(tmp_path):
    for order in (1, -1):
        tensors = dict([("experts.w1", noise(2, 30, 20)), ("experts.w1[0]", noise(9, 8))][::order])
        checkpoint = listed(tmp_path, tensors)
        assert sorted(checkpoint.matrices) == ["experts.w1[0]", "experts.w1[1]"]
        assert checkpoint.matrices["experts.w1[0]"].sides == ((30, 20) if order == 1 else (9, 8))
        assert checkpoint.skipped == [
            {"name": "experts.w1[0]", "reason": "a second matrix of this name"}
        ]


def test_parts_are_analysed_as_the_matrices_they_are(tmp_path):
    stack = noise(2, 60, 40)
    checkpoint = listed(tmp_path, {"experts.w1": stack})
    rows = rmtspec.analyze_checkpoint(checkpoint).rows
    for row, alone in zip(rows, stack, strict=True):
        expected = rmtspec.analyze(alone, name=row["name"], kind="expert", noise="mp").to_dict()
        assert {**row, "seconds": 0} == {**expected, "seconds": 0}
