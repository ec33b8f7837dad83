"""The library with the two stages: from its own package, or the one NumPy or SciPy brought."""

import functools
import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from rmtspec._lapack.two_stage import Library, UnusableError

PACKAGE = "scipy-openblas64"
#: The first release whose two stages are known to work.
_OLDEST = (0, 3, 26)
_SUFFIXES = (".so", ".dylib", ".dll")


class Found(NamedTuple):
    """The library, or None if there is none, and in words what is used and why."""

    library: Library | None
    words: str

    def two_stages(self) -> Library:
        """Return the library where there is one."""
        if self.library is None:
            raise LookupError("no library with two stages")
        return self.library


@functools.cache
def found() -> Found:
    """Return the library with the two stages; it is looked for, loaded and tried once."""
    problem = ""
    try:
        if (own := _of_the_package()) is not None:
            return Found(own, f"{own.name}, two stages")
    except UnusableError as error:
        problem = f"; {PACKAGE} is not used: {error}"
    except Exception as error:  # a damaged package may raise anything
        problem = f"; {PACKAGE} cannot be loaded: {error}"
    for path, name, number in _loaded():
        try:
            library = _library(path, name, number)
        except (UnusableError, OSError):
            continue
        return Found(library, f"{library.name}, two stages{problem}")
    return Found(None, f"SciPy's, one stage{problem}")


def _of_the_package() -> Library | None:
    """Return the library of the package, None if that is not installed.

    The package is not imported: that would load its library for all others to see, among them
    SciPy's, which then calls functions of the same name that take longer integers.
    """
    try:
        number = version(PACKAGE)
        spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    except (PackageNotFoundError, ValueError):
        return None
    folders = [Path(place, "lib") for place in (spec and spec.submodule_search_locations) or ()]
    files = [
        file for folder in folders for file in sorted(folder.glob("*openblas*"))
        if file.suffix in _SUFFIXES
    ]  # fmt: skip
    if not files:
        raise UnusableError("its files are not there. Install it again")
    return _library(str(files[0]), f"{PACKAGE} {number}", number, follows=True)


def _loaded() -> list[tuple[str, str, str]]:
    """Return path, name and version of each OpenBLAS that NumPy and SciPy loaded, newest first."""
    import numpy.linalg  # noqa: F401  only loaded libraries are found
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return sorted(
        (
            (pool["filepath"], f"OpenBLAS {pool['version']}", pool["version"])
            for pool in ThreadpoolController().info()
            if pool["internal_api"] == "openblas" and pool["version"]
        ),
        key=lambda each: _numbers(each[2]),
        reverse=True,
    )


def _library(path: str, name: str, number: str, *, follows: bool = False) -> Library:
    if _numbers(number) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise UnusableError(f"version {number} is too old, expected {oldest} or later. Upgrade it")
    if sys.byteorder != "little":
        raise UnusableError("this processor keeps the high bytes of integers first")
    library = Library(path, name, follows=follows)
    library.check()
    return library


def _numbers(text: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(text))[:3])
