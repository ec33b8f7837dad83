"""Calibration of a language model block by block: the same as with the whole model in memory."""

import types
from typing import NamedTuple

import numpy as np
import pytest
import torch
import transformers

from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch._calibration.options import CalibrationOptions
from rmtspec.adapters.torch._calibration.skeleton import NotInBlocksError, Skeleton
from rmtspec.adapters.torch._calibration.streaming import Streamed
from rmtspec.errors import FileError

SIDES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIDES, tie_word_embeddings=False),
    "tied": lambda: transformers.LlamaConfig(**SIDES, tie_word_embeddings=True),
    "sliding": lambda: transformers.Qwen2Config(
        **SIDES, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0,
        eos_token_id=1,
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=50, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1
    ),
}  # fmt: skip


class Lines:
    """A journal in memory, which can be cut off."""

    def __init__(self, entries=(), most=None):
        self.entries, self.added, self._most = list(entries), [], most

    def add(self, entry):
        self.added.append(dict(entry))
        if self._most is not None and len(self.added) >= self._most:
            raise KeyboardInterrupt


class Disk(NamedTuple):
    free: int


def saved(config, folder, dtype=torch.float32):
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def batches(count=6, length=24):
    generator = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(50, (1, length), generator=generator)} for _ in range(count)
    ]


def streamed(folder, place, journal=None, skeleton=None, **options):
    place.mkdir(exist_ok=True)
    asked = CalibrationOptions(**options)
    journal = Lines() if journal is None else journal
    work = types.SimpleNamespace(place=place, journal=journal, say=print)
    return Streamed(skeleton or Skeleton(folder), batches(), asked, work).run()


def assert_same(found, expected, exact=False):
    fields = (
        "objective",
        "gradient",
        "inputs",
        "losses",
        "without_gradient",
        "settings",
        "hidden_units",
    )
    for name in (*fields, "input_rows", "held_out_rows"):
        assert (
            dict(value) == dict(getattr(expected, name))
            if isinstance(value := getattr(found, name), dict)
            else value == getattr(expected, name)
        ), name
    assert list(found.transposed) == list(expected.transposed)
    for part in ("input_moments", "held_out", "output_weights"):
        ours, theirs = getattr(found, part), getattr(expected, part)
        assert set(ours) == set(theirs)
        for name in theirs:
            for one, other in zip(ours[name], theirs[name], strict=True):
                scale = 0.0 if exact else 1e-6 * np.abs(other).max()
                np.testing.assert_allclose(one, other, rtol=0, atol=scale, err_msg=name)


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_equals_the_calibration_in_memory(kind, tmp_path):
    model = saved(CONFIGS[kind](), tmp_path / "model")
    expected = rt.calibrate(model, batches(), gradient_tokens=50)
    found = streamed(tmp_path / "model", tmp_path / "work", gradient_tokens=50)
    assert found.losses == 72
    assert len(found.hidden_units) == len(Skeleton(tmp_path / "model").blocks)
    assert_same(found, expected)


def test_in_bfloat16_and_with_whole_output_moments(tmp_path):
    model = saved(CONFIGS["llama"](), tmp_path / "model", torch.bfloat16)
    options = {"output_moment": "full", "clip": 1.5, "holdout": 0.0, "rng": 3}
    expected = rt.calibrate(model, batches(), **options)
    assert_same(streamed(tmp_path / "model", tmp_path / "work", **options), expected)


def test_by_outputs_it_goes_forwards_only(tmp_path):
    model = saved(CONFIGS["llama"](), tmp_path / "model")
    journal = Lines()
    found = streamed(tmp_path / "model", tmp_path / "work", journal, objective="outputs")
    assert_same(found, rt.calibrate(model, batches(), objective="outputs"))
    assert not any("backward" in entry for entry in journal.added)


def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(tmp_path):
    saved(CONFIGS["llama"](), tmp_path / "model")
    skeleton = Skeleton(tmp_path / "model")
    expected = streamed(None, tmp_path / "once", skeleton=skeleton)
    entries = []
    for _ in range(8):  # begun, 3 forwards, the head, 3 backwards
        journal = Lines(entries, most=1)
        with pytest.raises(KeyboardInterrupt):
            streamed(None, tmp_path / "often", journal, skeleton)
        entries += journal.added
    journal = Lines(entries, most=1)
    assert_same(streamed(None, tmp_path / "often", journal, skeleton), expected, exact=True)
    assert journal.added == []
    assert [next(iter(entry)) for entry in entries] == [
        "begun", *["forward"] * 3, "head", *["backward"] * 3
    ]  # fmt: skip


def test_only_one_block_has_weights_at_a_time(tmp_path):
    saved(CONFIGS["llama"](), tmp_path / "model")
    skeleton = Skeleton(tmp_path / "model")
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    with skeleton.loaded("model.layers.1") as block:
        assert not any(parameter.is_meta for parameter in block.parameters())
        real = [name for name, p in skeleton.model.named_parameters() if not p.is_meta]
        assert all(name.startswith("model.layers.1.") for name in real)
    hidden, calls = skeleton.calls(batches()[0])
    assert hidden.shape == (1, 24, 32)
    assert len(calls) == 3
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_the_files_between_blocks_are_bounded(tmp_path):
    saved(CONFIGS["llama"](), tmp_path / "model")
    streamed(tmp_path / "model", tmp_path / "work", gradient_tokens=50)
    left = {file.name: file.stat().st_size for file in (tmp_path / "work").iterdir()}
    moved = {name: size for name, size in left.items() if not name.endswith(".safetensors")}
    each = 24 * 32 * 4
    assert moved == {
        "states-0": 6 * each, "states-1": 6 * each, "slopes-0": 3 * each, "slopes-1": 3 * each
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda: transformers.LlamaConfig(**SIDES | {"num_hidden_layers": 1}), "no list of two"),
        (
            lambda: transformers.OPTConfig(
                vocab_size=50, hidden_size=32, num_hidden_layers=2, ffn_dim=48,
                num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=16,
            ),
            "project_out' is in none of its blocks",
        ),
        (lambda: transformers.MixtralConfig(**SIDES, num_local_experts=2), "its files lack"),
    ],
    ids=["one block", "layers outside", "renamed"],
)  # fmt: skip
def test_which_models_cannot_be_run_block_by_block(config, words, tmp_path):
    saved(config(), tmp_path)
    with pytest.raises(NotInBlocksError, match=words):
        Skeleton(tmp_path)


def test_what_blocks_are_passed_must_not_depend_on_them(tmp_path):
    saved(CONFIGS["llama"](), tmp_path / "model")
    skeleton = Skeleton(tmp_path / "model")
    batch = {**batches()[0], "use_cache": True}
    with pytest.raises(NotInBlocksError, match="passed a DynamicCache"):
        skeleton.calls(batch)
    assert all("forward" not in block.__dict__ for block in skeleton.blocks.values())


def test_what_happens_between_blocks_is_not_missed(tmp_path):
    saved(CONFIGS["llama"](), tmp_path / "model")
    skeleton = Skeleton(tmp_path / "model")
    skeleton.blocks["model.layers.1"].register_forward_hook(lambda block, args, out: out + 1)
    with pytest.raises(NotInBlocksError, match="more between its blocks"):
        skeleton.calls(batches()[0])


def test_what_depends_on_the_text_is_not_taken_for_constant(tmp_path):
    saved(CONFIGS["llama"](), tmp_path / "model")
    skeleton = Skeleton(tmp_path / "model")
    skeleton.model.model.rotary_emb.register_forward_hook(
        lambda layer, args, out: (out[0] + args[0].mean(), out[1])
    )
    journal = Lines()
    with pytest.raises(NotInBlocksError, match="depends on the text"):
        streamed(None, tmp_path / "work", journal, skeleton)
    assert journal.added == []


def test_a_full_disk_is_noticed_first(tmp_path, monkeypatch):
    saved(CONFIGS["llama"](), tmp_path / "model")
    monkeypatch.setattr("rmtspec._files.writing.shutil.disk_usage", lambda path: Disk(1000))
    with pytest.raises(FileError, match="it needs 82,944 bytes, and 1,000 are free"):
        streamed(tmp_path / "model", tmp_path / "work", gradient_tokens=50)
