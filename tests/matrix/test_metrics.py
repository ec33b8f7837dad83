"""Metrics against their definitions, on all singular values and vectors of numpy."""

import builtins
import math

import naive
import numpy as np
import powerlaw
import pytest
import scipy.sparse.linalg
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError, MissingDependencyError
from rmtspec.matrix import localization as module
from rmtspec.matrix.metrics import Metrics
from rmtspec.matrix.power_law import fit_power_law
from rmtspec.terms import Why

PLANTED = ensembles.spiked(150, 100, [3, 5, 20], rng=0)
HEAVY = np.random.default_rng(1).pareto(2.2, (60, 90))
SIDES = ("participation", "localization")


def metrics(W, **options):
    return rmtspec.analyze(W, metrics=True, **options).metrics


@pytest.mark.parametrize("W", [PLANTED, PLANTED.T, HEAVY, HEAVY.astype(np.float32)])
def test_norms_and_ranks(W):
    found, s = metrics(W), np.linalg.svd(W.astype(float), compute_uv=False)
    squares = s**2
    assert found.norm == pytest.approx(squares.sum())
    assert found.log_norm == pytest.approx(np.log10(squares.sum()))
    assert found.frobenius_norm == pytest.approx(np.linalg.norm(W.astype(float)))
    assert found.spectral_norm == pytest.approx(squares.max())
    assert found.log_spectral_norm == pytest.approx(np.log10(squares.max()))
    assert found.sv_max == pytest.approx(s.max())
    assert found.stable_rank == pytest.approx(squares.sum() / squares.max())
    assert found.matrix_rank == np.linalg.matrix_rank(W)
    assert found.entropy == pytest.approx(naive.entropy(squares) / math.log(len(s)))
    assert found.effective_rank == pytest.approx(math.exp(naive.entropy(s)))
    assert found.log_alpha_norm == pytest.approx(np.log10(np.sum(squares**found.alpha)))
    assert found.alpha_weighted == pytest.approx(found.alpha * np.log10(squares.max()))
    assert found.reason == ""


def test_the_edge():
    report = rmtspec.analyze(PLANTED, metrics=True, noise="mp")
    found, fit, values = report.metrics, report.fit, report.spectrum.eigenvalues
    assert found.num_spikes == fit.n_spikes == 3
    beyond = values[values > fit.threshold].sum() / values.sum()
    assert found.energy_beyond_edge == pytest.approx(beyond)
    assert found.energy_beyond_edge == pytest.approx(report.noise.energy_share)
    assert found.mp_softrank == pytest.approx(fit.bulk_edge / values[-1])


def test_noise_has_the_effective_rank_of_noise():
    found = metrics(ensembles.wishart(600, 300, rng=0))
    # 0.1 % apart here; one spike of a tenth of the energy moves it by 10 %.
    assert found.effective_rank == pytest.approx(found.effective_rank_noise, rel=0.01)
    assert metrics(PLANTED).effective_rank < 0.9 * metrics(PLANTED).effective_rank_noise


@pytest.mark.parametrize("W", [PLANTED, PLANTED.T, PLANTED[:, :40], PLANTED[:9]])
def test_leading_vectors_by_all_of_them(W):
    """Also where Lanczos finds them: from a smaller side of 65 on."""
    left, _, right = np.linalg.svd(W, full_matrices=False)
    k = min(module.LEADING, *W.shape)
    found = module.localization(W)
    for side, vectors in (("left", left[:, :k]), ("right", right[:k].T)):
        participation, localization = (getattr(found, f"{side}_{what}") for what in SIDES)
        assert_allclose(participation, 1 / (vectors**4).sum(axis=0), rtol=1e-6)
        expected = np.abs(vectors).sum(axis=0) / np.abs(vectors).max(axis=0)
        assert_allclose(localization, expected, rtol=1e-6)
    row = metrics(W)
    assert row.left_participation == pytest.approx(found.left_participation[0])
    assert row.least_right_participation == pytest.approx(found.right_participation.min())


def test_vectors_where_lanczos_does_not_converge(monkeypatch):
    def never(*_, **__):
        raise scipy.sparse.linalg.ArpackNoConvergence("no", [], [])

    usual = module.localization(PLANTED)
    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", never)
    for one, other in zip(module.localization(PLANTED), usual, strict=True):
        assert_allclose(one, other, rtol=1e-6)


def test_what_one_entry_makes_is_told_by_participation():
    W = ensembles.wishart(200, 120, rng=0)
    W[17, 30] = 500.0
    found = metrics(W)
    assert found.left_participation < 1.1
    assert found.right_participation < 1.1
    spread = metrics(PLANTED)
    assert spread.left_participation > 150 / 6  # a random vector: 150 / 3
    assert found.least_left_participation <= found.left_participation


@pytest.mark.parametrize("scale", [1e-140, 1e-3, 1e140])
def test_scale(scale):
    usual, scaled = metrics(PLANTED), metrics(PLANTED * scale)
    for name in ("stable_rank", "entropy", "effective_rank", "alpha", "D", "num_pl_spikes",
                 "mp_softrank", "energy_beyond_edge", "left_participation"):  # fmt: skip
        assert getattr(scaled, name) == pytest.approx(getattr(usual, name), rel=1e-6)
    assert scaled.log_norm == pytest.approx(usual.log_norm + 2 * math.log10(scale))
    assert math.isfinite(scaled.log_alpha_norm)


@pytest.mark.parametrize("seed", range(3))
def test_power_law_by_the_definition(seed):
    values = np.sort(np.random.default_rng(seed).pareto(1.5 + seed, 120) + 0.3)
    fit = fit_power_law(values)
    alpha, xmin, distance = naive.power_law(values)
    assert (fit.alpha, fit.xmin, fit.distance) == pytest.approx((alpha, xmin, distance), rel=1e-6)
    assert fit.tail == np.count_nonzero(values >= xmin)
    assert fit.error == pytest.approx((alpha - 1) / math.sqrt(fit.tail))


TAIL = ("alpha", "xmin", "D", "sigma", "num_pl_spikes", "alpha_weighted", "log_alpha_norm")
EDGE = ("num_spikes", "energy_beyond_edge", "mp_softrank")
SPREAD = (
    "left_participation", "right_participation", "least_left_participation",
    "least_right_participation", "left_localization", "right_localization",
)  # fmt: skip
RANKS = ("entropy", "effective_rank", "effective_rank_noise", "stable_rank")
FAILED = {
    "zeros": (
        np.zeros((30, 20)), (Why.ZERO_MATRIX,),
        {"log_norm", "log_spectral_norm", *TAIL, *EDGE, *SPREAD, *RANKS},
    ),
    "few": (ensembles.wishart(30, 7, rng=0), (Why.FEW_FOR_A_TAIL,), {*TAIL}),
    "equal": (np.eye(40), (Why.NO_TAIL,), {*TAIL}),
    "rank 1": (
        np.outer(np.arange(1.0, 31), np.arange(1.0, 21)),
        (Why.RANK_ONE, Why.NO_BULK, Why.FEW_FOR_A_TAIL), {"entropy", *EDGE, *TAIL},
    ),
    "a spectrum": (rmtspec.spectrum(PLANTED), (Why.ENTRIES_UNKNOWN,), {*SPREAD}),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILED)
def test_what_cannot_be_computed_is_nan_with_a_reason(case):
    W, whys, missing = FAILED[case]
    found = metrics(W)
    assert Why.of(found.reason) == whys
    content = found.to_dict()
    assert {name for name, value in content.items() if value is None} == missing
    assert -1 not in content.values()
    assert Metrics.from_dict(content).to_dict() == content


def test_a_fit_that_fails_is_no_number(monkeypatch):
    class Noisy:
        def __init__(self, data, **_):
            self.alpha, self.xmin, self.D, self.noise_flag = 2.0, data[0], 0.5, True

    def broken(*_, **__):
        raise ValueError("no luck")

    monkeypatch.setattr(powerlaw, "Fit", Noisy)
    assert math.isnan(metrics(PLANTED).alpha)
    assert Why.of(metrics(PLANTED).reason) == (Why.NO_TAIL,)
    monkeypatch.setattr(powerlaw, "Fit", broken)
    assert metrics(PLANTED).reason == "no power law is fitted: no luck"


def test_without_the_package_nothing_is_computed(monkeypatch):
    def none(name, *more):
        if name == "powerlaw":
            raise ImportError(name)
        return usual(name, *more)

    def fail(*_, **__):
        pytest.fail("it computed")

    usual = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", none)
    monkeypatch.setattr("rmtspec.report.matrix_report.spectrum", fail)
    for call in (rmtspec.analyze, lambda W, **o: rmtspec.analyze_many([W], **o)):
        with pytest.raises(MissingDependencyError, match=r"rmtspec\[metrics\].*not installed"):
            call(PLANTED, metrics=True)


def test_an_earlier_package_is_told(monkeypatch):
    monkeypatch.delattr(powerlaw.Power_Law, "DEFAULT_PARAMETER_RANGES")
    with pytest.raises(MissingDependencyError, match=r"2\.0 or later"):
        metrics(PLANTED)


def test_wrong_options():
    with pytest.raises(InvalidOptionTypeError, match="`metrics` is 1; expected True or False"):
        rmtspec.analyze(PLANTED, metrics=1)
    with pytest.raises(InvalidOptionError, match="`init` is given without `metrics`"):
        rmtspec.analyze(PLANTED, init=PLANTED)
    with pytest.raises(InvalidOptionTypeError, match="`init` is a list; expected a mapping"):
        rmtspec.analyze_many([PLANTED], metrics=True, init=[PLANTED])


def test_distance_to_init():
    found = metrics(PLANTED, init=PLANTED - 0.5)
    assert found.distance_to_init == pytest.approx(0.5 * math.sqrt(PLANTED.size))
    expected = found.distance_to_init / np.linalg.norm(PLANTED - 0.5)
    assert found.relative_distance_to_init == pytest.approx(expected)
    assert "distance_to_init" not in metrics(PLANTED).to_dict()
    other = metrics(PLANTED, init=PLANTED.T)
    assert math.isnan(other.distance_to_init)
    assert Why.of(other.reason) == (Why.INIT_SHAPE,)
    wrong = metrics(PLANTED, init=np.full(PLANTED.shape, np.nan))
    assert Why.of(wrong.reason) == (Why.INIT_UNREAD,)


def test_shown():
    words = repr(metrics(PLANTED))
    assert words.startswith("Metrics\n  norm ")
    assert "distance" not in words
    assert "reason" not in words
