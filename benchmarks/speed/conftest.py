"""The fixture of all timings: ours and a named peer in turn, in one process, ratio pair by pair.

Every run writes one JSON file with all ratios and their conditions (`--ratios`). With `--release`
the ratios become a column of `results/releases.json`; a later run fails where a ratio is more than
15 % above that of the last release, measured twice.
"""

import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rmtspec._records import versions

HERE = Path(__file__).parent
RELEASES = HERE / "results" / "releases.json"
#: How much larger than in the last release a ratio may be.
WORSE = 1.15
_FOUND = {}


def pytest_addoption(parser):
    parser.addoption(
        "--ratios", type=Path, default=HERE / "results" / "last.json", help="file for all ratios"
    )
    parser.addoption("--release", help="keep the ratios as those of this release")


def releases():
    """Return the ratios of each release, the oldest first."""
    return json.loads(RELEASES.read_text("utf-8")) if RELEASES.exists() else {}


@pytest.fixture
def paired(request):
    """Return paired(name, ours, peer, limit, rounds): the median ratio of ours to the peer.

    `less` are seconds of ours that do not count; without `warm` the first calls count.
    """
    known = releases()
    last = list(known)[-1] if known and not request.config.getoption("--release") else ""
    before = known[last]["ratios"] if last else {}

    def measure(name, ours, peer, *, limit, rounds=9, less=0.0, warm=True):
        if warm:
            ours(), peer()  # compiled, loaded, in cache
        mine, theirs, ratio = _medians(ours, peer, rounds, less)
        most = min(limit, WORSE * before.get(name, limit))
        if ratio > most:  # a busy machine, or slower
            mine, theirs, ratio = min(
                (mine, theirs, ratio), _medians(ours, peer, rounds, less), key=lambda each: each[2]
            )
        _FOUND[name] = {"ours_s": mine, "peer_s": theirs, "ratio": ratio, "limit": limit}
        assert ratio <= limit, f"{name}: {ratio:.3f} times the peer's time, limit {limit}"
        assert ratio <= most, f"{name}: {ratio:.3f}, was {before[name]:.3f} in {last}"
        return ratio

    return measure


def _medians(ours, peer, rounds, less):
    pairs = []
    for _ in range(rounds):
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        peer()
        pairs.append((middle - start - less, time.perf_counter() - middle))
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    return mine, theirs, statistics.median(a / b for a, b in pairs)


def pytest_sessionfinish(session):
    if not _FOUND:
        return
    config = session.config
    conditions = {
        "date": datetime.now(UTC).date().isoformat(), "processor": _processor(),
        "cores": os.cpu_count(), "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
        "versions": versions(),
    }  # fmt: skip
    target = config.getoption("--ratios")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"conditions": conditions, "ratios": _FOUND}, indent=1) + "\n")
    if name := config.getoption("--release"):
        ratios = {key: round(found["ratio"], 4) for key, found in _FOUND.items()}
        known = releases()
        ratios = known.get(name, {}).get("ratios", {}) | ratios  # of those that ran again
        known[name] = {"conditions": conditions, "ratios": ratios}
        RELEASES.write_text(json.dumps(known, indent=1) + "\n", "utf-8")


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def pytest_terminal_summary(terminalreporter):
    if _FOUND:
        terminalreporter.section("ours, peer (medians), ratio, limit")
        for name, found in _FOUND.items():
            terminalreporter.write_line(
                f"{name:<72} {found['ours_s'] * 1e3:10.3f} ms {found['peer_s'] * 1e3:10.3f} ms "
                f"{found['ratio']:9.4f} {found['limit']:9.4f}"
            )
