"""The same call for many items: in this process, or in others through joblib."""

import contextlib
import functools
import itertools
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rmtspec.report.workers import end_with, told_of_killed_workers

#: Backends whose processes share the cores of this machine.
_LOCAL = ("LokyBackend", "MultiprocessingBackend")
#: Returns items in the places of others.
Prepare = Callable[[Iterable[Any]], Iterable[Any]]
#: In place of an item where there are no more.
_NONE = object()
#: Small items that are sent together, at most, and how many such shares each worker gets at least.
_SMALL_TOGETHER, _SHARES = 64, 4
#: Seconds that a group should take on a backend that returns only whole groups.
_GROUP_SECONDS = 1.0


def each(
    call: Callable[[Any], Any], items: Iterable[Any], *, n_jobs: int | None,
    threads: int | None = None, prepare: Prepare | None = None,
    is_small: Callable[[Any], bool] | None = None,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """Yield the index and the result of ``call(item)`` for each item, in the order they finish.

    Parameters
    ----------
    call : callable
        A function of one item; picklable unless `n_jobs` is 1.
    items : iterable
        Read one at a time if `n_jobs` is 1, otherwise to the end before the first call.
    n_jobs : int or None
        1 works in this process; otherwise joblib's active backend decides where. None stands for
        the number in ``joblib.parallel_config``, or for the whole of a cluster if it has none.
    threads : int, optional
        BLAS threads per call. By default this machine's cores are divided by the processes on
        it; in this process and on other machines BLAS is left as it is.
    prepare : callable, optional
        Returns, for items, as many that `call` is given in their places; it may look at several.
    is_small : callable, optional
        Tells whether an item takes so little time that it is sent with others.
    """
    if n_jobs == 1:
        numbers, iterator = itertools.count(), iter(items if prepare is None else prepare(items))
        while True:
            with blas_threads(threads):  # in which items are made too, small matrices solved
                item = next(iterator, _NONE)  # enumerate would keep it while the next one is made
                if item is _NONE:
                    return
                result = call(item)
                del item
            yield next(numbers), result
            del result
    import joblib
    from joblib.parallel import get_active_backend

    listed = list(items)
    backend, configured = get_active_backend()
    name = type(backend).__name__
    if n_jobs is None and configured is None and name not in (*_LOCAL, "ThreadingBackend"):
        n_jobs = -1  # the backends of Ray and Spark would take 1, and work in this process
    if name in _LOCAL:  # joblib would start all processes, however few the items
        n_jobs = min(joblib.effective_n_jobs(n_jobs), max(1, len(listed)))
        if threads is None:
            threads = max(1, joblib.cpu_count() // n_jobs)
    parent = os.getpid() if name in _LOCAL else None
    work = joblib.delayed(_Group(call, prepare, threads, parent))
    workers = max(1, joblib.effective_n_jobs(n_jobs))
    tasks = [work(first, part) for first, part in _parts(listed, is_small, workers)]
    options: dict[str, Any] = {"n_jobs": n_jobs, "batch_size": 1}
    if backend.supports_return_generator:
        with _told_of_failures(backend), told_of_killed_workers():
            done = joblib.Parallel(**options, return_as="generator_unordered")(tasks)
            for results in _streamed(done):
                yield from results
    else:
        for results in _in_groups(joblib.Parallel(**options), tasks, n_jobs):
            yield from results


def _parts(
    items: list[Any], is_small: Callable[[Any], bool] | None, workers: int
) -> Iterator[tuple[int, list[Any]]]:
    """Yield (index of the first, items): each for itself, but small ones next to each other."""
    small = [is_small is not None and is_small(item) for item in items]
    most = min(_SMALL_TOGETHER, -(-sum(small) // (_SHARES * workers)))
    first = 0
    while first < len(items):
        last = first + 1
        while small[first] and last < min(len(items), first + most) and small[last]:
            last += 1
        yield first, items[first:last]
        first = last


def _streamed(results: Generator[Any, None, None]) -> Iterator[Any]:
    """Yield results; if the caller stops early, suppress joblib's warning about it."""
    try:
        for result in results:  # noqa: UP028  `yield from` would close them before `finally`
            yield result
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            results.close()


@contextlib.contextmanager
def _told_of_failures(backend: Any) -> Iterator[None]:
    """Have a task raise if its workers were killed; with Dask, joblib 1.6 would wait for ever."""
    submit = getattr(backend, "submit", None)
    if submit is None or type(backend).__name__ != "DaskDistributedBackend":
        yield
        return

    def told(call: Any, callback: Any) -> Any:
        future = submit(call, callback)
        future.add_done_callback(
            lambda done: callback(_raising(done.exception())) if done.exception() else None
        )
        return future

    backend.submit = told
    try:
        yield
    finally:
        del backend.submit


def _raising(error: BaseException) -> Iterator[Any]:
    """Raise as soon as results are asked for."""
    raise error
    yield


def _in_groups(parallel: Any, tasks: list[Any], n_jobs: int | None) -> Iterator[Any]:
    """Yield the results of a few tasks at a time, so that a kill loses no more than these.

    A group has one task per worker, and doubles as long as groups are quick.
    """
    import joblib
    from joblib.parallel import MultiprocessingBackend, get_active_backend

    # One pool for all groups: Ray takes seconds to start one. Spark's backend keeps a pool of its
    # own, and would turn an interrupt into another error.
    keeps = isinstance(get_active_backend()[0], MultiprocessingBackend)
    with parallel if keeps else contextlib.nullcontext():
        workers = max(1, joblib.effective_n_jobs(n_jobs))
        start, size = 0, workers
        while start < len(tasks):
            began = time.perf_counter()
            results = parallel(tasks[start : start + size])
            start += size
            size = 2 * size if time.perf_counter() - began < _GROUP_SECONDS else workers
            yield from results


@dataclass(frozen=True, slots=True)
class _Group:
    """What a worker does with a group of items: a list of their indices and results."""

    call: Callable[[Any], Any]
    prepare: Prepare | None
    threads: int | None
    parent: int | None

    def __call__(self, first: int, items: list[Any]) -> list[tuple[int, Any]]:
        end_with(self.parent)
        with blas_threads(self.threads):
            ready = items if self.prepare is None else self.prepare(items)
            return [(index, self.call(item)) for index, item in enumerate(ready, first)]


@contextlib.contextmanager
def blas_threads(limit: int | None) -> Iterator[None]:
    """Use at most `limit` BLAS threads; a lower limit set before remains in force."""
    if limit is None:
        yield
        return
    import scipy.linalg.blas  # noqa: F401  only loaded libraries can be limited

    pools = _pools(len(sys.modules))
    lowest = min((pool.num_threads for pool in pools.lib_controllers), default=limit)
    with pools.limit(limits=min(limit, lowest)):
        yield


@functools.lru_cache(maxsize=1)
def _pools(modules: int) -> Any:
    """Return what controls the BLAS libraries; looked for anew when more modules are imported.

    To look for them takes 1.5 ms, three times what a small matrix does.
    """
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
