"""Splits with weights on both sides: the best of their rank, and what they cost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rmtspec
from rmtspec.errors import InvalidOptionError, InvalidTypeError, InvalidValueError
from rmtspec.matrix.split import truncate
from rmtspec.matrix.weighting import RIDGE, Weighting, weighted_energies


def problem(rows=30, columns=20, seed=0):
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((rows, columns))
    x = rng.standard_normal((500, columns)) * np.geomspace(0.1, 10.0, columns)
    g = rng.standard_normal((500, rows)) @ rng.standard_normal((rows, rows))
    return W, x.T @ x / 500, g.T @ g / 500


def ridged(moment):
    return moment + RIDGE * np.mean(np.diag(moment)) * np.eye(len(moment))


def weighted_error(gap, C, G):
    return float(np.trace(G @ gap @ C @ gap.T))


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


@pytest.mark.parametrize("full", [True, False], ids=["matrix", "vector"])
def test_the_split_is_the_best_of_its_rank_in_the_weighted_norm(full):
    W, C, G = problem()
    weight = G if full else np.diag(G).copy()
    G = G if full else np.diag(np.diag(G))
    parts = rmtspec.split(W, 5, input_moment=C, output_weight=weight)
    left, right = root(ridged(G)), root(ridged(C))
    u, s, v = np.linalg.svd(left @ W @ right)
    best = np.linalg.solve(left, (u[:, :5] * s[:5]) @ v[:5]) @ np.linalg.inv(right)
    # 1e-8: the conditions of C (1e4 with the ridge) and of G times the rounding of a Gram matrix.
    np.testing.assert_allclose(parts.outer @ parts.inner, best, rtol=0, atol=1e-8 * abs(best).max())
    np.testing.assert_allclose(parts.singular_values, s[:5], rtol=1e-9)
    gap = W - best
    assert parts.predicted_loss == pytest.approx(weighted_error(gap, C, G) / 2, rel=1e-6)
    assert parts.output_error == pytest.approx(
        np.sqrt(weighted_error(gap, C, np.eye(30)) / weighted_error(W, C, np.eye(30))), rel=1e-6
    )


def test_energies_are_the_squares_of_what_a_split_keeps_and_leaves():
    W, C, G = problem()
    for weight in (None, np.diag(G), G):
        energies = weighted_energies(W, C, weight)
        kept = rmtspec.split(W, 20, input_moment=C, output_weight=weight).singular_values
        np.testing.assert_allclose(energies, kept**2, rtol=1e-8)
        assert (np.diff(energies) <= 0).all()
    np.testing.assert_allclose(
        weighted_energies(W), np.linalg.svd(W, compute_uv=False) ** 2, rtol=1e-10
    )


@given(st.integers(0, 2**32), st.integers(1, 11))
@settings(max_examples=25)
def test_no_other_split_of_the_rank_costs_less(seed, rank):
    W, C, G = problem(14, 11, seed)
    C, G = ridged(C), ridged(G)  # what is minimised has the ridge
    parts = rmtspec.split(W, rank, input_moment=C, output_weight=G)
    here = weighted_error(W - parts.outer @ parts.inner, C, G)
    rng = np.random.default_rng(seed)
    for scale in (1e-1, 1e-3):
        outer = parts.outer + scale * rng.standard_normal(parts.outer.shape)
        inner = parts.inner + scale * rng.standard_normal(parts.inner.shape)
        # The second ridge on top of the first is why "less" needs a margin.
        assert here <= weighted_error(W - outer @ inner, C, G) * (1 + 1e-5) + 1e-9


def test_an_output_that_matters_a_thousand_times_as_much_is_kept():
    W, C, _ = problem()
    weight = np.ones(30)
    weight[7] = 1e6
    outer, inner = (lambda p: (p.outer, p.inner))(
        rmtspec.split(W, 3, input_moment=C, output_weight=weight)
    )
    errors = np.einsum("ij,jk,ik->i", W - outer @ inner, C, W - outer @ inner)
    assert errors[7] < 1e-3 * np.median(errors)


def test_equal_weights_change_nothing():
    W, C, _ = problem()
    plain = rmtspec.split(W, 4, input_moment=C)
    equal = rmtspec.split(W, 4, input_moment=C, output_weight=np.full(30, 5.0))
    np.testing.assert_allclose(equal.outer @ equal.inner, plain.outer @ plain.inner, atol=1e-10)
    assert np.isnan(plain.predicted_loss)
    assert plain.to_dict()["predicted_loss"] is None
    assert "predicted loss" in repr(equal)


def test_outputs_alone_may_be_weighted():
    W, _, G = problem()
    parts = rmtspec.split(W, 4, output_weight=G)
    left = root(ridged(G))
    u, s, v = np.linalg.svd(left @ W)
    best = np.linalg.solve(left, (u[:, :4] * s[:4]) @ v[:4])
    np.testing.assert_allclose(parts.outer @ parts.inner, best, atol=1e-9)
    assert np.isnan(parts.predicted_loss)  # the inputs are not known


def test_dead_outputs_and_inputs_are_no_obstacle():
    W, C, G = problem()
    C[3] = C[:, 3] = 0.0
    weight = np.diag(G).copy()
    weight[2] = 0.0
    parts = rmtspec.split(W, 4, input_moment=C, output_weight=weight)
    assert np.isfinite(parts.outer).all()
    assert np.isfinite(parts.inner).all()


def test_a_truncation_is_the_product_of_the_split():
    W, C, G = problem()
    parts = rmtspec.split(W, 4, input_moment=C, output_weight=G)
    whole = truncate(W, 4, input_moment=C, output_weight=G)
    np.testing.assert_allclose(whole.matrix, parts.outer @ parts.inner, atol=1e-12)
    assert whole.predicted_loss == parts.predicted_loss


@pytest.mark.parametrize(
    ("weight", "message", "kind"),
    [
        (np.ones(29), r"`output_weight` has 29 entries; expected 30", InvalidValueError),
        (np.ones((30, 29)), r"shape \(30, 29\); expected \(30,\) or \(30, 30\)", InvalidValueError),
        (np.zeros(30), "all zeros, or has negative, nan", InvalidValueError),
        (np.full(30, np.nan), "all zeros, or has negative, nan", InvalidValueError),
        (np.r_[-1.0, np.ones(29)], "all zeros, or has negative, nan", InvalidValueError),
        (np.triu(np.ones((30, 30))), "`output_weight` is not symmetric", InvalidValueError),
        (-np.eye(30), "directions of negative weight", InvalidValueError),
        (np.full((30, 30), np.inf), "all zeros or has nan or inf", InvalidValueError),
        (["a"] * 30, "`output_weight`", InvalidTypeError),
    ],
    ids=["short", "oblong", "zeros", "nan", "negative", "skew", "negative matrix", "inf", "words"],
)
def test_weights_that_are_none(weight, message, kind):
    W, C, _ = problem()
    for call in (rmtspec.split, truncate):
        with pytest.raises(kind, match=message):
            call(W, 3, input_moment=C, output_weight=weight)
    with pytest.raises(kind, match=message):
        weighted_energies(W, C, weight)


def test_shrinkage_and_output_weights_do_not_go_together():
    W, _, G = problem()
    with pytest.raises(InvalidOptionError, match="`shrink` and `output_weight` are both given"):
        rmtspec.split(W, 3, output_weight=G, shrink="frobenius")


def test_the_loss_needs_both_sides():
    W, C, G = problem()
    assert np.isnan(Weighting.of(W.shape, C, None).loss(W))
    assert np.isnan(Weighting.of(W.shape, None, G).loss(W))
    assert Weighting.of(W.shape, C, G).loss(W) == pytest.approx(weighted_error(W, C, G) / 2)


def test_a_moment_that_is_changed_is_not_taken_for_the_old_one():
    """The root of the last moment is kept, but only where it cannot change."""
    W, C, _ = problem()
    first = rmtspec.split(W, 3, input_moment=C)
    C[:] = np.eye(20)
    changed = rmtspec.split(W, 3, input_moment=C)
    np.testing.assert_allclose(
        changed.outer @ changed.inner, rmtspec.split(W, 3, input_moment=np.eye(20)).outer
        @ rmtspec.split(W, 3, input_moment=np.eye(20)).inner, atol=1e-12,
    )  # fmt: skip
    assert abs(first.outer @ first.inner - changed.outer @ changed.inner).max() > 1e-3
    kept = problem()[1]
    kept.setflags(write=False)
    again = [rmtspec.split(W, 3, input_moment=kept).outer for _ in range(2)]
    np.testing.assert_array_equal(*again)
    np.testing.assert_array_equal(again[0], first.outer)
