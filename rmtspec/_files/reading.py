"""Opening files that may be anything: no pipe, no device, and JSON of bounded size and depth."""

import errno
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from rmtspec.errors import FileError, InvalidTypeError

#: Bytes of a config, an index or a manifest; the largest known index has 15 MB.
_LONGEST_COMPANION = 2**27
#: Bytes of a report or a plan, which has a row for each of many matrices.
_LONGEST_REPORT = 2**30
#: Lists and objects in each other; what is read here has at most 6.
_DEEPEST = 100
#: Of Unix, and of Windows.
_MODE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading; raise `FileError` for a pipe or a device instead of waiting for it.

    Raises OSError as `open` does.
    """
    # A pipe without a writer is opened at once in this mode; for a file it changes nothing.
    descriptor = os.open(path, os.O_RDONLY | _MODE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        if folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise FileError(
            f"{path} is not a regular file; expected one. Pipes and devices are not read: save the "
            "content as a file."
        )
    return os.fdopen(descriptor, "rb")


def bounded_json(path: str | os.PathLike[str], *, longest: int = _LONGEST_COMPANION) -> Any:
    """Return the content of a JSON file; every small file beside the weights is read by this.

    Raises
    ------
    FileError
        The path is that of a pipe or a device.
    OSError
        The file cannot be opened or read.
    ValueError
        It has more than `longest` bytes, is not JSON in UTF-8, or is nested more than 100 deep.
    """
    with open_regular(path) as stream:
        raw = stream.read(longest + 1)
    if len(raw) > longest:
        raise ValueError(f"it has more than {longest:,} bytes")
    try:
        content: Any = json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"it is nested more than {_DEEPEST} deep") from None
    held = [content] if isinstance(content, dict | list) else []
    for _ in range(_DEEPEST + 1):
        values = (v for each in held for v in (each.values() if isinstance(each, dict) else each))
        held = [value for value in values if isinstance(value, dict | list)]
        if not held:
            return content
    raise ValueError(f"it is nested more than {_DEEPEST} deep")


def read_json(path: str | os.PathLike[str], what: str, schema: int) -> dict[str, Any]:
    """Return the object in a JSON file of this package, or raise if it is not `what`.

    `schema` is the version of the format written today; a file of a later version is refused.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise InvalidTypeError(f"The path is {path!r}; expected text or a pathlib.Path.")
    file = Path(path)
    try:
        content = bounded_json(file, longest=_LONGEST_REPORT)
    except FileError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileError(f"{file} cannot be read: {reason}. Check the path.") from error
    except ValueError as error:
        raise FileError(f"{file} is not {what}: it is not JSON ({error}).") from error
    version = content.get("schema") if isinstance(content, dict) else None
    if type(version) is not int:
        raise FileError(f"{file} is not {what}: it has no number under 'schema'.")
    if version > schema:
        raise FileError(
            f"{file} has schema {version}; this version of rmtspec reads up to {schema}. "
            "Update rmtspec: pip install --upgrade rmtspec."
        )
    return dict(content)
