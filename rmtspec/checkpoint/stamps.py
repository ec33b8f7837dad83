"""What tells that a file is still the one whose header was read: another would mix two models."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

from rmtspec._files.writing import cause
from rmtspec.errors import FileError


class Stamp(NamedTuple):
    """What the system says of a file; every way to rewrite it changes one of these."""

    device: int
    inode: int
    size: int
    changed: int

    @classmethod
    def of(cls, file: str | Path) -> "Stamp":
        """Return the stamp of a regular file; raise `FileError` for a pipe or a device.

        Opening one of these would wait for ever, or read without end.
        """
        found = os.stat(file)  # noqa: PTH116  a path as text is not made a Path for each tensor
        if not stat.S_ISREG(found.st_mode):
            raise FileError(
                f"{file} is not a regular file; expected one. Pipes and devices are not read: "
                "save the content as a file."
            )
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    @classmethod
    def of_text(cls, text: str) -> "Stamp":
        """Return the stamp that `text` wrote; raise `FileError` if it is none."""
        try:
            return cls(*map(int, text.split()))
        except (TypeError, ValueError):
            raise FileError(f"{text[:80]!r} is no stamp of a file; read the file again.") from None

    def text(self) -> str:
        """Return the stamp as text."""
        return " ".join(map(str, self))

    def check(self, file: str | Path, *, elsewhere: bool = False) -> None:
        """Raise `FileError` if the file under this path is another one than at the stamp.

        `elsewhere` leaves out what another computer that reads the same file sees otherwise. That
        the file is missing is left to be found by who opens it.
        """
        try:
            now = Stamp.of(file)
        except FileError:
            raise
        except FileNotFoundError:
            return
        except OSError as error:
            raise FileError(
                f"{file} cannot be read: {cause(error)}. Check its permissions."
            ) from error
        if now[2:] == self[2:] and (elsewhere or now == self):
            return
        raise FileError(
            f"{file} was rewritten while it was being read ({self._difference(now)}): what comes "
            "from it now belongs to another checkpoint. Let the program that writes it finish, or "
            "read a copy that nothing changes, and start again."
        )

    def _difference(self, now: "Stamp") -> str:
        if now.size != self.size:
            return f"it had {self.size} bytes, and has {now.size}"
        if now.changed != self.changed:
            return "its time of change is another"
        return "another file has its name"
