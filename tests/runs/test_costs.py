"""What a dry run foretells: operations by hand, memory against what is allocated, time."""

import dataclasses
import math
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import rmtspec
from rmtspec.matrix import eigenvalues as _eigenvalues
from rmtspec.runs import costs as _costs
from rmtspec.runs.costs import Speed, calibrate, cost, seconds

#: A machine of round numbers.
SPEED = Speed(gram=4e10, reduction=((256, 2e10), (1024, 2e10), (3072, 1e10)), rest=3e-8, read=1e9)
#: One that does everything but what a test is about in no time.
INSTANT = Speed(gram=1e30, reduction=((256, 1e30), (3072, 1e30)), rest=0.0, read=1e30)


def matrix(shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "operations"),
    [
        ((1, 1), 1 + 1),  # 4/3 rounded down
        ((3, 3), 27 + 36),
        ((10, 3), 90 + 36),
        ((30, 20), 12_000 + 10_666),
        ((4096, 1024), 4_294_967_296 + 1_431_655_765),
        ((7, 0), 0),
    ],
)
def test_operations_are_n_p_squared_and_four_thirds_p_cubed(shape, operations):
    assert cost(*shape).operations == operations


@pytest.mark.parametrize("shape", [(7, 5), (4096, 11008), (1, 10**6)])
def test_a_matrix_costs_what_its_transpose_costs(shape):
    assert cost(*shape) == cost(*shape[::-1])
    assert seconds(*shape, SPEED) == seconds(*shape[::-1], SPEED)


def test_huge_sides_do_not_overflow():
    assert cost(10**7, 10**6).operations == 10**19 + 4 * 10**18 // 3


def test_memory_is_the_gram_matrix_and_at_most_a_block():
    assert cost(100, 30).memory == 8 * (30 * 30 + 100 * 30)
    assert cost(100_000, 4096).memory == 8 * 4096**2 + 2**24
    # A row longer than a block is a block.
    assert cost(3 * 2**20, 3 * 2**20).memory == 8 * (3 * 2**20) * (3 * 2**20 + 1)


def test_the_block_is_the_one_that_is_read():
    assert _costs._BLOCK_BYTES == _eigenvalues._BLOCK_BYTES


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1500, 700), np.float32),
        ((700, 1500), np.float32),
        ((4000, 1000), np.float16),
        ((1000, 4000), ml_dtypes.bfloat16),
        ((300, 9000), np.float64),
    ],
)
def test_memory_is_what_an_analysis_allocates(shape, dtype):
    W = matrix(shape, dtype)
    rmtspec.analyze(matrix((40, 30)), noise="mp")  # imports and compiled code are no part of it
    tracemalloc.start()
    try:
        rmtspec.analyze(W, noise="mp")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Beside the formula: a number per row and per eigenvalue.
    np.testing.assert_allclose(peak, cost(*shape).memory, rtol=0.03)


def test_memory_bounds_a_float64_matrix_which_needs_no_copy():
    W = matrix((1200, 1200), np.float64)
    rmtspec.analyze(matrix((40, 30)), noise="mp")
    tracemalloc.start()
    try:
        rmtspec.analyze(W, noise="mp")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 8 * 1200**2 < peak < cost(1200, 1200).memory


def test_the_noise_model_costs_its_rounds_and_flips_and_needs_the_matrix_in_memory():
    plain, auto = cost(3000, 1000), cost(3000, 1000, "auto")
    assert auto.operations == 24 * plain.operations
    W = matrix((1500, 700))
    rmtspec.analyze(matrix((40, 30)))
    tracemalloc.start()
    try:
        rmtspec.analyze(W)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.5 * cost(1500, 700, "auto").memory < peak < cost(1500, 700, "auto").memory


def test_time_is_the_sum_of_its_parts():
    # One speed at all sides: the reduction's operations over that speed. The integral is summed at
    # 128 midpoints, which is off by 1 / (4 * 128^2).
    assert seconds(1, 1, INSTANT) == pytest.approx(_costs._OVERHEAD, rel=1e-12)
    gram = dataclasses.replace(INSTANT, gram=1e9)
    assert seconds(2000, 1000, gram) - _costs._OVERHEAD == pytest.approx(2.0, rel=1e-9)
    solver = dataclasses.replace(INSTANT, reduction=((256, 1e9), (3072, 1e9)))
    assert seconds(2000, 1000, solver) - _costs._OVERHEAD == pytest.approx(4 / 3, rel=1e-4)
    rest = dataclasses.replace(INSTANT, rest=1e-6)
    assert seconds(2000, 1000, rest) - _costs._OVERHEAD == pytest.approx(1.0, rel=1e-9)
    read = dataclasses.replace(INSTANT, read=1e6)
    assert seconds(2000, 1000, read) - _costs._OVERHEAD == pytest.approx(2.0, rel=1e-9)


def test_the_reduction_has_the_speed_of_each_side_it_goes_through():
    # A second per operation interpolates in the logarithm of the side: 1 at 100, 3 at 10,000.
    solver = dataclasses.replace(INSTANT, reduction=((100, 1.0), (10_000, 1 / 3)))
    within = seconds(100, 100, solver) - _costs._OVERHEAD
    assert within == pytest.approx(4 / 3 * 100**3, rel=1e-4)
    # Beyond 100, by parts: the integral of 4 j^2 (1 + ln(j / 100) / ln 10).
    logarithm = math.log(10.0)
    beyond = 4 / 3 * 1000**3 * 2 - (4 / 9) * (1000**3 - 100**3) / logarithm
    assert seconds(1000, 1000, solver) == pytest.approx(beyond, rel=1e-3)


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_a_longer_side_takes_longer(itemsize):
    sides = [1, 2, 16, 100, 255, 256, 257, 1000, 1024, 2000, 3072, 3073, 10_000, 128_000]
    for other in (1, 64, 1024, 5000):
        times = [seconds(side, other, SPEED, itemsize) for side in sides]
        assert np.all(np.diff(times) > 0)
    assert np.all(np.diff([seconds(side, side, SPEED, itemsize) for side in sides]) > 0)


def test_a_matrix_without_entries_takes_the_overhead():
    assert seconds(0, 5, SPEED) == _costs._OVERHEAD


def test_entries_of_one_byte_are_converted_slowest():
    one, two, four = (seconds(10_000, 256, SPEED, itemsize) for itemsize in (1, 2, 4))
    assert one > two > four


def test_calibrate_measures_this_machine():
    speed = calibrate()
    rates = [speed.gram, speed.read, *(rate for _, rate in speed.reduction)]
    # A core does between 0.1 and 10,000 operations a nanosecond.
    assert all(1e8 < rate < 1e13 for rate in rates[:1] + rates[2:])
    assert 1e6 < speed.read < 1e12
    assert 0.0 <= speed.rest < 1e-5
    # Products of matrices are not slower than a reduction whose half waits for memory.
    assert speed.gram > speed.reduction[-1][1]
    sides = [side for side, _ in speed.reduction]
    assert sides == sorted(sides)
    hash(speed)


def test_calibrate_is_quick():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        calibrate()
        times.append(time.perf_counter() - start)
    assert min(times) < 3.0  # 0.25 s on an idle machine


def taken(W):
    """Return the seconds of an analysis without those in which another process had the core."""
    wall, own = time.perf_counter(), time.process_time()
    rmtspec.analyze(W, noise="mp")
    # With several BLAS threads their times add up, and the wall's is the smaller one.
    wall, own = time.perf_counter() - wall, time.process_time() - own
    return min(wall, own or wall)


def test_the_estimate_of_a_small_matrix_is_of_the_right_order():
    W = matrix((256, 256))
    rmtspec.analyze(W, noise="mp")  # compiles
    truth = min(taken(W) for _ in range(20))
    assert 1 / 5 < seconds(256, 256, calibrate()) / truth < 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((256, 256), np.float32),
        ((768, 768), ml_dtypes.bfloat16),
        ((2048, 2048), np.float32),
        ((1024, 4096), ml_dtypes.bfloat16),
        ((50_000, 256), np.float32),
    ],
)
def test_the_estimate_is_near_the_truth(shape, dtype):
    W = matrix(shape, dtype)
    rmtspec.analyze(matrix((40, 30)), noise="mp")  # compiles
    estimates, truths = [], []
    for _ in range(5):  # another process may start between the two, or stop
        estimates.append(seconds(*shape, calibrate(), W.dtype.itemsize))
        truths.append(taken(W))
    assert 1 / 2.5 < np.median(estimates) / np.median(truths) < 2.5
