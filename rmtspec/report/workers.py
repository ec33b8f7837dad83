"""Worker processes on this machine: they end with the process that started them."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from rmtspec.errors import RmtspecError

#: Seconds between two looks at whether the parent is alive.
_SECONDS = 0.5
_watching: set[int] = set()


def end_with(parent: int | None) -> None:
    """Have this process end soon after its parent does, if it is a worker of that process.

    A worker of a process that was killed would otherwise wait minutes for work, with all its
    memory. While a matrix is decomposed it notices at the end of the call into BLAS.
    """
    if parent is None or parent == os.getpid() or parent in _watching or os.name != "posix":
        return
    _watching.add(parent)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os._exit(1)


@contextlib.contextmanager
def told_of_killed_workers() -> Iterator[None]:
    """Raise an error that says what to do when a local worker was killed."""
    from joblib.externals.loky.process_executor import BrokenProcessPool

    try:
        yield
    except BrokenProcessPool as error:
        raise RmtspecError(
            "A worker process was killed, most often for lack of memory. What was done is kept if "
            "there is a journal (--resume), or a folder that is being pruned: the same call "
            "resumes it. Use fewer processes: `n_jobs`, or --jobs."
        ) from error
