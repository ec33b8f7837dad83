"""A matrix of any scale gives what it gives at scale 1: nothing over- or underflows on the way."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles

W = ensembles.spiked(120, 90, [5, 20], rng=0)
#: Quantities in the units of the eigenvalues, and a time.
IN_UNITS = (
    "variance", "lower_edge", "bulk_edge", "threshold", "largest_eigenvalue", "noise_variance",
    "noise_variance_low", "noise_variance_high", "lower_threshold",
)  # fmt: skip
#: Powers of two: entries from 1e-145 to 1e143.
POWERS = (-484, -400, -331, -90, -84, 60, 331, 400, 474)


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def without_units(report, power):
    row = report.to_dict()
    del row["seconds"]
    for key in IN_UNITS:
        equalized = key == "lower_threshold" and row["noise_model"] != "mp"  # has no units
        if row[key] is not None and not equalized:
            row[key] /= 4.0**power
    return row


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(
    "options",
    [
        {"noise": "mp"},
        {"noise": "mp", "precision": "float32"},
        {"noise": "mp", "method": "svd"},
        {"noise": "equalized"},
        {"noise": "signflip"},
        {"noise": "mp", "rule": "screenot"},
        {"noise": "mp", "rule": "gavish-donoho"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_analyze(power, options):
    expected = without_units(rmtspec.analyze(W, **options), 0)
    found = without_units(rmtspec.analyze(W * 2.0**power, **options), power)
    numbers = {key for key in found if isinstance(found[key], float)}
    assert [found[key] for key in numbers] == pytest.approx([expected[key] for key in numbers])
    assert {key for key in found if key not in numbers and found[key] != expected[key]} == set()
    assert found["n_spikes"] == 2


@pytest.mark.parametrize("power", POWERS)
def test_other_results(power):
    scaled = W * 2.0**power
    fits = [rmtspec.fit_gamma(rmtspec.spectrum(A), draws=2) for A in (W, scaled)]
    assert fits[1].shape == pytest.approx(fits[0].shape)
    assert fits[1].variance / 4.0**power == pytest.approx(fits[0].variance)
    ranks = [[row["rank"] for row in rmtspec.compare_rules(A).rows] for A in (W, scaled)]
    assert ranks[1] == ranks[0]
    assert rmtspec.split(scaled, 3).error == pytest.approx(rmtspec.split(W, 3).error)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [5e-26, 1e18])
def test_single_precision_at_scales_whose_squares_it_lacks(dtype, scale):
    weak = ensembles.spiked(120, 90, [4, 5], rng=0)
    spec = rmtspec.spectrum((weak * scale).astype(dtype), precision="float32")
    assert spec.method == "gram32"
    assert_allclose(spec.eigenvalues / scale**2, rmtspec.spectrum(weak).eigenvalues, rtol=1e-2)
    assert rmtspec.bema(spec).n_spikes == 2


@pytest.mark.parametrize("transposed", [False, True])
def test_columns_whose_squares_are_zero_are_no_zero_columns(transposed):
    A = W.copy()
    A[:, 3] *= 1e-170
    A[5] *= 1e-170
    A[:, 7] = 0.0
    spec = rmtspec.spectrum(A.T if transposed else A)
    assert (spec.n, spec.p) == (120, 89)
    assert spec.dropped_rows + spec.dropped_columns == 1
    assert spec.numerical_rank == 88


@pytest.mark.parametrize("variance", [2.0**-995, 2.0**995])
@pytest.mark.parametrize("ratio", [1e-6, 0.3, 1.0, 2.0, 1e6])
def test_laws_at_the_ends_of_their_range(ratio, variance):
    unit, law = (rmtspec.MarchenkoPastur(ratio, v) for v in (1.0, variance))
    x, p = np.linspace(*unit.support(), 7)[1:-1], [0.1, 0.5, 0.9]
    for name in ("cdf", "sf", "logcdf", "logsf"):
        assert_allclose(getattr(law, name)(x * variance), getattr(unit, name)(x), rtol=1e-9)
    assert_allclose(law.pdf(x * variance) * variance, unit.pdf(x), rtol=1e-9)
    assert_allclose(law.ppf(p) / variance, unit.ppf(p), rtol=1e-9)


def test_a_bulk_too_small_for_squares_is_no_bulk():
    A = W * 1e-155
    A[0, 0] = 1e-140
    assert rmtspec.analyze(A, noise="mp").reason == "no bulk"


def test_what_is_beyond_the_range_is_said_of_the_entries():
    for scale in (1e146, 1e-150):
        with pytest.raises(rmtspec.RmtspecError, match=r"`W` has entries up to .* Divide `W` by"):
            rmtspec.analyze(W * scale)
