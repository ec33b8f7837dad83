"""The kinds of noise of the benchmarks, by path: `benchmarks` is no package."""

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location(
    "noise_kinds", Path(__file__).parents[1] / "benchmarks" / "truth" / "noise_kinds.py"
)
_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_module)

KINDS, planted = _module.KINDS, _module.planted
