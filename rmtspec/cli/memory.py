"""The memory of the process that runs a command."""

import contextlib
import ctypes

#: Of mallopt: blocks from so many bytes on are mapped, and returned when they are freed.
_M_MMAP_THRESHOLD, _BYTES = -3, 2**22


def return_freed_memory() -> None:
    """Have large arrays returned to the system as soon as they are freed, where that is optional.

    The C library of Linux otherwise keeps what was freed below 32 MiB, in holes between what is in
    use: half a gigabyte on top of what pruning by calibration needs for layers of 2816 columns.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _BYTES)
