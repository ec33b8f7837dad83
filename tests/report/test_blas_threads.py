"""Work in this process: BLAS threads, one item at a time, errors as they are."""

import sys
import weakref

import numpy as np
import pytest
import scipy.linalg.blas  # noqa: F401  its BLAS is not that of numpy, and only loaded ones count
from threadpoolctl import ThreadpoolController, threadpool_limits

from rmtspec.report import parallel
from rmtspec.report.parallel import blas_threads, each


def threads():
    pools = ThreadpoolController().select(user_api="blas").info()
    return {pool["num_threads"] for pool in pools}


@pytest.fixture
def two():
    """BLAS with two threads, whatever the machine and its environment say."""
    with threadpool_limits(2, user_api="blas"):
        assert threads() == {2}
        yield


@pytest.mark.usefixtures("two")
def test_a_limit_holds_inside_and_is_undone():
    with blas_threads(1):
        assert threads() == {1}
    assert threads() == {2}
    with pytest.raises(KeyError), blas_threads(1):
        raise KeyError
    assert threads() == {2}
    with blas_threads(None):
        assert threads() == {2}


@pytest.mark.usefixtures("two")
def test_a_lower_limit_that_was_set_holds():
    with blas_threads(8):
        assert threads() == {2}
    with threadpool_limits(1, user_api="blas"):
        with blas_threads(2):
            assert threads() == {1}
        assert threads() == {1}


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(("given", "seen"), [(None, {2}), (1, {1}), (2, {2}), (64, {2})])
def test_each_call_has_the_threads_asked_for(given, seen):
    found = each(lambda _: threads(), [0, 1], n_jobs=1, threads=given)
    for _, inside in found:
        assert inside == seen
        assert threads() == {2}  # between calls the caller has its own


@pytest.mark.usefixtures("two")
def test_items_are_made_with_the_threads_asked_for():
    def items():
        for _ in range(2):
            assert threads() == {1}  # small matrices are read and solved here
            yield 0

    assert [index for index, _ in each(float, items(), n_jobs=1, threads=1)] == [0, 1]
    assert threads() == {2}


def test_the_libraries_are_looked_for_once_and_again_after_an_import(monkeypatch):
    parallel._pools.cache_clear()
    for _ in range(3):
        with blas_threads(1):
            pass
    assert parallel._pools.cache_info().misses == 1
    monkeypatch.setitem(sys.modules, "a_module_that_brings_a_library", object())
    with blas_threads(1):
        pass
    assert parallel._pools.cache_info().misses == 2


def test_in_order_one_at_a_time():
    events = []

    def items():
        for number in range(3):
            events.append(f"made {number}")
            yield number

    for index, result in each(lambda x: x * x, items(), n_jobs=1):
        events.append(f"{index}: {result}")
    assert events == ["made 0", "0: 0", "made 1", "1: 1", "made 2", "2: 4"]


def test_neither_item_nor_result_is_kept_while_the_next_is_made():
    alive = []

    def note(array):
        alive.append(weakref.ref(array))
        return array

    def items():
        for _ in range(3):
            assert [reference for reference in alive if reference() is not None] == []
            yield note(np.ones(3))

    for _, result in each(lambda array: note(array + 1), items(), n_jobs=1):
        del result
    assert len(alive) == 6


def test_an_error_is_raised_as_it_is():
    found = each(float, ["1", "two", "3"], n_jobs=1)
    assert next(found) == (0, 1.0)
    with pytest.raises(ValueError, match="could not convert string to float: 'two'"):
        next(found)


def test_nothing():
    assert list(each(float, [], n_jobs=1)) == []
    assert list(each(float, [], n_jobs=2)) == []
