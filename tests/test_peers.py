"""The benchmarks' counters: formulas that are written out there, on matrices of known truth."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from rmtspec.ensembles import spiked, wishart

_SPEC = importlib.util.spec_from_file_location(
    "benchmark_peers", Path(__file__).parents[1] / "benchmarks" / "truth" / "peers.py"
)
module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(module)


def count(name, W):
    return module.PEERS[name].count(W)


@pytest.mark.parametrize(("planted", "expected"), [(100, 78), (350, 91)])
def test_signal_in_the_variance_hides_signal(planted, expected):
    """The edge from all entries, signal included: strengths below sqrt(variance) are lost."""
    W = spiked(1000, 1000, np.linspace(3, 10, planted), rng=0)
    assert count("diffract-core", W) == expected
    assert count("diffract-core, Tracy-Widom", W) <= expected


def test_a_spread_of_singular_values_is_no_deviation_of_entries():
    noise = wishart(300, 200, rng=0)
    values = np.linalg.svd(noise, compute_uv=False)
    quarter, three = np.quantile(values, [0.25, 0.75])
    edge = (three - quarter) / 1.349 * (1 + np.sqrt(2 / 3))
    assert count("laserRMT", noise) == count("Spectrum", noise.T) == np.sum(values > edge) > 50


def test_every_peer_says_what_it_rests_on():
    for name, peer in module.PEERS.items():
        assert peer.source.startswith(("package ", "formula")), name
        assert peer.count.__doc__
