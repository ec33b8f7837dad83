"""What the command shows on a terminal: columns that fit, whole words, rows as asked."""

import contextlib
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from rich.cells import cell_len

import rmtspec
from rmtspec import cli
from rmtspec.cli.tables import table
from rmtspec.cli.terminal import report_lines, shortened

NAMES = {
    f"model.layers.{i}.self_attn.{part}.weight": [4.0, 9.0][: (i + len(part)) % 3]
    for i in (1, 2, 10)
    for part in ("q_proj", "o_proj")
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    place = tmp_path_factory.mktemp("cli") / "m.npz"
    arrays = {
        name: rmtspec.ensembles.spiked(80, 50, strengths, rng=i)
        for i, (name, strengths) in enumerate(NAMES.items())
    }
    np.savez(place, **arrays, zero=np.zeros((30, 20)), vector=np.ones(3))
    return place


@pytest.fixture(scope="module")
def report(file):
    return rmtspec.analyze_checkpoint(file, beta=0.01)


def run(*words):
    return CliRunner().invoke(cli.main, [str(word) for word in words], catch_exceptions=False)


def plain(line):
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


@pytest.mark.parametrize("width", [40, 50, 60, 80, 100, 200])
def test_a_row_takes_one_line_that_fits(report, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = [plain(line) for line in report_lines(report)]
    assert len(lines) == 1 + len(report)
    assert max(map(cell_len, lines)) <= width
    assert lines[0].split()[:2] == ["name", "spikes"] or "size" in lines[0]
    assert sum("noise-like bulk" in line for line in lines) == 6
    assert "no bulk left" in lines[-1] or "cannot tell" in lines[-1]


def test_where_there_is_room_the_spectrum_is_drawn(report, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("rmtspec.cli.terminal._can_print", lambda _: True)
    head, first, *_ = map(plain, report_lines(report))
    assert head.split()[-1] == "spectrum"
    assert set("▁▂▃▄▅▆▇█").intersection(first)
    monkeypatch.setattr("rmtspec.cli.terminal._can_print", lambda _: False)
    assert "spectrum" not in plain(report_lines(report)[0])


def test_colours_are_left_out_on_request(report, monkeypatch):
    coloured = re.compile(r"\x1b\[3[0-9]m")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert any(map(coloured.search, report_lines(report)))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any(map(coloured.search, report_lines(report)))


@pytest.mark.parametrize("name", ["a" * 50, "日本語" * 20, "short", "", "é" * 50])
@pytest.mark.parametrize("width", [5, 12, 21])
def test_shortened_in_the_middle(name, width):
    short = shortened(name, width)
    assert cell_len(short) <= width
    if cell_len(name) <= width:
        assert short == name
    else:
        assert short[0] == name[0]
        assert short[-1] == name[-1]


def test_on_a_terminal_there_are_no_stray_escapes(file):
    """Styles come from the table, and what is printed is not escaped a second time."""
    pty = pytest.importorskip("pty")
    import os

    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "rmtspec", "analyze", str(file)]
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    with subprocess.Popen(words, stdout=theirs, stderr=subprocess.DEVNULL, env=environment) as run:
        os.close(theirs)
        content = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            if not piece:
                break
            content += piece
        assert run.wait() == 0
    text = content.decode()
    assert "\\x1b" not in text
    rows = [line for line in map(plain, text.splitlines()) if "_proj" in line and "bulk" in line]
    assert len(rows) == 6
    assert all(cell_len(row) <= 80 for row in rows)


def test_sorted_and_filtered(file):
    done = run("analyze", file, "--sort", "-spikes", "--filter", "q_proj")
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines() if "_proj.w" in line]
    assert len(rows) == 3
    counts = [int(row[4]) for row in rows]
    assert counts == sorted(counts, reverse=True)
    assert "3 of 7 shown (--filter q_proj)" in done.stdout
    assert "7 analysed, 1 skipped" in done.stdout


def test_the_written_report_has_all_rows(file, tmp_path):
    out = tmp_path / "r.json"
    assert run("analyze", file, "--filter", "q_proj", "--quiet", "--out", out).exit_code == 0
    assert len(rmtspec.Report.from_json(out)) == 7


def test_a_table_into_a_text_of_no_encoding():
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        table(("name", "rank"), [("fc", "3"), ("层", "12")], numeric=("rank",))
    assert text.getvalue().splitlines()[1:-1] == [
        " name   rank ", f" {'-' * 11} ", " fc        3 ", " 层       12 "
    ]  # fmt: skip


def test_quiet_and_verbose(file):
    quiet = run("analyze", file, "--quiet").stdout
    assert len(quiet.splitlines()) == 1
    assert "7 analysed" in quiet
    assert "reason" in run("analyze", file, "--verbose").stdout
    done = run("analyze", file, "-q", "-v")
    assert done.exit_code == 2
    assert "--quiet and --verbose are both given" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed(monkeypatch, tmp_path, shell):
    monkeypatch.setenv("HOME", str(tmp_path))
    done = run("completion", shell)
    assert done.exit_code == 0
    (written,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert str(written) in done.stdout
    assert "_RMTSPEC_COMPLETE" in written.read_text()
    shown = run("completion", shell, "--print").stdout
    assert shown.strip() == written.read_text().strip()


def test_completion_completes():
    words = {"_RMTSPEC_COMPLETE": "bash_complete", "COMP_WORDS": "rmtspec an", "COMP_CWORD": "1"}
    done = CliRunner().invoke(cli.main, [], prog_name="rmtspec", env=words)
    assert "analyze" in done.stdout
