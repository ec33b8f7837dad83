"""Quantised checkpoints: recognised by name and config, never guessed, damage named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import rmtspec
from rmtspec import cli
from rmtspec.checkpoint import matrices_in, stored
from rmtspec.errors import FileError
from rmtspec.terms import Why

REFERENCES = Path(__file__).parents[1] / "reference" / "quantised"
CASES = sorted(file.stem for file in REFERENCES.glob("*.safetensors"))


def reference(case):
    """Return the tensors of a layer, and its config."""
    from safetensors import safe_open

    file = REFERENCES / f"{case}.safetensors"
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["config"])
    return {n: t for n, t in load_file(file).items() if not n.startswith("dense:")}, config


def write(folder, tensors, config=None, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / name, {"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_options(config, **options):
    return {**config, "quantization_config": {**config["quantization_config"], **options}}


def why_not(folder):
    """Return the reason for which no tensor of a quantised layer is read."""
    listed = matrices_in(folder)
    assert not listed.matrices
    assert listed.refused
    (reason,) = set(listed.refused.values())
    assert Why.of(reason) == (Why.NOT_DEQUANTISED,)
    assert {entry["name"] for entry in listed.skipped} >= set(listed.refused)
    with pytest.raises(FileError, match="cannot be written as plain numbers"):
        rmtspec.merge_checkpoint(folder, folder.with_name("dense"))
    assert not folder.with_name("dense").exists()
    return reason


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], catch_exceptions=False)


# Never guessed.


@pytest.mark.parametrize(
    ("case", "options", "words"),
    [
        ("awq", {"version": "gemv"}, "its version is 'gemv' of autoawq with 4 bits"),
        ("awq", {"bits": 8}, "with 8 bits; expected gemm with 4"),
        ("awq", {"backend": "llm-awq"}, "of llm-awq"),
        ("awq", {"quant_method": "hqq"}, "quantised as hqq and not read: this layout"),
        ("awq", {"quant_method": "gptq"}, r"expected \(24, 8\)"),
        ("gptq_4_gptq", {"checkpoint_format": "marlin"}, "its format is 'marlin'"),
        ("gptq_4_gptq", {"bits": 5}, "its bits are 5; expected one of 2, 3, 4, 8"),
        ("gptq_4_gptq", {"bits": None}, "its bits are None"),
        ("gptq_4_gptq", {"bits": 8}, r"fc.g_idx' is \(96,\); expected \(48,\)"),
        ("gptq_4_gptq", {"group_size": 48}, r"fc.scales' is \(3, 64\); expected \(2, 64\)"),
        ("fp8_block", {"weight_block_size": [64, 64]}, r"\(3, 3\); expected \(2, 2\)"),
        ("fp8_block", {"weight_block_size": [0, 64]}, "expected two positive whole numbers"),
        ("fp8_block", {"weight_block_size": "x"}, "weight_block_size in the config is x"),
        ("fp8_block", {"weight_block_size": None}, "one scale, or one for each row: 70"),
        ("fp8_block", {"quant_method": "torchao"}, "quantised as torchao and not read"),
        ("ct_int4", {"format": "marlin-24"}, "the format 'marlin-24' of int is not known"),
        ("ct_int4", {"config_groups": {}}, "no group of its config has weights"),
        ("ct_int4", {"config_groups": {"a": {"weights": {"num_bits": 99}}}}, "gives 99 bits"),
        ("ct_float8", {"format": "sparse-24-bitmask"}, "no tensor 'fc.weight_packed'"),
        ("ct_nvfp4", {"quant_method": "modelopt"}, "quantised as modelopt and not read"),
    ],
)  # fmt: skip
def test_a_layout_that_is_not_known(tmp_path, case, options, words):
    import re

    tensors, config = reference(case)
    reason = why_not(write(tmp_path / "in", tensors, with_options(config, **options)))
    assert re.search(words, reason)


@pytest.mark.parametrize("case", ["awq", "gptq_4_gptq"])
def test_no_config(tmp_path, case):
    reason = why_not(write(tmp_path / "in", reference(case)[0]))
    assert "GPTQ or AWQ and not read: no quantization_config" in reason


def test_floats_without_a_config_are_as_before(tmp_path):
    listed = matrices_in(write(tmp_path / "in", reference("fp8_block")[0]))
    assert {Why.of(entry["reason"]) for entry in listed.skipped} >= {(Why.SCALED,)}
    assert not listed.refused


def test_what_no_config_is_needed_for(tmp_path):
    for case in ("bnb_nf4", "bnb_int8", "mxfp4"):
        listed = matrices_in(write(tmp_path / case, reference(case)[0]))
        assert listed.matrices
        assert not listed.skipped


def test_an_unknown_layer_among_others(tmp_path):
    tensors = {
        "a.codes": torch.zeros((40, 8), dtype=torch.uint8), "a.codebook": torch.randn(16, 40),
        "a.bias": torch.randn(40), "b.weight": torch.randn(40, 30),
        "h.attn.bias": torch.zeros((1, 1, 9, 9), dtype=torch.uint8),
    }  # fmt: skip
    config = {"quantization_config": {"quant_method": "aqlm"}}
    folder = write(tmp_path / "in", tensors, config)
    listed = matrices_in(folder)
    assert list(listed.matrices) == ["b.weight"]
    assert set(listed.refused) == {"a.codes", "a.codebook", "a.bias"}
    # What can be pruned is, and the codes are copied as they are.
    rmtspec.prune_checkpoint(folder, tmp_path / "out", ranks={"b": 3})
    found = load_file(next((tmp_path / "out").glob("*.safetensors")))
    assert torch.equal(found["a.codebook"], tensors["a.codebook"])
    assert found["b.outer.weight"].shape == (40, 3)


def test_a_name_that_is_taken(tmp_path):
    tensors, config = reference("gptq_4_gptq")
    folder = write(tmp_path / "in", {**tensors, "fc.weight": torch.randn(20, 20)}, config)
    listed = matrices_in(folder)
    assert list(listed.matrices) == ["fc.weight"]
    assert "there is a tensor 'fc.weight' already" in listed.refused["fc.qweight"]


# Where the scheme may be.


def test_older_places_of_the_scheme(tmp_path):
    tensors, config = reference("gptq_4_gptq")
    options = dict(config["quantization_config"])
    del options["quant_method"], options["checkpoint_format"]
    folder = write(tmp_path / "gptq", tensors)
    (folder / "quantize_config.json").write_text(json.dumps(options))
    expected = matrices_in(write(tmp_path / "new", tensors, config)).matrices["fc.weight"]()
    assert np.array_equal(matrices_in(folder).matrices["fc.weight"](), expected)
    rmtspec.merge_checkpoint(folder, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.safetensors"]

    tensors, config = reference("awq")
    folder = write(tmp_path / "awq", tensors)
    older = {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}
    (folder / "quant_config.json").write_text(json.dumps(older))
    assert list(matrices_in(folder).matrices) == ["fc.weight"]

    tensors, config = reference("ct_int4")
    options = dict(config["quantization_config"])
    del options["quant_method"]
    folder = write(tmp_path / "ct", tensors, {"compression_config": options})
    assert list(matrices_in(folder).matrices) == ["fc.weight"]


def test_a_model_of_several_parts(tmp_path):
    tensors, config = reference("fp8_block")
    nested = {"text_config": {**config, "dtype": "float32"}, "vision_config": {"hidden_size": 8}}
    folder = write(tmp_path / "in", tensors, nested)
    rmtspec.merge_checkpoint(folder, tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert kept == {"text_config": {"dtype": "float32"}, "vision_config": {"hidden_size": 8}}
    assert load_file(tmp_path / "out" / "model.safetensors")["fc.weight"].dtype == torch.float32


@pytest.mark.parametrize("text", ["[]", "{", '{"quantization_config": 3}', "null"])
def test_configs_that_say_nothing(tmp_path, text):
    folder = write(tmp_path / "in", reference("gptq_4_gptq")[0])
    (folder / "config.json").write_text(text)
    (folder / "quantize_config.json").write_text(text)
    assert "no quantization_config" in why_not(folder)


def test_layers_that_keep_their_inputs_as_rows(tmp_path):
    tensors, config = reference("gptq_4_gptq")
    renamed = {n.replace("fc.", "h.0.mlp.c_fc."): t for n, t in tensors.items()}
    folder = write(tmp_path / "in", renamed, {**config, "model_type": "gpt2"})
    turned = matrices_in(folder).matrices["h.0.mlp.c_fc.weight"]
    plain = matrices_in(write(tmp_path / "plain", tensors, config)).matrices["fc.weight"]
    assert np.array_equal(turned(), plain().T)
    assert np.array_equal(turned.rounding()[1], plain.rounding()[1].T)


def test_groups_of_a_config_are_told_apart_by_the_tensors(tmp_path):
    (four, config), (eight, other) = reference("ct_int4"), reference("ct_int8_packed")
    groups = config["quantization_config"]["config_groups"]
    groups["group_1"] = other["quantization_config"]["config_groups"]["group_0"]
    tensors = {n.replace("fc", "a"): t for n, t in four.items()}
    tensors |= {n.replace("fc", "b"): t for n, t in eight.items()}
    folder = write(tmp_path / "in", tensors, config)
    assert [t.dtype for t in matrices_in(folder).tensors.values()] == [
        "compressed-tensors int4", "compressed-tensors int8"
    ]  # fmt: skip
    # Two that fit the same tensors: blocks of a row of a matrix of one column of blocks.
    weights = groups["group_0"]["weights"]
    groups["group_2"] = {"weights": {**weights, "strategy": "block", "group_size": None,
                                     "block_structure": [1, 33]}}  # fmt: skip
    assert (
        "more than one group"
        in matrices_in(write(folder, tensors, config)).refused["a.weight_packed"]
    )


def whole_word_packing(codes, bits):
    per_word = 32 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_word))).astype(np.int64)
    shifts = bits * np.arange(per_word)
    words = (padded.reshape(len(codes), -1, per_word) << shifts).sum(-1)
    return torch.tensor(words.astype(np.uint32).view(np.int32))


def test_the_older_packing_of_three_bits(tmp_path):
    _, config = reference("ct_int3_zeros")
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = True
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(0, 8, (40, 96)), rng.random((40, 3)).astype(np.float32)
    tensors = {
        "fc.weight_packed": whole_word_packing(codes, 3), "fc.weight_scale": torch.tensor(scales),
        "fc.weight_shape": torch.tensor([40, 96]),
    }  # fmt: skip
    load = matrices_in(write(tmp_path / "in", tensors, config)).matrices["fc.weight"]
    assert np.array_equal(load(), np.float32(codes - 4) * scales.repeat(32, 1))
    tensors["fc.weight_g_idx"] = torch.arange(96).flip(0).int() // 32
    load = matrices_in(write(tmp_path / "in", tensors, config)).matrices["fc.weight"]
    assert np.array_equal(load(), np.float32(codes - 4) * scales.repeat(32, 1)[:, ::-1])
    # 32 columns: 3 words in one packing and 4 in the other; 30: 3 in both.
    tensors = {
        "fc.weight_packed": whole_word_packing(codes[:, :30], 3),
        "fc.weight_scale": torch.tensor(scales[:, :1]), "fc.weight_shape": torch.tensor([40, 30]),
    }  # fmt: skip
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    weights |= {"strategy": "channel", "group_size": None}
    reason = why_not(write(tmp_path / "both", tensors, config))
    assert "take 3 words in either packing" in reason


# Damage.

#: Tensors without which a layer is still whole, and damage after which it could be so.
SPARE = {"fc.weight_format", "fc.input_scale", ("gptq_4_gptq_v2", "fc.g_idx"),
         ("gptq_8_gptq", "fc.g_idx")}  # fmt: skip
HARMLESS = {
    ("fp8_tensor", "shorter", "fc.weight"),  # one scale, for whatever shape
    *((f"bnb_{kind}", "deeper", "fc.weight") for kind in ("nf4", "nf4_plain", "fp4")),  # flat
    ("fp8_tensor", "other dtype", "fc.input_scale"),
}


def damages(tensors):
    """Yield what was done to which tensor, and the tensors after it."""
    for name, tensor in tensors.items():
        rest = {n: t for n, t in tensors.items() if n != name}
        yield "dropped", name, rest
        if tensor.ndim and tensor.numel() > 1:
            yield "shorter", name, {**rest, name: tensor[: len(tensor) // 2]}
            yield "deeper", name, {**rest, name: tensor[None, None]}
            yield "empty", name, {**rest, name: tensor[:0]}
        yield "other dtype", name, {**rest, name: torch.zeros(tensor.shape, dtype=torch.complex64)}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_named(tmp_path, case):
    tensors, config = reference(case)
    for what, name, damaged in damages(tensors):
        listed = matrices_in(write(tmp_path / "in", damaged, config))
        fits = (case, what, name) in HARMLESS
        fits = fits or (what == "dropped" and bool(SPARE & {name, (case, name)}))
        assert bool(listed.matrices) == fits, (what, name)
        for entry in listed.skipped:
            assert Why.OTHER not in Why.of(entry["reason"]), entry


def test_groups_that_do_not_exist(tmp_path):
    tensors, config = reference("gptq_4_gptq")
    tensors["fc.g_idx"][7] = 3
    folder = write(tmp_path / "in", {**tensors, "b.weight": torch.randn(40, 30)}, config)
    report = rmtspec.analyze_checkpoint(folder)
    assert [row["name"] for row in report.rows] == ["b.weight"]
    (entry,) = (entry for entry in report.skipped if entry["name"] == "fc.weight")
    assert "'fc.g_idx' names the group 0 or 3; expected 0 to 2" in entry["reason"]
    with pytest.raises(FileError, match=r"damaged: 'fc\.g_idx'"):
        rmtspec.merge_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[" * 60000, "is not JSON"),
        (b"[1]", "expected an object"), (b" " * 70000, "expected at most 65536"),
        ({"quant_type": "nf3"}, "the type 'nf3'"), ({"dtype": "int8"}, "of 'int8'"),
        ({"shape": [2**39, 2**39]}, "expected half of"), ({"shape": []}, "expected up to 5"),
        ({"shape": [-300, -64]}, "expected up to 5"), ({"shape": [300, 64.0]}, "expected up to 5"),
        ({"blocksize": 0}, "the blocksize 0"), ({"blocksize": 2**40}, "expected a whole number"),
        ({"blocksize": 128}, r"fc.weight.absmax' is (300,); expected (150,)"),
        ({"nested_blocksize": 7}, "nested_absmax"), ({"nested_offset": None}, "nested_offset"),
        ({"nested_offset": float("nan")}, "nested_offset"),
    ],
)  # fmt: skip
def test_a_hostile_state(tmp_path, content, words):
    tensors, config = reference("bnb_nf4")
    key = "fc.weight.quant_state.bitsandbytes__nf4"
    if isinstance(content, dict):
        state = json.loads(bytes(tensors[key].tolist()))
        content = json.dumps({**state, **content}).encode()
    tensors[key] = torch.tensor(list(content), dtype=torch.uint8)
    assert words in why_not(write(tmp_path / "in", tensors, config))


def test_scales_that_are_no_numbers(tmp_path):
    tensors, config = reference("gptq_4_gptq")
    tensors["fc.scales"][0, 0] = float("inf")
    report = rmtspec.analyze_checkpoint(write(tmp_path / "in", tensors, config))
    assert [Why.of(entry["reason"]) for entry in report.skipped] == [(Why.NOT_FINITE,)]


# Files.


def test_scales_in_another_shard(tmp_path):
    tensors, config = reference("fp8_block")
    folder = write(tmp_path / "in", {"fc.weight": tensors["fc.weight"]}, config, "a.safetensors")
    scales = {"fc.weight_scale_inv": tensors["fc.weight_scale_inv"]}
    write(folder, scales, name="b.safetensors")
    places = {"fc.weight": "a.safetensors", "fc.weight_scale_inv": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    listed = matrices_in(folder)
    expected = matrices_in(write(tmp_path / "one", tensors, config)).matrices["fc.weight"]()
    assert np.array_equal(listed.matrices["fc.weight"](), expected)
    index = folder / "model.safetensors.index.json"
    assert rmtspec.merge_checkpoint(index, tmp_path / "out") == ["fc.weight"]
    write(folder, {**scales, "more": torch.ones(3)}, name="b.safetensors")
    with pytest.raises(FileError, match=r"b\.safetensors was rewritten"):
        listed.check_unchanged()
    with pytest.raises(FileError, match=r"b\.safetensors was rewritten"):
        listed.tensors["fc.weight"].check_unchanged()
    with pytest.raises(FileError, match=r"b\.safetensors was rewritten"):
        listed.matrices["fc.weight"]()


@pytest.mark.parametrize("case", ["mxfp4", "fp8_stack"])
def test_of_a_stack_one_matrix_is_read(tmp_path, monkeypatch, case):
    tensors, config = reference(case)
    listed = matrices_in(write(tmp_path / "in", tensors, config))
    whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    read = []
    original = stored.read_bytes

    def noted(path, name, begin, nbytes):
        read.append(nbytes)
        return original(path, name, begin, nbytes)

    monkeypatch.setattr(stored, "read_bytes", noted)
    for matrix in listed.matrices.values():
        read.clear()
        matrix()
        assert sum(read) <= whole // len(next(iter(tensors.values())))
        read.clear()
        matrix.rounding()
        assert sum(read) <= whole // len(next(iter(tensors.values())))


def test_too_large_for_the_memory(tmp_path, monkeypatch):
    listed = matrices_in(write(tmp_path / "in", *reference("gptq_4_gptq")))
    monkeypatch.setattr("rmtspec.checkpoint.quantised.tensor.lacking", lambda needed: "none free")
    with pytest.raises(FileError, match=r"too large for the memory when it is dequantised: none"):
        listed.matrices["fc.weight"]()


def test_a_journal_of_another_scale_is_refused(tmp_path):
    tensors, config = reference("gptq_4_gptq")
    folder = write(tmp_path / "in", tensors, config)
    first = rmtspec.analyze_checkpoint(folder, journal=tmp_path / "j")
    again = rmtspec.analyze_checkpoint(folder, journal=tmp_path / "j")
    assert again.rows == first.rows
    tensors["fc.scales"] = 2 * tensors["fc.scales"]
    write(folder, tensors, config)
    with pytest.raises(FileError, match="another checkpoint"):
        rmtspec.analyze_checkpoint(folder, journal=tmp_path / "j")


# Reports and the command.


def quantised_noise(rows=200, columns=128, step=0.02, seed=0):
    """Return a planted matrix, and the tensors and config of it in 8 bits of one step."""
    W = rmtspec.ensembles.spiked(rows, columns, [9], rng=seed) / 40
    codes = np.rint(W / step).astype(np.int8)
    tensors = {
        "fc.weight": torch.tensor(codes), "fc.weight_scale": torch.full((rows, 1), step),
        "fc.bias": torch.randn(rows), "norm.weight": torch.ones(9),
    }  # fmt: skip
    group = {"weights": {"num_bits": 8, "strategy": "channel"}}
    options = {"quant_method": "compressed-tensors", "format": "int-quantized",
               "config_groups": {"a": group}}  # fmt: skip
    return W, codes, (tensors, {"dtype": "float32", "quantization_config": options})


def test_the_level_of_rounding(tmp_path):
    W, codes, content = quantised_noise()
    (row,) = rmtspec.analyze_checkpoint(write(tmp_path / "in", *content)).rows
    assert row["quantised"] == "compressed-tensors int8"
    assert row["rounding_variance"] == pytest.approx(0.02**2 / 12)
    error = W - 0.02 * codes
    # 25,600 errors, whose mean square has a relative spread of 0.6%
    assert row["rounding_variance"] == pytest.approx((error**2).mean(), rel=0.03)
    edge = np.linalg.svd(error, compute_uv=False)[0] ** 2 / 200
    assert row["rounding_edge"] == pytest.approx(edge, rel=0.1)  # Tracy-Widom, p = 128
    values = np.linalg.svd(0.02 * codes, compute_uv=False) ** 2 / 200
    assert row["n_below_rounding"] == (values <= row["rounding_edge"]).sum() > 0


def test_the_command(tmp_path):
    _, codes, content = quantised_noise()
    folder = write(tmp_path / "in", *content)
    (folder / "tokenizer.json").write_text("{}")
    assert run("analyze", folder, "--out", tmp_path / "r.json").exit_code == 0
    done = run("merge", folder, tmp_path / "out")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "1 matrix dequantised" in done.stdout
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json"
    ]  # fmt: skip
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == {"fc.weight", "fc.bias", "norm.weight"}
    assert np.array_equal(found["fc.weight"], np.float32(0.02) * codes)
    assert torch.equal(found["fc.bias"], content[0]["fc.bias"])
    refused = run("prune", folder, tmp_path / "no", "--dry-run")
    assert refused.exit_code == 1
    assert "1 quantised weight, the first of them 'fc.weight'" in refused.stderr
    assert "rmtspec merge IN OUT" in refused.stderr
    assert run("prune", tmp_path / "out", tmp_path / "small", "--rank", "fc=3").exit_code == 0
