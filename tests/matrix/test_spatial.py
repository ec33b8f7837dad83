"""A kernel as a k x 1 and a 1 x l one: exact where it can be, else as predicted."""

import numpy as np
import pytest

from rmtspec.errors import InvalidValueError
from rmtspec.matrix.spatial import spatial_losses, spatial_split
from rmtspec.matrix.split import split
from rmtspec.matrix.weighting import RIDGE
from rmtspec.terms import Form


def case(out=12, inside=6, kernel=(3, 5), seed=0):
    rng = np.random.default_rng(seed)
    columns = inside * kernel[0] * kernel[1]
    x = rng.standard_normal((4 * columns, columns))
    x = np.cumsum(x, axis=1) * 0.1 + x
    weight = rng.standard_normal((out, columns))
    return weight, x.T @ x / len(x), rng.uniform(0.1, 3, out)


def kernels(found, out, inside, kernel):
    inner = found.inner.reshape(found.rank, inside, kernel[0])
    outer = found.outer.reshape(out, found.rank, kernel[1])
    return np.einsum("orb,ria->oiab", outer, inner).reshape(out, -1)


@pytest.mark.parametrize("kernel", [(3, 3), (3, 5), (2, 7)])
def test_with_all_channels_it_is_the_kernel_itself(kernel):
    weight, moment, D = case(kernel=kernel)
    most = Form.SPATIAL.most(*weight.shape, kernel)
    assert most == min(6 * kernel[0], 12 * kernel[1])
    found = spatial_split(weight, kernel, most, moment, D)
    np.testing.assert_allclose(kernels(found, 12, 6, kernel), weight, rtol=1e-5, atol=1e-5)
    assert found.error < 1e-6
    assert found.predicted_loss < 1e-8


@pytest.mark.parametrize("full", [False, True])
def test_losses_are_those_of_the_split(full):
    kernel = (3, 5)
    weight, moment, D = case(kernel=kernel)
    G = D
    if full:
        g = np.random.default_rng(1).standard_normal((60, 12)) * np.sqrt(D)
        G = g.T @ g / 60
    saved = spatial_losses(weight, kernel, moment, G)
    assert len(saved) == 18
    assert (saved >= 0).all()
    ridged = moment + RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))
    square = np.diag(D) if not full else G
    square = square + RIDGE * np.trace(square) / 12 * np.eye(12)
    total = 0.5 * np.trace(square @ weight @ ridged @ weight.T)
    assert saved.sum() == pytest.approx(total, rel=1e-4)
    for rank in (1, 5, 11):
        gap = weight - spatial_split(weight, kernel, rank, moment, G).matrix
        lost = 0.5 * np.trace(square @ gap @ ridged @ gap.T)
        assert saved[rank:].sum() == pytest.approx(lost, rel=1e-3)


def test_the_second_kernel_is_the_best_for_the_first():
    weight, moment, D = case()
    found = spatial_split(weight, (3, 5), 6, moment, D)
    rng = np.random.default_rng(3)

    def loss(outer):
        inner = found.inner.reshape(6, 6, 3)
        product = np.einsum("orb,ria->oiab", outer.reshape(12, 6, 5), inner).reshape(12, -1)
        gap = weight - product
        return np.vdot(D[:, None] * gap, gap @ moment)

    best = loss(found.outer)
    assert best == pytest.approx(2 * found.predicted_loss, rel=1e-6)
    for _ in range(5):
        other = found.outer + 0.05 * rng.standard_normal(found.outer.shape)
        assert loss(other) > best


def test_smooth_kernels_take_few_channels():
    rng = np.random.default_rng(0)
    smooth = sum(
        np.einsum("oi,a,b->oiab", rng.standard_normal((16, 8)), rng.random(3), rng.random(3))
        for _ in range(2)
    ).reshape(16, 72)
    moment = case(16, 8, (3, 3))[1]
    rank = 9
    spatial = spatial_split(smooth, (3, 3), rank, moment, np.ones(16))
    same_size = split(smooth, rank * 72 // 88 or 1, input_moment=moment, output_weight=np.ones(16))
    assert spatial.predicted_loss < 0.5 * same_size.predicted_loss


def test_the_dtype_is_kept_and_errors_are_of_what_is_returned():
    weight, moment, D = case()
    found = spatial_split(weight.astype(np.float32), (3, 5), 7, moment, D)
    assert found.inner.dtype == found.outer.dtype == np.float32
    product = kernels(found, 12, 6, (3, 5))
    error = np.linalg.norm(weight - product) / np.linalg.norm(weight)
    assert found.error == pytest.approx(error, rel=1e-5)
    seen = [np.sqrt(np.trace(m @ moment @ m.T)) for m in (weight - product, weight)]
    assert found.output_error == pytest.approx(seen[0] / seen[1], rel=1e-4)
    sizes = [np.abs(each).max() for each in (found.inner, found.outer)]
    assert 0.05 < sizes[0] / sizes[1] < 20


@pytest.mark.parametrize("rank", [0, 19, 2.5])
def test_wrong_numbers_of_channels(rank):
    weight, moment, D = case()
    with pytest.raises((InvalidValueError, TypeError), match="`rank` is"):
        spatial_split(weight, (3, 5), rank, moment, D)


def test_a_kernel_that_does_not_fit():
    weight, moment, D = case()
    with pytest.raises(InvalidValueError, match=r"`W` has 90 columns; expected in \* 4 \* 4"):
        spatial_split(weight, (4, 4), 3, moment, D)
