"""Components: strengths and overlaps against the planted signal."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import InvalidTypeError, InvalidValueError


@pytest.mark.parametrize("shape", [(1000, 400), (400, 1000)])
def test_strengths_and_overlaps_are_those_of_the_signal(shape):
    strengths = np.array([8.0, 4.0, 2.0, 1.4])
    noise = 3.0 * ensembles.wishart(*shape, rng=1)
    W = 3.0 * ensembles.spiked(*shape, strengths, rng=1)
    U, _, Vt = np.linalg.svd(W - noise)
    u, _, vt = np.linalg.svd(W)
    parts = rmtspec.components(rmtspec.spectrum(W), 4)
    assert_allclose(parts.strengths, strengths, rtol=0.06)
    assert parts.variance == pytest.approx(9.0, rel=0.01)
    assert_allclose(parts.left_overlaps, abs((U * u).sum(0)[:4]), atol=0.03)
    assert_allclose(parts.right_overlaps, abs((Vt * vt).sum(1)[:4]), atol=0.03)
    longer, shorter = parts.left_overlaps, parts.right_overlaps
    assert ((longer < shorter) == (shape[0] > shape[1])).all()  # the longer side has more noise


def test_what_noise_hides_has_no_strength():
    spec = rmtspec.spectrum(ensembles.spiked(400, 300, [0.5, 1.2, 5.0], rng=0))
    parts = rmtspec.components(spec, 5)
    assert np.isnan(parts.strengths[2:]).all()
    assert not parts.left_overlaps[2:].any()
    assert not parts.right_overlaps[2:].any()
    assert (parts.left_overlaps[:2] > 0.4).all()
    assert parts.n_separable == 1
    assert parts.detection_limit == pytest.approx(0.75**0.25)
    assert parts.to_dict()["strengths"][4] is None
    assert "separable       1 of 5" in repr(parts)


def test_number_fit_and_variance():
    W = ensembles.spiked(400, 300, [3.0, 5.0], rng=0)
    spec = rmtspec.spectrum(W)
    fit = rmtspec.bema(spec)
    parts = rmtspec.components(spec, fit)
    assert parts.n_components == fit.n_spikes == 2
    assert parts.variance == fit.variance
    assert rmtspec.components(spec, fit, variance=2.0).variance == 2.0
    none = rmtspec.components(spec, 0)
    assert none.strengths.shape == (0,)
    assert "none" in repr(none)
    assert rmtspec.components(spec, 2).variance == pytest.approx(
        rmtspec.noise_variance(W, 2).variance, rel=1e-6
    )


def test_zero_rows_may_turn_the_sides():
    W = ensembles.spiked(100, 150, [3.0], rng=0)
    padded = np.vstack([W, np.zeros((200, 150))])
    expected, parts = (rmtspec.components(rmtspec.spectrum(each), 1) for each in (W, padded))
    assert_allclose(parts.left_overlaps, expected.left_overlaps)
    assert_allclose(parts.right_overlaps, expected.right_overlaps)


def test_without_noise_all_is_nan():
    rng = np.random.default_rng(0)
    spec = rmtspec.spectrum(rng.standard_normal((40, 3)) @ rng.standard_normal((3, 30)))
    parts = rmtspec.components(spec, 3)
    assert math.isnan(parts.variance)
    assert np.isnan([parts.strengths, parts.left_overlaps, parts.right_overlaps]).all()
    with pytest.raises(InvalidTypeError, match=r"fit without numbers \(no bulk\)"):
        rmtspec.components(spec, rmtspec.bema(spec))


def test_bad_input():
    spec = rmtspec.spectrum(ensembles.wishart(40, 30, rng=0))
    with pytest.raises(InvalidValueError, match="`n_components` is 31"):
        rmtspec.components(spec, 31)
    with pytest.raises(InvalidValueError, match="`variance` is -1"):
        rmtspec.components(spec, 2, variance=-1)
    with pytest.raises(InvalidTypeError, match="Spectrum"):
        rmtspec.components(np.eye(3), 1)
