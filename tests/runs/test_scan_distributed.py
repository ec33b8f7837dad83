"""A scan by two worker processes of joblib, Dask and Ray: the report of one process, to the bit."""

import contextlib
import functools
import json
import os
import pickle
import secrets
import signal
import tempfile
import time

import joblib
import numpy as np
import pytest
from joblib.parallel import BACKENDS
from joblib.pool import PicklingPool
from safetensors.numpy import save_file

import rmtspec
from rmtspec import ensembles
from rmtspec.checkpoint import matrices_in
from rmtspec.report.many import outcome_of
from rmtspec.report.parallel import _Group, each

SIDES = [(150, 90), (60, 140), (120, 120), (200, 70), (80, 64), (90, 170), (64, 64), (110, 75)]
STOP_AFTER = 3
#: BLAS of the workers starts with two, so that a limit of one shows.
TWO_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")


class StoppedError(Exception):
    """What the progress callback raises in the middle of a scan."""


@contextlib.contextmanager
def two_processes(folder):
    with joblib.parallel_config(backend="loky", n_jobs=2):
        yield


@contextlib.contextmanager
def two_dask_workers(folder):
    import dask
    from dask import distributed

    with (
        dask.config.set(
            {"temporary-directory": str(folder), "distributed.scheduler.allowed-failures": 0}
        ),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port: 8787 may be taken
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


@contextlib.contextmanager
def two_ray_workers(folder):
    import ray
    from ray.util.joblib import register_ray

    bases = PicklingPool.__bases__  # which Ray replaces
    # Not below `folder`: the paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-") as short:
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=80 * 2**20,
                _node_ip_address="127.0.0.1",
                _temp_dir=short,
            )
            register_ray()
            with joblib.parallel_config(backend="ray"):
                yield
        finally:
            ray.shutdown()
            PicklingPool.__bases__ = bases
            BACKENDS.pop("ray", None)


CLUSTERS = {"dask": two_dask_workers, "ray": two_ray_workers}
BACKENDS_OF_TWO = {"processes": two_processes, **CLUSTERS}
pytestmark = pytest.mark.slow
of_all = pytest.mark.parametrize("workers", BACKENDS_OF_TWO, indirect=True, scope="module")
of_clusters = pytest.mark.parametrize("workers", CLUSTERS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def workers(request, tmp_path_factory):
    """Two workers of the backend that is named, which joblib uses while the tests run."""
    environment = {
        **TWO_THREADS,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray writes one into the home folder
    }
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):  # Ray sets the second; undone after
                patch.setenv(name, "")
                patch.delenv(name)
            stack.enter_context(BACKENDS_OF_TWO[request.param](tmp_path_factory.mktemp("workers")))
        yield request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shards: eight matrices, one that holds nan, and a vector."""
    place = tmp_path_factory.mktemp("checkpoint")
    rng = np.random.default_rng(5)
    tensors = {
        f"layers.{i}.weight": ensembles.spiked(*sides, [4, 9], rng=rng).astype(np.float32)
        for i, sides in enumerate(SIDES)
    }
    tensors["broken.weight"] = np.full((40, 30), np.nan, np.float32)
    tensors["norm.weight"] = np.ones(40, np.float32)
    index = {name: f"part{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(index.values()):
        save_file({name: tensors[name] for name in tensors if index[name] == file}, place / file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), "utf-8")
    return place


scan = functools.partial(rmtspec.analyze_checkpoint, threads=1)


@pytest.fixture(scope="module")
def serial(folder):
    return scan(folder)


def without_seconds(report):
    content = report.to_dict()
    content["rows"] = [
        {key: value for key, value in row.items() if "seconds" not in key}
        for row in content["rows"]
    ]
    return content


def assert_same(report, expected):
    assert len(report) == len(SIDES)
    assert without_seconds(report) == without_seconds(expected)
    for name, matrix in expected.matrices.items():
        found = report.matrices[name].spectrum.eigenvalues
        assert found.tobytes() == matrix.spectrum.eigenvalues.tobytes()


def stop(done, total, name):
    if done == STOP_AFTER:
        raise StoppedError


@of_all
def test_same_report_to_the_last_digit(workers, folder, serial):
    told = []
    report = scan(folder, n_jobs=None, progress=lambda *args: told.append(args))
    assert_same(report, serial)
    assert [done for done, _, _ in told] == list(range(1, 10))
    assert {total for _, total, _ in told} == {9}
    assert "nan" in report.skipped[0]["reason"]


@of_all
def test_stopped_there_and_finished_in_one_process(workers, folder, serial, tmp_path):
    journal = tmp_path / "scan.jsonl"
    with pytest.raises(StoppedError):
        scan(folder, n_jobs=-1, journal=journal, progress=stop)
    assert len(journal.read_text("utf-8").splitlines()) == 1 + STOP_AFTER
    assert_same(scan(folder, journal=journal), serial)


@of_all
def test_stopped_in_one_process_and_finished_there(workers, folder, serial, tmp_path):
    journal = tmp_path / "scan.jsonl"
    with pytest.raises(StoppedError):
        scan(folder, journal=journal, progress=stop)
    before = journal.read_text("utf-8")
    assert_same(scan(folder, n_jobs=2, journal=journal), serial)
    assert journal.read_text("utf-8").startswith(before)
    assert len(journal.read_text("utf-8").splitlines()) == 1 + len(SIDES) + 1


@of_clusters
def test_both_workers_use_as_many_threads_as_asked_for(workers):
    def where_and_how(item):
        import scipy.linalg.blas  # noqa: F401
        import threadpoolctl

        time.sleep(0.1)
        pools = threadpoolctl.threadpool_info()
        at_start = os.environ["OPENBLAS_NUM_THREADS"]
        now = {pool["num_threads"] for pool in pools if pool["user_api"] == "blas"}
        return os.getpid(), at_start, now

    places = [place for _, place in each(where_and_how, range(8), n_jobs=None, threads=1)]
    assert len({process for process, _, _ in places} - {os.getpid()}) == 2
    assert {at_start for _, at_start, _ in places} == {"2"}
    assert all(now == {1} for _, _, now in places)


@pytest.mark.parametrize("workers", ["dask"], indirect=True, scope="module")
def test_a_task_that_kills_its_worker_is_an_error(workers):
    """As the system does where memory runs out; joblib alone would wait for ever."""
    from dask.distributed import KilledWorker

    def work(item):
        if item == "too large":
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(KilledWorker, match="died while running it"):
        list(each(work, ["small", "too large", "small"], n_jobs=None))
    assert sorted(each(work, ["small"], n_jobs=None)) == [(0, "small")]


def test_what_travels_is_small(folder, serial, tmp_path):
    """No tensors: names and places of them one way, eigenvalues the other."""
    weight = np.ones((300, 200), np.float32)
    np.save(tmp_path / "a.npy", weight)
    np.savez(tmp_path / "b.npz", weight=weight)
    files = [folder, tmp_path / "a.npy", tmp_path / "b.npz"]
    with contextlib.suppress(ImportError):
        import torch

        torch.save({"weight": torch.from_numpy(weight)}, tmp_path / "c.pt")
        files.append(tmp_path / "c.pt")
    work = _Group(functools.partial(outcome_of, {"rule": "bema"}), None, 1, None)
    for file in files:
        for name, matrix in matrices_in(file):
            assert len(pickle.dumps((work, 0, [(name, matrix)]))) < 2000
    for report in serial.matrices.values():
        assert len(pickle.dumps((0, report))) < 8 * report.spectrum.p + 3000
