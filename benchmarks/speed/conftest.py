"""The fixture of all timings: ours and a named peer in turn, in one process, ratio pair by pair."""

import statistics
import time

import pytest

_LINES = []


@pytest.fixture
def paired():
    """Return paired(name, ours, peer, limit, rounds): the median ratio of ours to the peer.

    `less` are seconds of ours that do not count; without `warm` the first calls count.
    """

    def measure(name, ours, peer, *, limit, rounds=9, less=0.0, warm=True):
        if warm:
            ours(), peer()  # compiled, loaded, in cache
        pairs = []
        for _ in range(rounds):
            start = time.perf_counter()
            ours()
            middle = time.perf_counter()
            peer()
            pairs.append((middle - start - less, time.perf_counter() - middle))
        mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        _LINES.append(
            f"{name:<58} {mine * 1e3:10.3f} ms {theirs * 1e3:10.3f} ms {ratio:9.4f} {limit:9.4f}"
        )
        assert ratio <= limit, f"{name}: {ratio:.3f} times the peer's time, limit {limit}"
        return ratio

    return measure


def pytest_terminal_summary(terminalreporter):
    if _LINES:
        terminalreporter.section("ours, peer (medians), ratio, limit")
        for line in _LINES:
            terminalreporter.write_line(line)
