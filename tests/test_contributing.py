"""CONTRIBUTING.md is true: its drawing is the import contract, its examples work as written."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, re.DOTALL)
DIFF_BLOCKS = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)
LEFT_OUT = shutil.ignore_patterns(
    ".*_cache", ".git", ".venv", "*.egg-info", "__pycache__", "build", "dist", "benchmarks"
)


def contract(name):
    """Return the layers of an import contract, the lowest first, each a set of names."""
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / ".importlinter")
    lines = parsed[f"importlinter:contract:{name}"]["layers"].split("\n")
    return [set(re.findall(r"\w+", line)) for line in reversed(lines) if line]


def drawn(title):
    """Return the floors below a title of the drawing, each a set of names."""
    block = TEXT.split("```text\n")[1].split("```")[0]
    floors = {}
    number = 0
    for line in block.split(f"{title}/")[1].splitlines()[1:]:
        if not line.startswith(" "):
            break
        found = re.match(r"  (\d+ |  )\s+(\w+)", line)
        number = int(found[1]) if found[1].strip() else number
        floors.setdefault(number, set()).add(found[2])
    return [floors[key] for key in sorted(floors)]


def test_the_drawing_is_the_contract():
    assert drawn("rmtspec") == contract("layers")
    assert drawn("adapters/torch") == contract("torch")


def test_every_file_it_names_exists():
    made = {path for path, _ in PYTHON_BLOCKS}
    named = set(re.findall(r"`((?:rmtspec|adapters|tests|docs|benchmarks)/[\w/.-]+)`", TEXT))
    named |= set(re.findall(r"^--- (\S+)$", TEXT, re.MULTILINE))
    assert len(named) > 15
    assert [path for path in sorted(named - made) if not (ROOT / path).exists()] == []


def apply(root):
    """Carry out the examples in a copy of the tree; an edit must meet its lines exactly once."""
    for path, content in PYTHON_BLOCKS:
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(content, "utf-8")
    for block in DIFF_BLOCKS:
        for path, *hunks in (re.split(r"^@@\n", part, flags=re.MULTILINE) for part in files(block)):
            text = (root / path.strip()).read_text("utf-8")
            for hunk in hunks:
                lines = hunk.splitlines(keepends=True)
                old = "".join(line[1:] for line in lines if line[0] != "+")
                new = "".join(line[1:] for line in lines if line[0] != "-")
                advice = f"CONTRIBUTING.md quotes lines of {path.strip()} that have changed; update"
                assert ("\n" + text).count("\n" + old) == 1, f"{advice} them:\n{old}"
                text = ("\n" + text).replace("\n" + old, "\n" + new)[1:]
            (root / path.strip()).write_text(text, "utf-8")


def files(block):
    return re.split(r"^--- ", block, flags=re.MULTILINE)[1:]


@pytest.fixture
def copy(tmp_path):
    root = tmp_path / "tree"
    shutil.copytree(ROOT, root, symlinks=True, ignore=LEFT_OUT)
    apply(root)
    return root


def test_the_examples_meet_the_code(copy):
    for path, _ in PYTHON_BLOCKS:
        compile((copy / path).read_text("utf-8"), path, "exec")


@pytest.mark.slow
def test_the_examples_work(copy):
    pytest.importorskip("torch")
    tests = [path for path, _ in PYTHON_BLOCKS if path.startswith("tests/")]
    assert len(tests) == 5
    for command in (
        [
            "-m",
            "pytest",
            "-q",
            *tests,
            "tests/test_packaging.py",
            "tests/test_terms.py",
            "-k",
            "not costs",
        ],
        ["-m", "pytest", "-q", "--doctest-modules", "rmtspec/laws/semicircle.py"],
        ["-c", "from importlinter.cli import lint_imports_command as lint; lint([])"],
    ):
        place = {**os.environ, "PYTHONPATH": str(copy)}
        done = subprocess.run(
            [sys.executable, *command], cwd=copy, env=place, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
