"""The command line: output, exit status, and nothing harmed when it fails."""

import csv
import errno
import inspect
import json
import pickle
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import naive
import numpy as np
import pytest
from checkpoints import planted, write_safetensors
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import rmtspec
from rmtspec import cli, ensembles
from rmtspec import reproduce as reproduce_module
from rmtspec.cli import commands, progress
from rmtspec.errors import InvalidValueError
from rmtspec.matrix import rank as _rank
from rmtspec.planning import options as _plan_options
from rmtspec.runs import prune as _prune_checkpoint

NOISE = ensembles.wishart(80, 50, rng=1)
PLANTED = ensembles.spiked(120, 90, [5, 20], rng=0)


def run(*args, catch=False):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], catch_exceptions=catch)


@pytest.fixture
def weights(tmp_path):
    bad = NOISE.copy()
    bad[0, 0] = np.nan
    path = tmp_path / "weights.npz"
    np.savez(path, planted=PLANTED, noise=NOISE, broken=bad, bias=np.ones(7))
    return path


def test_analyze_prints_a_table(weights):
    done = run("analyze", weights)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    row = next(line for line in lines if "planted" in line).split()
    assert row[:9] == ["planted", "120", "x", "90", "2", "yes", "noise-like", "bulk", "2"]
    assert any(line.startswith("2 analysed, 2 skipped; ") for line in lines)
    assert "skipped 1 (bias): 1 dimension: a vector has no spectrum" in lines
    assert any(line.startswith("skipped 1 (broken): ") and "nan" in line for line in lines)
    assert done.stderr == ""


def test_analyze_says_which_counts_are_not_safe_in_the_words_of_the_command(tmp_path):
    np.save(tmp_path / "heavy.npy", np.random.default_rng(0).standard_t(3, (120, 90)))
    words = "1 count of spikes is not safe (see the verdict): count with --noise auto"
    assert words in run("analyze", tmp_path / "heavy.npy").stdout.splitlines()
    assert "not safe" not in run("analyze", tmp_path / "heavy.npy", "--noise", "auto").stdout


def test_analyze_by_estimate(tmp_path, monkeypatch):
    for place in ("report.estimated", "runs.costs"):
        monkeypatch.setattr(f"rmtspec.{place}.FROM", 256)
    file, journal = tmp_path / "m.safetensors", tmp_path / "j"
    write_safetensors(file, {"large": planted(400, 300), "small": planted(90, 60)})
    lines = run("analyze", file, "--method", "stochastic", "--resume", journal).stdout.splitlines()
    row = next(line for line in lines if "large" in line).split()
    assert row[4].startswith("~")
    assert row[5:10] == ["-", "cannot", "tell:", "an", "estimate"]
    assert "1 spectrum is an estimate (~), with errors stated and nothing tested" in lines
    again = run("analyze", file, "--method", "stochastic", "--resume", journal)
    assert again.stdout.splitlines() == lines
    refused = run("analyze", file, "--method", "stochastic", "--metrics")
    assert refused.exit_code == 2
    assert "Leave out --metrics, or --method." in refused.stderr
    cost = run("analyze", file, "--method", "stochastic", "--dry-run").stdout
    assert f"{4 * 400 * 300 * 16 * 72:.2g}" in cost


def test_memory_that_lacks_names_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr("rmtspec.report.estimated.FROM", 256)
    monkeypatch.setattr("rmtspec.report.many.lacking", lambda needed: "much is needed")
    write_safetensors(tmp_path / "m.safetensors", {"large": planted(400, 300)})
    done = run("analyze", tmp_path / "m.safetensors")
    assert done.exit_code == 1
    assert "an estimate, by --method stochastic, takes" in done.stdout + done.stderr


def test_table_is_whole_when_piped(tmp_path):
    name = "transformer.encoder.layers.11.[bold]attention.output.dense.weight" * 3
    np.savez(tmp_path / "w.npz", **{name: NOISE})
    done = subprocess.run(
        [sys.executable, "-m", "rmtspec.cli", "analyze", str(tmp_path / "w.npz")],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if name in line)
    assert "80 x 50" in line
    assert "no signal found" in line
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("suffix", ["json", "csv", "html"])
def test_out_holds_the_report(weights, tmp_path, suffix):
    out = tmp_path / f"r.{suffix}"
    done = run("analyze", weights, "--out", out)
    assert done.exit_code == 0
    assert f"Report written to {out}" in done.stdout
    content = out.read_text("utf-8")
    if suffix == "json":
        found = json.loads(content, parse_constant=pytest.fail)
        assert [row["name"] for row in found["rows"]] == ["planted", "noise"]
        assert {entry["name"] for entry in found["skipped"]} == {"broken", "bias"}
    elif suffix == "csv":
        assert [row["name"] for row in csv.DictReader(content.splitlines())] == ["planted", "noise"]
    else:
        assert "planted" in content


def test_options_reach_the_analysis(weights, tmp_path):
    out = tmp_path / "r.json"
    text = (
        "--jobs 2 --alpha .25 --beta .01 --bulk-keep .45 --quantiles paper --no-refine "
        "--fit-cutoff .1 --level .01"
    )
    done = run("analyze", weights, "--out", out, *text.split(), "--include", "n", "--exclude", "^b")
    assert done.exit_code == 0
    found = json.loads(out.read_text())
    expected = {
        "alpha": 0.25,
        "beta": 0.01,
        "bulk_keep": 0.45,
        "quantiles": "paper",
        "refine": False,
        "cutoff": 0.1,
        "level": 0.01,
    }
    assert expected.items() <= found["settings"].items()
    assert [row["name"] for row in found["rows"]] == ["planted", "noise"]
    assert {"name": "broken", "reason": "in `exclude`"} in found["skipped"]


def test_analyze_by_another_rule(weights, tmp_path):
    out = tmp_path / "r.json"
    assert (
        run("analyze", weights, "--out", out, "--rule", "fraction", "--keep", ".2").exit_code == 0
    )
    found = json.loads(out.read_text())
    assert [(row["rank"], row["rule"], row["keep"]) for row in found["rows"]] == [
        (18, "fraction", 0.2),
        (10, "fraction", 0.2),
    ]
    for words, message in (
        ("--rule energy", "--keep is not given"),
        (
            "--rule energy --keep .9 --bulk-keep .45",
            "--bulk-keep belongs to the rules 'bema' and 'noise'",
        ),
        ("--keep .9", "--keep belongs to the rules 'energy' and 'fraction'"),
    ):
        done = run("analyze", weights, *words.split())
        assert (done.exit_code, message in done.stderr) == (2, True)


def test_include_keeps_only_what_it_finds(weights):
    done = run("analyze", weights, "--include", "pla")
    assert "1 analysed, 3 skipped" in done.stdout
    assert "skipped 2 (noise, broken): not in --include" in done.stdout
    done = run("analyze", weights, "--include", "nowhere")
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        f"Error: Nothing in {weights} could be analysed.",
        "  skipped 1 (bias): 1 dimension: a vector has no spectrum",
        "  skipped 3 (planted, noise, broken): not in --include",
        "  no name matches include='nowhere'",
    ]
    assert run("analyze", weights, "--include", "nowhere", "--dry-run").stderr == done.stderr


def test_defaults_are_those_of_the_library():
    defaults = inspect.signature(rmtspec.analyze).parameters
    for option in commands.analyze.params:
        if option.name in ("alpha", "beta", "bulk_keep", "quantiles", "level"):
            assert option.default == defaults[option.name].default
    for command in (commands.analyze, commands.prune):
        rule = next(option for option in command.params if option.name == "rule")
        assert tuple(rule.type.choices) == _rank.RULES
    assert commands._FIGURES == reproduce_module.FIGURES


class Bomb:
    """Says so when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def unreadable(tmp_path):
    """Every input that cannot be used, with what the message says."""
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "folder.npy" / "readme.txt").write_text("x")
    np.save(tmp_path / "whole.npy", NOISE)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-100])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "cut.safetensors").write_bytes((99).to_bytes(8, "little") + b"{")
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps([1]))
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    (tmp_path / "m.pt").write_bytes(b"x")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "m.txt").write_bytes(b"x")
    np.savez(tmp_path / "vectors.npz", a=np.ones(3), b=np.ones(4))
    np.save(tmp_path / "nan.npy", np.full((20, 20), np.nan))
    np.savez(tmp_path / "empty.npz")
    pickled = {
        "m.pt": "save model.state_dict() with safetensors.torch.save_file",
        "code.pt": "without running code that is pickled in it, which is never done",
    }
    if find_spec("torch") is None:  # then all that is said is to install it
        pickled = {}
    return {
        "missing.npy": "does not exist",
        "folder.npy": "is a folder without weight files",
        "cut.npy": "truncated",
        "text.npz": "is not an .npz file",
        "cut.safetensors": "truncated",
        "pickled.npy": "pickled",
        "objects.npy": "pickled",
        **pickled,
        "m.txt": "suffix '.txt'",
        "vectors.npz": "skipped 2 (a, b): 1 dimension",
        "nan.npy": "skipped 1 (nan): ",
        "empty.npz": "holds no tensors",
    }


def test_inputs_that_cannot_be_used_exit_1_and_leave_out_alone(tmp_path):
    out = tmp_path / "r.json"
    out.write_bytes(b"old")
    cases = unreadable(tmp_path)
    before = sorted(tmp_path.iterdir())
    for name, message in cases.items():
        done = run("analyze", tmp_path / name, "--out", out, "--force")
        assert (name, done.exit_code) == (name, 1)
        assert done.stderr.startswith("Error: ")
        assert message in done.stderr
        assert name in done.stderr
        assert "Traceback" not in done.output
        assert done.stdout == ""
        assert out.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--unknown 3", "No such option"),
        ("--out r.txt", "suffix '.txt'"),
        ("--out missing/r.json", "does not exist"),
        ("--out file/r.json", "cannot be written"),
        ("--out folder.json", "is a folder"),
        ("--out r.json --resume ./r.json", "--out and --resume are both r.json"),
    ],
)
def test_wrong_usage_exits_2_before_any_work(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.json").mkdir()
    before = sorted(tmp_path.iterdir())
    done = run("analyze", "not-looked-at.npy", *options.split())
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert sorted(tmp_path.iterdir()) == before


def test_out_that_stops_being_writable(weights, tmp_path, monkeypatch):
    from rmtspec._files import writing

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    done = run("analyze", weights, "--out", tmp_path / "r.csv")
    assert done.exit_code == 1
    assert "no space left on device" in done.stderr
    assert list(tmp_path.iterdir()) == [weights]


def test_interrupt_is_clean(weights, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rmtspec.report.many.outcome_of", stop)
    done = run("analyze", weights, "--out", tmp_path / "r.csv")
    assert done.exit_code == 130
    assert "With --resume FILE a scan can be resumed." in done.stderr
    assert "Interrupted." in done.stderr
    assert list(tmp_path.iterdir()) == [weights]
    done = run("analyze", weights, "--resume", tmp_path / "j")
    assert done.exit_code == 130
    assert f"The results so far are in {tmp_path / 'j'}: the same command resumes" in done.stderr
    monkeypatch.undo()
    done = run("analyze", weights, "--resume", tmp_path / "j")
    assert (done.exit_code, done.stderr) == (0, "")


def test_progress_bar_only_for_people(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress_bar() as step:
        step(1, 2, "a")
        step(2, None, "b")


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    clock = iter(np.arange(0.0, 1e6, 0.3))  # two looks at it for each matrix
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    names = [str(number) for number in range(100)]
    work = dict.fromkeys(names, 10**9) | {"0": 101 * 10**9}
    with progress.progress_bar(work, ("analysing", "writing")) as step:
        for done, name in enumerate(names, 1):
            step(done, 100, name)
        for done in range(1, 101):
            step(done, 100, "x")
    first, *_, last = lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # of 120 s: the first half minute has none
    pattern = r"{}: (\d+) of 100 matrices,{} about (\d+) s left \((\d+)%\)"
    done, left, share = map(
        int, re.fullmatch(pattern.format("analysing", " 2 Gflop/s,"), first).groups()
    )
    assert abs(share - (100 + done) / 2) <= 0.5  # by the work, not the number
    assert abs(left - 0.6 * (100 - done)) <= 1
    done, left, share = map(int, re.fullmatch(pattern.format("writing", ""), last).groups())
    assert share == done
    assert abs(left - 0.6 * (100 - done)) <= 1


def test_control_characters_in_names_are_spelled_out(tmp_path):
    np.savez(tmp_path / "w.npz", **{"evil\x1b[2J": NOISE, "bad\x1b[1m": np.ones(3)})
    done = run("analyze", tmp_path / "w.npz")
    assert "\x1b" not in done.output
    assert "evil\\x1b[2J" in done.stdout


def test_help_and_version():
    assert run("--version").stdout == f"rmtspec, version {rmtspec.__version__}\n"
    for words in (
        ["--help"],
        ["analyze", "--help"],
        ["prune", "-h"],
        ["merge", "--help"],
        ["reproduce", "--help"],
        ["demo", "-h"],
    ):
        assert "Usage:" in run(*words).stdout
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom rmtspec.cli import main\n"
        "CliRunner().invoke(main, ['--help'])\n"
        "print([m for m in ('numpy', 'rich', 'numba', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = {"fc.weight": PLANTED, "fc.bias": np.ones(120), "head.weight": NOISE}
    save_file({name: array.astype("float32") for name, array in tensors.items()}, path)
    return path


def test_prune_writes_the_factors_and_shows_the_plan(model, tmp_path):
    out, report = tmp_path / "out", tmp_path / "r.json"
    done = run("prune", model, out, "--bulk-keep", 0, "--report", report)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    row = next(line for line in lines if "fc.weight" in line).split()
    words = "fc.weight 120 x 90 2 yes 2 noise-like bulk 2 3.9% split"
    assert " ".join(row[:-1]) == words
    assert 0 < float(row[-1]) < 1
    assert "no signal found" in next(line for line in lines if "head.weight" in line)
    sizes = "4,540 of the model's 14,920 parameters kept (30.4%)"
    assert f"2 analysed, 1 skipped; {sizes}" in lines
    assert "59,680 bytes of tensors become 18,160 (30.4%)" in lines
    assert lines[-1] == f"Written to {out}"
    assert sorted(load_file(out / "rmtspec.safetensors")) == [
        "fc.inner.weight",
        "fc.outer.bias",
        "fc.outer.weight",
        "head.weight",
    ]
    found = json.loads(report.read_text(), parse_constant=pytest.fail)
    assert [row["action"] for row in found["rows"]] == ["split", "keep"]


def test_prune_dry_run_then_plan(model, tmp_path):
    plan = tmp_path / "plan.json"
    done = run("prune", model, "--dry-run", "--report", plan)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "Nothing written (--dry-run)"
    content = json.loads(plan.read_text())
    next(row for row in content["rows"] if row["name"] == "fc.weight")["rank"] = 4
    plan.write_text(json.dumps(content))
    done = run("prune", model, tmp_path / "out", "--plan", plan, "--as", "dense")
    assert done.exit_code == 0
    kept = load_file(tmp_path / "out" / "model.safetensors")["fc.weight"]
    assert np.linalg.matrix_rank(kept, tol=1e-4) == 4


def test_prune_options_reach_the_work(model, tmp_path, monkeypatch):
    seen = {}

    def note(path, out, **given):
        seen.update(given, path=path, out=out)
        raise InvalidValueError("enough")

    monkeypatch.setattr(_prune_checkpoint, "prune_checkpoint", note)
    text = (
        "--as dense --bulk-keep .3 --gate .1 --include a --exclude b --min-saving .2 --rng 3 "
        "--rank a.b=3 --rank c==4 --dry-run --jobs 2 --threads 1 --alpha .25 --beta .5 --noise mp"
    )
    done = run("prune", model, tmp_path / "out", *text.split())
    assert (done.exit_code, done.stderr) == (1, "Error: enough\n")
    expected = {
        "mode": "truncate",
        "bulk_keep": 0.3,
        "gate": 0.1,
        "noise": "mp",
        "rng": 3,
        "include": "a",
        "exclude": "b",
        "min_saving": 0.2,
        "ranks": {"a.b": 3, "c=": 4},
        "dry_run": True,
        "n_jobs": 2,
        "alpha": 0.25,
        "beta": 0.5,
        "threads": 1,
        "report": None,
        "out": tmp_path / "out",
    }
    assert callable(seen.pop("progress"))
    assert list(seen.pop("path").matrices) == ["fc.weight", "head.weight"]
    assert seen == expected
    for words, gate in (("none", None), ("noise", "noise")):
        seen.clear()
        run("prune", model, tmp_path / "out", "--gate", words)
        assert seen["gate"] == gate
    seen.clear()
    run("prune", model, tmp_path / "out", "--fit-cutoff", ".2")
    assert (seen["fit_cutoff"], "gate" in seen) == (0.2, False)
    seen.clear()
    run("prune", model, tmp_path / "out", "--budget", ".4")
    assert (seen["budget"], "bulk_keep" in seen, seen["dry_run"]) == (0.4, False, False)
    seen.clear()
    run("prune", model, tmp_path / "out", "--rule", "energy", "--keep", ".9")
    assert (seen["rule"], seen["keep"], "bulk_keep" in seen) == ("energy", 0.9, False)


def test_prune_by_energy(model, tmp_path):
    plan = tmp_path / "plan.json"
    words = ("--rule", "energy", "--keep", "0.9", "--report", plan)
    done = run("prune", model, tmp_path / "out", *words)
    assert done.exit_code == 0
    written = load_file(tmp_path / "out" / "rmtspec.safetensors")
    squares = np.linalg.svd(load_file(model)["fc.weight"], compute_uv=False) ** 2
    rank = naive.energy_rank(squares, 0.9)
    assert written["fc.inner.weight"].shape[0] == rank
    row = json.loads(plan.read_text())["rows"][0]
    assert (row["name"], row["rule"], row["keep"], row["rank"]) == (
        "fc.weight",
        "energy",
        0.9,
        rank,
    )


def test_prune_defaults_are_those_it_shows():
    options = [option for option in commands.prune.params if isinstance(option, click.Option)]
    shown = {option.name: option.show_default for option in options}
    assert float(shown["bulk_keep"]) == _plan_options.BULK_KEEP
    defaults = inspect.signature(rmtspec.analyze).parameters
    assert all(float(shown[name]) == defaults[name].default for name in ("alpha", "beta"))
    mode = next(option for option in options if option.name == "mode")
    assert tuple(mode.type.choices) == tuple(_prune_checkpoint.FORMS.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("m.safetensors", "Missing argument 'OUT'"),
        ("m.safetensors full", "full is not empty"),
        ("m.safetensors m.safetensors", "is a file"),
        ("m.safetensors a/b", "does not exist"),
        ("m.safetensors new --budget .5 --bulk-keep .1", "are both given"),
        ("m.safetensors new --budget .5 --keep .9", "--budget and --keep are both given"),
        ("m.safetensors new --rule energy", "--rule is 'energy' and --keep is not given"),
        (
            "m.safetensors new --rule energy --keep .9 --bulk-keep 0",
            "belongs to the rules 'bema' and 'noise'",
        ),
        ("m.safetensors new --keep .9", "--keep is 0.9 and --rule 'noise'"),
        ("m.safetensors new --plan plan.json --rule energy --keep .9", "are both given"),
        (
            "m.safetensors new --budget .5 --as dense",
            "--as dense saves none; expected --as factors. Truncate with --rule, --bulk-keep or",
        ),
        ("m.safetensors new --plan plan.json --rank a=3", "are both given"),
        ("m.safetensors new --rank a=1 --rank a=2", "'a' has two ranks"),
        ("m.safetensors new --report r.txt", "suffix '.txt'"),
        ("m.safetensors new --report a/r.csv", "does not exist"),
    ],
)
def test_prune_wrong_usage_exits_2_before_any_work(model, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        _prune_checkpoint, "prune_checkpoint", lambda *_, **__: pytest.fail("it worked")
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    rmtspec.analyze_many({"a": NOISE}).to_json("plan.json")
    before = sorted(tmp_path.rglob("*"))
    done = run("prune", *words.split())
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert sorted(tmp_path.rglob("*")) == before


def test_prune_inputs_that_cannot_be_used_exit_1(model, tmp_path):
    for name, message in unreadable(tmp_path).items():
        if name not in ("vectors.npz", "nan.npy", "empty.npz"):
            done = run("prune", tmp_path / name, tmp_path / "out")
            assert (name, done.exit_code) == (name, 1)
            assert message in done.stderr
    before = sorted(tmp_path.iterdir())
    cases = {
        "--exclude .": "in --exclude: 2 (fc.weight, head.weight)",
        "--plan missing.json": "missing.json cannot be read",
    }
    for words, message in cases.items():
        done = run("prune", model, tmp_path / "out", *words.split())
        assert (words, done.exit_code) == (words, 1)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before
    assert not (tmp_path / "out").exists()


def test_reproduce_writes_and_names_its_files(tmp_path):
    done = run("reproduce", "fig-3b", "--n", 50, "--out", tmp_path / "new", "--seed", 3)
    assert done.exit_code == 0
    files = [tmp_path / "new" / f"fig-3b.{end}" for end in ("png", "svg", "json")]
    assert done.stdout.splitlines() == [str(file) for file in files]
    assert json.loads(files[2].read_text())["seeds"] == [3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fig-9", "'fig-9' is not one of"),
        ("fig-2 --n 50 --out a/b", "does not exist"),
    ],
)
def test_reproduce_wrong_usage(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    done = run("reproduce", *words.split())
    assert done.exit_code == 2
    assert message in done.stderr


def test_entry_point_is_a_click_group():
    assert isinstance(cli.main, click.Group)
    assert sorted(cli.main.commands) == [
        "analyze", "compare", "completion", "demo", "extract-lora", "merge", "prune",
        "reproduce", "resize-lora",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["mlp-784-1000-10-mnist", "resnet20-cifar10"])
def test_trained_models(data_folder, tmp_path, name):
    out = tmp_path / "r.json"
    done = run("analyze", data_folder / "models" / f"{name}.safetensors", "--out", out)
    assert done.exit_code == 0
    found = json.loads(out.read_text(), parse_constant=pytest.fail)
    rows = {row["name"]: row for row in found["rows"]}
    if name.startswith("mlp"):
        assert rows["0.weight"]["accepted"]
        assert (rows["0.weight"]["rows"], rows["0.weight"]["columns"]) == (1000, 784)
    else:
        assert rows["layer3.2.conv2.weight"]["kind"] == "conv"
        assert rows["layer3.2.conv2.weight"]["columns"] == 576


def test_the_docs_name_the_options_that_exist():
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    commands = cli.main.commands.values()
    known = {name for command in commands for p in command.params for name in p.opts}
    known = {name for name in known if name.startswith("--")}
    assert set(re.findall(r"--[a-z][a-z-]*", page)) - {"--help"} == known


def test_an_output_that_cannot_be_written(weights, monkeypatch):
    def full(report):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(commands, "show", full)
    done = run("analyze", weights)
    assert done.exit_code == 1
    assert done.stderr == "Error: the output cannot be written: No space left on device.\n"
