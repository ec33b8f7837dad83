"""Noise of the kinds of the benchmarks, matrices made of it, and what two fits have in common."""

import importlib.util
from pathlib import Path

import numpy as np
from numpy.testing import assert_allclose

# By path: `benchmarks` is no package.
_SPEC = importlib.util.spec_from_file_location(
    "noise_kinds", Path(__file__).parents[1] / "benchmarks" / "truth" / "noise_kinds.py"
)
_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_module)

KINDS, planted = _module.KINDS, _module.planted


def clear(shape=(120, 80), seed=0):
    """Ten components, each far from the threshold, under a profile of variances."""
    rng = np.random.default_rng(seed)
    noise = KINDS["rank-one profile"](*shape, rng)
    return planted(noise, np.linspace(3.0, 9.0, 10), rng)


def orthogonal(n, p):
    return np.linalg.qr(np.random.default_rng(0).standard_normal((n, p)))[0]


def product(rank, dtype=np.float64):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((120, rank)) @ rng.standard_normal((rank, 80))).astype(dtype)


def same(first, second, rtol=1e-7):
    assert first.n_components == second.n_components
    assert first.at_least == second.at_least
    assert_allclose(first.threshold, second.threshold, rtol=rtol)
    ours, theirs = first.spectrum.eigenvalues, second.spectrum.eigenvalues
    assert_allclose(ours, theirs, rtol=rtol, atol=rtol * ours[-1])
