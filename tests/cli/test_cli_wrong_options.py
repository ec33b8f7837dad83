"""Every option of every command with every wrong value: exit status 2, in the command's words."""

import re
import subprocess
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import rmtspec
from rmtspec import cli, ensembles

SHARES = ["-0.1", "1.5", "nan", "inf", "x"]
INSIDE = [*SHARES, "0", "1"]
PATTERNS = ["(", "[", "*"]
WHOLE = ["0", "1.5", "x"]
REPORTS = ["r.txt", "missing/r.json", "file/r.json", "folder.json", "notes.json"]
SAME = {
    "--jobs": WHOLE,
    "--threads": [*WHOLE, "-1"],
    "--alpha": [*INSIDE, "0.5"],
    "--beta": INSIDE,
    "--rule": ["magic", "energy"],
    "--bulk-keep": SHARES,
    "--keep": [*SHARES, "0", "0.9 --rule bema"],
    "--fit-cutoff": INSIDE,
    "--include": PATTERNS,
    "--exclude": PATTERNS,
    "--key": ["model"],  # a .safetensors file has none
    "--force": [],
    "--dry-run": [],
    "--sort": ["spykes", "", "-"],
    "--filter": PATTERNS,
    "--quiet": ["--verbose"],
    "--verbose": ["--quiet"],
}
FOLDERS = ["file", "missing/new"]
#: Words that make a command out of each name, and wrong values of its options.
WRONG = {
    "analyze m.safetensors": {
        **SAME,
        "--out": [*REPORTS, "r.csv --dry-run", "r.csv --resume r.csv", "r.csv --unfreeze .5"],
        "--resume": [],  # a file that is read: one that cannot be is bad input
        "--device": ["cpu --jobs 2", "cpu --method stochastic"],
        "--quantiles": ["best"],
        "--no-refine": [],
        "--method": ["lanczos", ""],
        "--level": INSIDE,
        "--noise": ["gamma", ""],
        "--rng": ["-1", "1.5", "x"],
        "--metrics": [],
        "--init": ["m.safetensors"],  # without --metrics
        "--unfreeze": [f"{share} --out u.yaml" for share in (*SHARES, "0")]
        + ["0.5", "0.5 --out u.yaml tuned.safetensors"],
    },
    "prune m.safetensors new": {
        **SAME,
        "--as": ["thin", "dense --budget .5"],
        "--min-saving": SHARES,
        "--gate": ["nose", "0", "1", "-0.1", "nan", ".1 --fit-cutoff .1"],
        "--noise": ["gamma", ""],
        "--rng": ["-1", "1.5", "x"],
        "--budget": [*SHARES, "0", "0.001", ".5 --rule bema", ".5 --bulk-keep .1"],
        "--calibration": ["nothing.txt"],  # a text takes the folder of a model
        "--sequences": [*WHOLE],
        "--objective": ["speed", "", "loss"],
        "--rank-multiple": ["0", "-1", "1.5", "many", ""],
        "--rank": ["fc", "fc=", "fc=x", "fc=1.5", "fc=-1", "fc=0", "fc=500", "nowhere=3"],
        "--plan": ["plan.json --rank fc=3", "plan.json --fit-cutoff .1", "plan.json --gate none"],
        "--report": REPORTS,
    },
    "reproduce fig-2": {
        "--n": [*WHOLE, "15"],
        "--out": FOLDERS,
        "--seeds": [*WHOLE, "1"],
        "--seed": ["-1", "1.5", "x"],
    },
    "demo": {"--out": FOLDERS},
    "merge small": {},
    "compare m.safetensors tuned.safetensors": {
        "--out": REPORTS,
        "--force": [],
        "--include": PATTERNS,
        "--exclude": PATTERNS,
        "--components": [*WHOLE, "-1"],
        "--noise": ["gamma", ""],
        "--beta": INSIDE,
        "--rng": ["-1", "1.5", "x"],
        "--key": ["model"],  # a .safetensors file has none
        "--jobs": WHOLE,
    },
    "completion bash": {"--print": []},
    "extract-lora m.safetensors tuned.safetensors new": {
        "--rank": [*WHOLE, "-1", "3 --budget .5"],
        "--budget": INSIDE,
        "--include": PATTERNS,
        "--exclude": PATTERNS,
        "--noise": ["gamma", ""],
        "--beta": INSIDE,
        "--rng": ["-1", "1.5", "x"],
        "--dry-run": [],
        "--report": REPORTS,
        "--force": [],
    },
    "resize-lora lora.safetensors new": {
        "--rank": [*WHOLE, "-1"],
        "--keep": [*SHARES, "0"],
        "--dry-run": [],
        "--report": REPORTS,
        "--force": [],
    },
}
CASES = [
    (command, flag, value)
    for command, options in WRONG.items()
    for flag, values in options.items()
    for value in values
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and things in the way."""
    place = tmp_path_factory.mktemp("place")
    planted = ensembles.spiked(120, 90, [5, 20], rng=0).astype("float32")
    save_file({"fc.weight": planted}, place / "m.safetensors")
    save_file({"fc.weight": planted * 1.5}, place / "tuned.safetensors")
    factors = {"fc.lora_A.weight": planted[:2], "fc.lora_B.weight": planted[:, :2]}
    save_file(factors, place / "lora.safetensors")
    rmtspec.prune_checkpoint(place / "m.safetensors", None, dry_run=True).save(place / "plan.json")
    rmtspec.prune_checkpoint(place / "m.safetensors", place / "small", bulk_keep=0.0)
    (place / "file").write_text("x")
    (place / "notes.json").write_text("{}")
    (place / "folder.json").mkdir()
    return place


def test_every_option_is_in_the_table():
    for words, options in WRONG.items():
        command = cli.main.commands[words.split()[0]]
        known = {p.opts[0] for p in command.params if isinstance(p, click.Option)}
        assert set(options) == known
    assert {words.split()[0] for words in WRONG} == set(cli.main.commands)


@pytest.mark.parametrize(("command", "flag", "value"), CASES)
def test_a_wrong_value_is_told_in_the_words_of_the_command(
    place, monkeypatch, command, flag, value
):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    words = [*command.split(), flag, *value.split(" ")]
    if flag == "--keep" and words[0] != "resize-lora" and "--rule" not in words:
        words += ["--rule", "energy"]
    done = CliRunner().invoke(cli.main, words, catch_exceptions=False)
    assert (done.exit_code, done.stdout) == (2, "")
    usage, message = done.stderr.split("Error: ")
    assert usage.startswith(f"Usage: main {words[0]} ")
    assert flag in message
    assert message.count("\n") == 1
    ours = re.sub(r"'[^']*'", "", message)  # without what was given
    # Neither an argument of a function, nor what only one who calls a function can do.
    for python in (r"`", r"\w_\w", r"\w=(?!K)", r"\bNone\b", "predicate", "callable", r"ranks\["):
        assert not re.search(python, ours), message
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("analyze m.safetensors --jobs 0", "--jobs is 0; expected a whole number other than 0. 1 "),
        (
            "analyze m.safetensors --include (",
            "(' is not a regular expression: missing ), untermin",
        ),
        ("prune m.safetensors new --rank fc=500", "--rank 'fc' is 500; expected a whole number"),
        ("prune m.safetensors new --rank fc.weight=0", "--rank 'fc.weight' is 0; expected a whole"),
        ("prune m.safetensors new --rank a=3", "--rank names 'a', which is not among the 1"),
        ("prune m.safetensors new --keep 2 --rule energy", "It is a share: --keep 0.9 to keep 90"),
        (
            "prune m.safetensors new --exclude keep=(",
            "--exclude 'keep=(' is not a regular expression",
        ),
        ("prune m.safetensors file", "Invalid value for OUT: file is a file; expected a folder."),
        ("prune m.safetensors small", "Invalid value for OUT: small is not empty;"),
        ("merge small missing/new", "Invalid value for OUT: missing/new cannot be made"),
        ("reproduce fig-9", "'fig-9' is not one of"),
    ],
)
def test_messages(place, monkeypatch, words, message):
    monkeypatch.chdir(place)
    done = CliRunner().invoke(cli.main, words.split(), catch_exceptions=False)
    assert done.exit_code == 2
    assert message in done.stderr


def test_bad_input_is_not_wrong_usage(place, monkeypatch):
    monkeypatch.chdir(place)
    np.savez("vectors.npz", a=np.ones(3))
    for words in ("analyze nowhere.npy", "analyze vectors.npz", "prune file new", "merge m new"):
        done = CliRunner().invoke(cli.main, words.split(), catch_exceptions=False)
        assert done.exit_code == 1
        assert done.stderr.startswith("Error: ")
    plan = rmtspec.Report.from_json("plan.json")
    plan.rows[0]["action"], plan.rows[0]["rank"] = "split", 500
    plan.to_json("edited.json")
    words = ["prune", "m.safetensors", "new", "--plan", "edited.json"]
    done = CliRunner().invoke(cli.main, words, catch_exceptions=False)
    message = "The rank of fc.weight in the plan is 500; expected a whole number from 1 to 90."
    assert (done.exit_code, done.stderr) == (1, f"Error: {message}\n")


def test_python_m_rmtspec_is_the_command():
    for module in ("rmtspec", "rmtspec.cli"):
        words = [sys.executable, "-m", module]
        done = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"rmtspec, version {rmtspec.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "rmtspec", "analyze", "x.npy", "--jobs", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: rmtspec analyze [OPTIONS] PATH...\n")
    assert "--jobs is 0; expected a whole number other than 0." in done.stderr


def test_an_empty_path_is_not_the_current_folder(place):
    for words in (["analyze", ""], ["prune", "", "new"], ["prune", "m.safetensors", ""]):
        done = CliRunner().invoke(cli.main, words, catch_exceptions=False)
        assert done.exit_code == 2
        assert "the path is empty" in done.stderr


def test_help_shows_words_as_they_must_be_typed():
    shown = CliRunner().invoke(cli.main, ["prune", "--help"], prog_name="rmtspec").stdout
    assert "--gate [noise|none|NUMBER]" in shown
