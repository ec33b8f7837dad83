"""Workers that are killed, and workers whose parent is: an error with the way on, no orphans."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import planted

PROGRAM = """
import os, sys, time

PLACE = sys.argv[1]

def slow(place):
    open(os.path.join(place, str(os.getpid())), "w").close()
    time.sleep(60)

from rmtspec.report.parallel import each
for _ in each(slow, [PLACE] * 4, n_jobs=2):
    pass
"""


def started(place, command):
    """Start a command whose two workers leave files named after them; return it and their ids."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(600):
        workers = [int(file.name) for file in place.iterdir()]
        if len(workers) == 2:
            return process, workers
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate())


def alive(worker):
    try:
        content = Path(f"/proc/{worker}/stat").read_text()
        return content.rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(workers, seconds=10):
    for _ in range(int(seconds / 0.1)):
        if not any(map(alive, workers)):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "terminate"])
def test_no_worker_outlives_its_parent(tmp_path, number):
    process, workers = started(tmp_path, [sys.executable, "-c", PROGRAM, str(tmp_path)])
    try:
        process.send_signal(number)
        process.wait(10)
        assert all_end(workers)
    finally:
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)
        process.communicate()


def test_a_killed_worker_is_an_error_that_says_the_way_on(tmp_path):
    process, workers = started(tmp_path, [sys.executable, "-c", PROGRAM, str(tmp_path)])
    os.kill(workers[0], signal.SIGKILL)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert "RmtspecError: A worker process was killed, most often for lack of memory" in errors
    assert all_end(workers)


def test_a_request_to_terminate_ends_with_the_hint(tmp_path):
    from threading import Timer

    folder = tmp_path / "m"
    folder.mkdir()
    for i in range(40):
        np.save(folder / f"w{i}.npy", planted(500, 400, seed=i))
    process = subprocess.Popen(
        [sys.executable, "-m", "rmtspec.cli", "analyze", str(folder), "--resume",
         str(tmp_path / "j"), "--noise", "auto"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    guard = Timer(60, process.kill)
    guard.start()
    try:
        while process.poll() is None and not _lines(tmp_path / "j"):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    finally:
        guard.cancel()
    assert process.returncode == 143
    assert "the same command resumes from them" in errors


def _lines(path):
    return path.exists() and path.read_bytes().count(b"\n") > 1
