"""How results show themselves: aligned text, plain values for JSON, and versions."""

import math
import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import numpy as np


def aligned(title: str, pairs: Iterable[tuple[str, object]]) -> str:
    """Return a title and one ``name  value`` line per pair, the values in one column."""
    shown = [(name, text(value)) for name, value in pairs]
    width = max(len(name) for name, _ in shown)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in shown)])


def text(value: object) -> str:
    """Return a short readable form: six digits for floats, yes and no for truth values."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{float(value):.6g}"
    return str(value)


def plain(value: Any) -> Any:
    """Return `value` in JSON's own types; nan and infinities, which JSON lacks, become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def versions(*more: str) -> dict[str, str]:
    """Return the versions that numbers depend on, and those of the packages in `more`."""
    names = ("rmtspec", "numpy", "scipy", "numba", *more)
    return {**{name: version(name) for name in names}, "python": platform.python_version()}
