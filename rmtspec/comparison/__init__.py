"""Comparing two checkpoints, models or matrices: what changed, and what kind of change it is."""

from rmtspec.comparison.compare import compare
from rmtspec.comparison.comparison import Comparison

__all__ = ["Comparison", "compare"]
