"""How much memory is free, so that a size in a file is refused before it is allocated."""

import contextlib
from pathlib import Path

#: Of the control group of a container: what it may use, and what it uses.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def free_memory() -> int | None:
    """Return the bytes that this process could still allocate; None if the system does not say.

    Swap counts as memory, and so does what the system would drop from its cache.
    """
    found = [_of_system(), _of_limit(), *(_of_group(*files) for files in _GROUPS)]
    return min((bytes_free for bytes_free in found if bytes_free is not None), default=None)


def lacking(needed: int) -> str:
    """Return in words why so many bytes cannot be allocated; empty if they can."""
    if needed < 2**26:  # not worth the question
        return ""
    free = free_memory()
    if free is None or needed <= free:
        return ""
    return f"{needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free"


def _of_system() -> int | None:
    with contextlib.suppress(OSError, ValueError, LookupError):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
        return sizes["MemAvailable"] + sizes.get("SwapFree", 0)
    return None


def _of_limit() -> int | None:
    """Return what a limit on the address space (ulimit -v) leaves."""
    with contextlib.suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text("ascii").split()[0])
            return max(0, limit - used * resource.getpagesize())
    return None


def _of_group(limit: str, used: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        most, now = (int(Path(file).read_text("ascii")) for file in (limit, used))
        # What is used includes the cache of files, which the system drops first.
        cached = 0
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = Path(limit).with_name("memory.stat").read_text("ascii").splitlines()
            sizes = dict(line.split() for line in lines)
            cached = int(sizes.get("file", sizes.get("cache", "0")))
        return max(0, most - now + cached)
    return None
