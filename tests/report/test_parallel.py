"""The same call for many items: which workers, in what groups, and how it ends."""

import time
import warnings

import joblib
import pytest
from joblib.parallel import BACKENDS, ThreadingBackend, register_parallel_backend

from rmtspec.report.parallel import each


class Cluster(ThreadingBackend):
    """Like Ray and Spark: one worker unless told otherwise, results of a call all at once."""

    supports_return_generator = False
    calls = ()

    def effective_n_jobs(self, n_jobs):
        return 3 if n_jobs == -1 else n_jobs

    def start_call(self):
        self.calls.append(0)

    def submit(self, func, callback=None):
        self.calls[-1] += 1
        return super().submit(func, callback)


@pytest.fixture
def cluster(monkeypatch):
    """Sizes of the groups that were sent to a cluster, which joblib uses meanwhile."""
    monkeypatch.setattr(Cluster, "calls", [])
    register_parallel_backend("cluster", Cluster)
    try:
        with joblib.parallel_config(backend="cluster"):
            yield Cluster.calls
    finally:
        BACKENDS.pop("cluster")


def test_none_is_the_whole_cluster(cluster):
    assert sorted(each(abs, [-5, -6, -7], n_jobs=None)) == [(0, 5), (1, 6), (2, 7)]
    assert cluster == [3]


def test_none_is_what_the_configuration_says(cluster):
    with joblib.parallel_config(backend="cluster", n_jobs=2):
        assert len(list(each(abs, [-5] * 4, n_jobs=None))) == 4
    assert cluster == [2, 2]


def test_groups_grow_only_while_they_take_no_time(cluster, monkeypatch):
    monkeypatch.setattr("rmtspec.report.parallel._GROUP_SECONDS", 0.2)
    seconds = [0.0] * 9 + [0.3] * 12 + [0.0] * 4
    list(each(time.sleep, seconds, n_jobs=-1))
    assert cluster == [3, 6, 12, 3, 1]


def test_results_of_a_group_come_before_the_next_is_sent(cluster):
    found = each(abs, [-1] * 9, n_jobs=-1)
    next(found)
    assert cluster == [3]
    found.close()
    assert cluster == [3]


@pytest.mark.parametrize("backend", ["threading", "cluster"])
def test_stopping_early_is_no_reason_for_a_warning(cluster, backend):
    with joblib.parallel_config(backend=backend), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in each(time.sleep, [0.01] * 40, n_jobs=2):
            break
    assert not caught


@pytest.mark.parametrize("backend", ["threading", "cluster"])
def test_an_error_in_a_worker_is_raised_here(cluster, backend):
    with (
        joblib.parallel_config(backend=backend),
        pytest.raises(ValueError, match="could not convert string to float"),
    ):
        list(each(float, ["1", "two", "3"], n_jobs=2))
