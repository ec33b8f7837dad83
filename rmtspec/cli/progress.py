"""The progress of long work: a bar on a terminal, lines in a log."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rmtspec.cli.output import say


@contextlib.contextmanager
def progress_bar(
    operations: Mapping[str, int] | None = None,
    steps: Sequence[str] = ("analysing",),
    noun: str = "matrices",
) -> Iterator[Callable[[int, int | None, str], None]]:
    """Give a callback that shows the progress of the work on stderr: a bar, or lines in a log.

    `operations` are the costs of the matrices by name, from which rate and remaining time of the
    first of the `steps` are computed. A step ends when the count restarts; the steps after the
    first are measured by the count. `noun` is what is counted.
    """
    work = _Work(operations, steps, noun)
    if not sys.stderr.isatty():
        yield _Log(work)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    shown = TextColumn("{task.fields[words]}")
    with Progress(*columns, shown, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(steps[0], total=1.0, words="")

        def step(done: int, count: int | None, name: str) -> None:
            work.note(done, count, name)
            bar.update(task, completed=work.share, description=work.step, words=work.words())

        yield step


@contextlib.contextmanager
def interruptible(hint: str) -> Iterator[None]:
    """Tell a user who interrupts the work how to resume it; nothing if the hint is empty.

    A request to terminate (SIGTERM) interrupts it too, so that its workers end with it; the exit
    status is then 143.
    """
    before: Any = None
    with contextlib.suppress(ValueError):  # only the main thread may
        before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as error:
        say(err=True)
        if hint:
            say(hint, err=True)
        if isinstance(error, _Terminated):
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


class _Terminated(KeyboardInterrupt):
    """The system asked this process to end."""


def _terminate(*_: object) -> None:
    raise _Terminated


class _Work:
    """The progress of the work: as a share, and in words."""

    _START = 1.0  # seconds in which the results that a journal holds already pass

    def __init__(
        self, operations: Mapping[str, int] | None, steps: Sequence[str], noun: str = "matrices"
    ) -> None:
        self._steps, self._noun = list(steps), noun
        self._begin(operations)

    def _begin(self, operations: Mapping[str, int] | None) -> None:
        self._operations = operations
        self._whole = max(1, sum(operations.values())) if operations else 1
        self._done, self._count, self._worked = 0, 0, 0
        self.share = 0.0
        self._began = time.monotonic()
        self._from = (self._began, 0.0, 0)  # when the work proper began; share and operations then

    @property
    def step(self) -> str:
        return self._steps[0]

    def note(self, done: int, count: int | None, name: str) -> None:
        """Take the arguments of a progress callback."""
        if done <= self._done:  # the next step begins
            self._steps = self._steps[1:] or self._steps
            self._begin(None)
        self._done, self._count = done, count or 0
        if self._operations:
            self._worked += self._operations.get(name, 0)
            self.share = self._worked / self._whole
        elif count:
            self.share = done / count
        now = time.monotonic()
        if now - self._began < self._START:
            self._from = (now, self.share, self._worked)

    def words(self) -> str:
        """Return "12 of 291 matrices, 38 Gflop/s, about 12 min left"."""
        words = f"{self._done} of {self._count} {self._noun}" if self._count else f"{self._done}"
        began, share, worked = self._from
        passed, gained = time.monotonic() - began, self.share - share
        if passed > self._START and gained > 0 and self.share < 1:
            if self._operations:
                words += f", {(self._worked - worked) / passed / 1e9:.0f} Gflop/s"
            words += f", about {duration(passed * (1 - self.share) / gained)} left"
        return words


class _Log:
    """Lines about long work, for readers of a log; none in the first half minute."""

    _EVERY = 30.0  # seconds

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._said = time.monotonic()

    def __call__(self, done: int, count: int | None, name: str) -> None:
        self._work.note(done, count, name)
        now = time.monotonic()
        if now - self._said >= self._EVERY and done != count:
            self._said = now
            work = self._work
            with contextlib.suppress(OSError):  # the work goes on without a reader
                say(f"{work.step}: {work.words()} ({work.share:.0%})", err=True)


def duration(seconds: float) -> str:
    """Return a time in words: "0.4 s", "3 min", "2.5 h"."""
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
