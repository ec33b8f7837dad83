"""`rmtspec prune FOLDER OUT --calibration TEXT`: a language model cut by what its loss loses."""

import json
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import transformers
from click.testing import CliRunner

from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch._calibration.folder import calibrate_folder
from rmtspec.adapters.torch._calibration.streaming import Streamed
from rmtspec.cli import main
from rmtspec.errors import FileError, InvalidValueError

WORDS = ["the", "sea", "was", "calm", "and", "a", "ship", "lay", "at", "anchor", "near", "its"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    place = tmp_path_factory.mktemp("llama")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="its"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(place)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "sea.txt"
    chosen = random.Random(0).choices(WORDS, k=6000)
    file.write_text(" ".join(chosen), "utf-8")
    return file


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_command_does_what_python_does(folder, text, tmp_path):
    result = run(
        "prune", folder, tmp_path / "small", "--calibration", text, "--budget", "0.6",
        "--sequences", "6", "--include", "layers", "--report", tmp_path / "report.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    stats = calibrate_folder(folder, text, sequences=6)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    expected, report = rt.prune(model, calibration=stats, budget=0.6, include="layers")
    loaded = rt.load(transformers.AutoModelForCausalLM.from_pretrained(folder), tmp_path / "small")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, expected(ids).logits, rtol=1e-3, atol=1e-4)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    ranks = {row["name"].removesuffix(".weight"): row["rank"] for row in rows}
    assert {row["name"]: row["rank"] for row in report.rows if row["name"] in ranks} == ranks
    merged = run("merge", tmp_path / "small", tmp_path / "dense")
    assert merged.exit_code == 0, merged.output
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    with torch.no_grad():
        torch.testing.assert_close(dense(ids).logits, expected(ids).logits, rtol=1e-3, atol=1e-4)


def test_a_saved_calibration_serves_too(folder, text, tmp_path):
    calibrate_folder(folder, text, sequences=6).save(tmp_path / "stats.safetensors")
    for source in (text, tmp_path / "stats.safetensors"):
        result = run(
            "prune", folder, "--dry-run", "--calibration", source, "--budget", "0.6",
            "--sequences", 6, "--rank-multiple", 4, "--report", tmp_path / "plan.json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
        ranks = [row["rank"] for row in rows if row["action"] == "split"]
        assert ranks
        assert all(rank % 4 == 0 for rank in ranks)


def test_sequences_are_spread_over_the_text(folder, text):
    stats = calibrate_folder(folder, text, sequences=3, length=100, holdout=0)
    assert set(stats.input_rows.values()) == {300}
    few = calibrate_folder(folder, text, sequences=1000, length=1000, holdout=0)
    assert set(few.input_rows.values()) == {6000}


def test_what_the_command_cannot_use(folder, text, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("the sea was calm", "utf-8")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    weights = next(folder.glob("*.safetensors"))
    for arguments, words, status in (
        ((folder, tmp_path / "x", "--calibration", short), "has 4 tokens; expected at least", 1),
        ((folder, tmp_path / "x", "--calibration", tmp_path / "no.txt"), "cannot be read", 1),
        ((folder, tmp_path / "x", "--calibration", tmp_path / "binary.txt"), "no text in UTF-8", 1),
        ((weights, tmp_path / "x", "--calibration", text), "expected the folder of the model", 2),
        ((folder, tmp_path / "x", "--calibration", weights), "holds no calibration", 1),
        ((folder, tmp_path / "x", "--objective", "loss"), "without --calibration", 2),
        ((folder, tmp_path / "x", "--rank-multiple", "many"), "auto, or a whole number from 1", 2),
        ((tmp_path, tmp_path / "x", "--calibration", text), "without weight files", 1),
    ):
        result = run("prune", *arguments, "--budget", "0.6")
        assert words in result.output, result.output
        assert result.exit_code == status, result.output
        assert not (tmp_path / "x").exists()


def test_what_python_is_told(folder, text, tmp_path):
    with pytest.raises(FileError, match="is no language model that transformers can load"):
        calibrate_folder(tmp_path, text)
    with pytest.raises(InvalidValueError, match="`length` is 1"):
        calibrate_folder(folder, text, length=1)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def hidden(folder):
    return sorted(file.name for file in folder.iterdir() if file.name.startswith("."))


def stopping(function, after):
    """Return a function that is interrupted when it is called once more than `after` times."""
    calls = []

    def stopped(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return stopped


def test_an_interrupted_command_goes_on_with_the_next_block(folder, text, tmp_path, monkeypatch):
    words = ["--calibration", text, "--budget", "0.6", "--sequences", "4"]
    once = run("prune", folder, tmp_path / "once", *words)
    assert once.exit_code == 0
    assert "Calibrating block by block: one of 2 is in memory at a time." in once.stderr
    for step, after in (("_forward", 1), ("_backward", 1)):
        with monkeypatch.context() as patched:
            patched.setattr(Streamed, step, stopping(getattr(Streamed, step), after))
            stopped = run("prune", folder, tmp_path / "often", *words)
        assert stopped.exit_code != 0
        assert "the same command goes on with it" in stopped.stderr
        assert hidden(tmp_path) == [".often.rmtspec-calibration"]
    other = tmp_path / "other.txt"
    other.write_text(text.read_text("utf-8") + " sea", "utf-8")
    refused = run("prune", folder, tmp_path / "often", "--calibration", other, *words[2:])
    assert refused.exit_code == 1
    assert "is the journal of other options (text was" in refused.stderr
    done = run("prune", folder, tmp_path / "often", *words)
    assert done.exit_code == 0, done.output
    assert contents(tmp_path / "often") == contents(tmp_path / "once")
    assert hidden(tmp_path) == []


KILLED = """
import os, signal, sys
from rmtspec.adapters.torch._calibration.streaming import Streamed
from rmtspec.cli import main
added = []
def note(self, runs):
    added.append(runs)
    if len(added) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
Streamed._count = note
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_next_block(folder, text, tmp_path):
    words = ["--calibration", text, "--budget", "0.6", "--sequences", "4"]
    assert run("prune", folder, tmp_path / "once", *words).exit_code == 0
    for kill in (1, 2, 4):  # between the moments of a block and the line that says so
        arguments = [str(word) for word in ("prune", folder, tmp_path / "often", *words)]
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(kill), *arguments], capture_output=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert run("prune", folder, tmp_path / "often", *words).exit_code == 0
    assert contents(tmp_path / "often") == contents(tmp_path / "once")
    assert hidden(tmp_path) == []


def test_an_interrupted_pruning_does_not_calibrate_again(folder, text, tmp_path, monkeypatch):
    words = ["--calibration", text, "--budget", "0.6", "--sequences", "4"]
    with monkeypatch.context() as patched:
        patched.setattr("rmtspec.runs.prune.make_plan", stopping(None, 0))
        assert run("prune", folder, tmp_path / "small", *words).exit_code != 0
    assert ".small.rmtspec-calibration" in hidden(tmp_path)
    monkeypatch.setattr("rmtspec.adapters.torch._calibration.streaming.Pass", stopping(None, 0))
    assert run("prune", folder, tmp_path / "small", *words).exit_code == 0
    assert hidden(tmp_path) == []


def test_other_models_are_calibrated_as_a_whole(folder, text, tmp_path):
    place = tmp_path / "single"
    shutil.copytree(folder, place)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 1
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    words = ["--calibration", text, "--budget", "0.6", "--sequences", "4"]
    done = run("prune", place, tmp_path / "small", *words)
    assert done.exit_code == 0, done.output
    said = "The whole model is in memory while it is calibrated: it has no list of two blocks"
    assert said in done.stderr
    assert hidden(tmp_path) == []


def test_errors_leave_nothing_that_cannot_be_used(folder, text, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("the sea was calm", "utf-8")
    assert run("prune", folder, tmp_path / "x", "--calibration", short).exit_code == 1
    assert hidden(tmp_path) == []
    none = ["--include", "nothing", "--budget", "0.6", "--sequences", "4"]
    failed = run("prune", folder, tmp_path / "x", "--calibration", text, *none)
    assert failed.exit_code == 1
    assert hidden(tmp_path) == [".x.rmtspec-calibration"]
    again = ["--budget", "0.6", "--sequences", "4"]
    assert run("prune", folder, tmp_path / "x", "--calibration", text, *again).exit_code == 0
    assert hidden(tmp_path) == []


def test_layers_that_files_hold_transposed_are_refused_at_once(folder, text, tmp_path, monkeypatch):
    place = tmp_path / "gpt2"
    shutil.copytree(folder, place)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(place)
    monkeypatch.setattr(Streamed, "run", stopping(None, 0))
    done = run("prune", place, tmp_path / "x", "--calibration", text, "--budget", "0.6")
    assert done.exit_code == 1
    assert "transposed (transformers' Conv1D)" in done.stderr
    assert hidden(tmp_path) == []
