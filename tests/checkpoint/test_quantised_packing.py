"""Codes of a few bits in words, against whole numbers of Python; steps of tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rmtspec.checkpoint.quantised.layout import E2M1
from rmtspec.checkpoint.quantised.packing import (
    stream_words,
    unpacked_awq,
    unpacked_pairs,
    unpacked_stream,
    unpacked_words,
    whole_words,
)
from rmtspec.checkpoint.quantised.unpacked import Unpacked, blocks, spacings

NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105003, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip


def words_of(number, count):
    """Return a whole number as words of 32 bits, the lowest first."""
    return np.array([number >> (32 * i) & (2**32 - 1) for i in range(count)], np.uint32)


@st.composite
def rows_of_codes(draw):
    bits, count = draw(st.integers(1, 8)), draw(st.integers(1, 70))
    row = st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)
    return bits, np.array(draw(st.lists(row, min_size=1, max_size=3)), np.uint8)


@given(rows_of_codes())
def test_a_stream_of_bits(case):
    bits, codes = case
    count = codes.shape[1]
    used = stream_words(count, bits)
    packed = [words_of(sum(int(c) << (bits * i) for i, c in enumerate(row)), used) for row in codes]
    words = np.array(packed).view(np.int32)
    assert_array_equal(unpacked_stream(words, bits, count), codes)


@given(rows_of_codes())
def test_whole_codes_in_each_word(case):
    bits, codes = case
    count, per_word = codes.shape[1], 32 // case[0]
    packed = [
        [sum(int(c) << (bits * i) for i, c in enumerate(row[start : start + per_word]))
         for start in range(0, count, per_word)]
        for row in codes
    ]  # fmt: skip
    words = np.array(packed, np.uint32).view(np.int32)
    assert words.shape[1] == whole_words(count, bits)
    assert_array_equal(unpacked_words(words, bits, count), codes)


def test_the_order_of_awq():
    codes = np.arange(16, dtype=np.uint8)[None] % 16
    word = 0
    for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):  # as in its from_linear
        word |= int(codes[0, column]) << (4 * place)
    second = sum((8 + c) << (4 * i) for i, c in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
    words = np.array([[word, second]], np.uint32).view(np.int32)
    assert_array_equal(unpacked_awq(words), codes)


def test_pairs():
    assert_array_equal(unpacked_pairs(np.array([[0x21, 0xF0]], np.uint8)), [[1, 2, 0, 15]])


def test_spacings():
    assert_array_equal(spacings(np.arange(16.0)), np.ones(16))
    assert_array_equal(spacings(np.array([3.0])), [0])
    found = spacings(E2M1)
    assert_allclose(found[:4], 0.5)
    assert_allclose(found[4], np.sqrt((0.5**3 + 1) / 1.5))  # 2: down to 1.5, up to 3
    assert_array_equal(found[8:], found[:8])
    assert found[0] == found[8]  # both zeros


@pytest.mark.parametrize("table", [NF4, E2M1, np.arange(16) - 8.0], ids=["nf4", "e2m1", "int4"])
def test_steps_are_as_large_as_the_errors(table):
    table = np.asarray(table, np.float32)
    rng = np.random.default_rng(0)
    # Uniform within the table, whose errors are those that the steps assume, up to the ends.
    values = rng.uniform(table.min(), table.max(), (400, 200)).astype(np.float32)
    codes = np.abs(values[..., None] - table).argmin(axis=-1).astype(np.uint8)
    scales = rng.uniform(0.5, 2.0, (400, 2)).astype(np.float32)
    one = Unpacked(codes, table, scales, np.arange(400), blocks(200, 100))
    spread = scales.repeat(100, axis=1)
    assert_array_equal(one.values(), table[codes] * spread)
    errors = one.values() - values * spread
    # 80,000 errors, relative spread of the mean square 0.3%; the halves beyond the ends are empty
    assert_allclose((one.steps().astype(float) ** 2).mean() / 12, (errors**2).mean(), rtol=0.02)


def test_rows_in_parts_are_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    codes, scales = rng.integers(0, 16, (33, 24)), rng.standard_normal((11, 3))
    zeros = rng.integers(0, 16, (11, 3)).astype(np.float32)
    one = Unpacked(
        codes.astype(np.uint8), np.arange(16, dtype=np.float32), scales.astype(np.float32),
        row_groups=blocks(33, 3), column_groups=blocks(24, 8), zeros=zeros,
    )  # fmt: skip
    whole = one.values()
    monkeypatch.setattr("rmtspec.checkpoint.quantised.unpacked._ENTRIES", 50)
    assert_array_equal(one.values(), whole)
    for row, column in ((0, 0), (32, 23), (17, 9)):
        group = row // 3, column // 8
        expected = (codes[row, column] - zeros[group]) * np.float32(scales[group])
        assert_allclose(whole[row, column], expected, rtol=1e-6)  # float32
