"""The demo: its three parts, its files, a second run, and what is missing or in the way."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import rmtspec
from rmtspec import cli, demo, ensembles
from rmtspec.demo import tour
from rmtspec.errors import FileError

pytest.importorskip("sklearn")
ROOT = Path(__file__).resolve().parents[1]
MATRICES = [
    f"{stem}-{k}.png" for stem in ("example-3.3", "digits") for k in ("esd", "cdf", "scree")
]
REPORTS = ["report.json", "report.html"]
NETWORK = [
    "digits-model-esd.png",
    "digits-model-accuracy.png",
    "digits-model-report.json",
    "digits-model-report.html",
    "digits-model",
]
SMALL = {"n": 100, "epochs": 2, "say": None}


def run(*args):
    return CliRunner().invoke(cli.main, ["demo", *map(str, args)], catch_exceptions=False)


def names(paths):
    return [path.name for path in paths]


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    """Folder, text and files of one run, with less training than users see."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("demo") / "out"
    said = []
    written = demo.run_demo(folder, n=100, epochs=10, say=said.append)
    return folder, "\n".join(said), written


def test_files(toured):
    folder, text, written = toured
    assert names(written) == MATRICES + REPORTS + NETWORK
    assert sorted(folder.iterdir()) == sorted(written)
    assert all(f"  {path}" in text for path in written)
    assert names(sorted((folder / "digits-model").iterdir())) == [
        "rmtspec.json",
        "rmtspec.safetensors",
    ]


def test_parts_1_and_2(toured):
    folder, text, _ = toured
    assert "MatrixReport Example 3.3" in text
    assert "digits, 1797 pictures x 61 pixels" in text
    assert "109,617 parameters become" in text
    assert json.loads((folder / "report.json").read_text())["skipped"] == []
    noise = ensembles.wishart(80, 50, rng=1)
    assert "No split: no signal found" in tour._split_text(noise, rmtspec.analyze(noise))


def test_part_3_tells_what_the_files_say(toured):
    import torch

    from rmtspec.adapters import torch as rt

    folder, text, _ = toured
    report = json.loads(
        (folder / "digits-model-report.json").read_text(), parse_constant=pytest.fail
    )
    totals = report["totals"]
    actions = [row["action"] for row in report["rows"]]
    assert actions == ["split", "split", "keep"]
    assert totals["parameters_before"] == 112_810
    small = rt.load(rt.MLP([64, 300, 300, 10]), folder / "digits-model")
    assert rt.count_parameters(small) == totals["parameters_after"] < 0.2 * 112_810

    lines = text[text.index("3. A trained network: 64-300-300-10") :].splitlines()
    table = {line[2:52].strip(): line[52:].split() for line in lines if line.startswith("  ")}
    trained, pruned = table["as trained"], table["rt.prune(model, bulk_keep=0)"]
    assert pruned[0] == f"{totals['parameters_after']:,}"
    from rmtspec.demo.network import _Digits

    digits = _Digits.load()
    assert (len(digits.train), len(digits.test)) == (1200, 597)
    assert not {tuple(p) for p in digits.train.tolist()} & {tuple(p) for p in digits.test.tolist()}
    torch.testing.assert_close(digits.train.mean(dim=0), torch.zeros(64), atol=1e-6, rtol=0)
    assert pruned[-1] == f"({digits.right(small)})"
    assert int(trained[-1].strip("()")) > 0.9 * 597  # seen: 581
    assert "loaded back: outputs equal bit for bit." in text
    gap = float(text.partition("differ by at most ")[2].split()[0])
    assert gap < 1e-5  # float32, sums of 300


def test_times_are_told_as_measured(toured):
    from rmtspec.demo.network import latency_words

    _, text, _ = toured
    lines = [line for line in text.splitlines() if line.startswith("  batch ")]
    assert [line.split(":")[0].split()[1] for line in lines] == ["1", "256"]
    for line in lines:
        words = line.replace(":", "").split()
        assert "faster" in line or "slower" in line
        told = line.rpartition(": ")[2]
        if "takes" in told:
            ratio = float(told.split("takes ")[1].split()[0])
            expected = float(words[5]) / float(words[2])
            assert ratio == pytest.approx(expected, rel=0.02, abs=0.006)  # told to 0.01
    assert latency_words(1.0, 1.06) == "slower, takes 1.06 times as long"
    assert latency_words(2.0, 1.0) == "faster, takes 0.50 times as long"
    for after in (0.96, 1.0, 1.04):
        assert latency_words(1.0, after) == "no faster and no slower within 5%"
    assert latency_words(1.0, 1.06, margin=0.1) == "no faster and no slower within 10%"


def test_enough_singular_values(monkeypatch):
    pytest.importorskip("torch")
    from rmtspec.demo import network

    monkeypatch.setattr(network, "_RANKS", (1, 2, 5, 10))
    assert network._enough([10, 95, 50, 90], 89.0) == "from 10 singular values on"
    assert network._enough([90, 90, 90, 90], 89.0) == "from 1 singular values on"
    assert network._enough([10, 95, 50, 80], 89.0) == "not up to 10"


def test_second_run_replaces_and_leaves_the_callers_random_state(tmp_path, toured, monkeypatch):
    import torch

    monkeypatch.setattr(demo.run_demo, "__kwdefaults__", SMALL)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    legacy = np.random.get_state()[1].copy()  # noqa: NPY002 (that it is left alone)
    out = tmp_path / "out"
    first = run("--out", out)
    assert (first.exit_code, first.stderr) == (0, "")
    stored = (out / "digits-model" / "rmtspec.safetensors").read_bytes()
    (out / "digits-model" / "rmtspec.safetensors").write_bytes(b"damaged")
    (out / "mine.txt").write_text("kept")
    again = run("--out", out)
    assert again.exit_code == 0
    assert (out / "digits-model" / "rmtspec.safetensors").read_bytes() == stored
    assert sorted(names(out.iterdir())) == sorted([*MATRICES, *REPORTS, *NETWORK, "mine.txt"])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert (np.random.get_state()[1] == legacy).all()  # noqa: NPY002
    assert run("--out", tmp_path / "a" / "b").exit_code == 2


@pytest.mark.parametrize("what", ["file", "link", "other files", "more files", "half"])
def test_what_is_not_ours_is_left_alone(tmp_path, what):
    pytest.importorskip("torch")
    place = tmp_path / "digits-model"
    if what == "file":
        place.write_text("mine")
    elif what == "link":
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
        kept = {"other files": ["a.txt"], "half": ["rmtspec.safetensors"]}
        for name in kept.get(what, ["rmtspec.json", "rmtspec.safetensors", "notes.txt"]):
            (place / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileError, match="digits-model is in the way"):
        demo.run_demo(tmp_path, **SMALL)
    assert sorted(tmp_path.rglob("*")) == before
    done = run("--out", tmp_path)
    assert done.exit_code == 2
    assert "in the way" in done.stderr


def test_an_empty_folder_is_filled(tmp_path):
    pytest.importorskip("torch")
    from rmtspec.demo.network import old_files

    (tmp_path / "digits-model").mkdir()
    assert old_files(tmp_path) == []
    (tmp_path / "digits-model" / "rmtspec.json").write_text("{}")
    assert names(old_files(tmp_path)) == ["rmtspec.json"]


def test_without_torch_the_third_part_is_left_out(tmp_path):
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"  # None in sys.modules would confuse scipy
        "from rmtspec import demo\n"
        "demo.run_demo.__kwdefaults__['n'] = 100\n"
        "from rmtspec.cli import main; main()"
    )
    words = [sys.executable, "-c", code, "demo", "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    part = next(line for line in done.stdout.splitlines() if line.startswith("3. "))
    assert part.endswith('left out, because PyTorch is not installed: pip install "rmtspec[torch]"')
    assert sorted(names((tmp_path / "out").iterdir())) == sorted(MATRICES + REPORTS)


def test_without_its_data(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    done = run("--out", tmp_path / "out")
    assert done.exit_code == 1
    assert 'pip install "rmtspec[demo]"' in done.stderr
    assert not (tmp_path / "out").exists()


def pins(name):
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    found = [line.removesuffix(" \\") for line in lines if line and line[0] not in " #-"]
    return sorted(line.lower().replace("_", "-") for line in found)


def test_torch_is_pinned_by_itself():
    """Asked for with others, pip may take a CUDA build of gigabytes."""
    (torch,) = pins("torch.txt")
    assert torch.startswith("torch==")
    assert not [line for name in ("demo", "test", "docs") for line in pins(f"{name}.txt")
                if line.startswith("torch==")]  # fmt: skip


@pytest.mark.parametrize("name", ["demo", "test", "docs", "models"])
def test_what_is_pinned_has_hashes(name):
    assert pins(f"{name}.in") == pins(f"{name}.txt")
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    assert all(line.endswith("\\") for line in lines if "==" in line)
