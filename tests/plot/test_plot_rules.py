"""The figure of ranks by rule: where the marks are, sizes that are extreme, bad input."""

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles

SPEC = rmtspec.spectrum(ensembles.spiked(120, 80, [2.0, 3.0, 6.0], rng=1))


def drawn(spec, ranks):
    ax = rmtspec.plot.plot_rules(spec, ranks, ax=Figure(figsize=(4, 4)).subplots())
    ax.figure.canvas.draw()
    return ax


def test_a_line_leads_from_each_rank_to_its_singular_value():
    ax = drawn(SPEC, {"bema": 3, "exact": 80, "none": 0})
    values = SPEC.singular_values[::-1]
    curve, _, *rest = ax.lines
    assert_allclose(curve.get_ydata(), values)
    lines, marks = rest[::2], rest[1::2]
    for line, mark, rank in zip(lines, marks, (3, 80, 0), strict=True):
        assert list(line.get_xdata()) == [rank, rank]
        assert list(mark.get_xdata()) == [rank]
        if rank:
            end = ax.get_xaxis_transform().transform((rank, line.get_ydata()[1]))
            assert_allclose(end, ax.transData.transform((rank, values[rank - 1])), atol=0.1)
    assert marks[2].get_markerfacecolor() == "none"
    heights = [mark.get_ydata()[0] for mark in marks]
    assert heights == sorted(heights, reverse=True)


def test_the_curve_lies_above_the_names():
    ax = drawn(SPEC, dict.fromkeys([f"rule {k}" for k in range(10)], 3))
    high = ax.transAxes.inverted().transform(ax.transData.transform((80, SPEC.singular_values[0])))
    assert high[1] > max(text.get_position()[1] for text in ax.texts[::2])


@pytest.mark.parametrize(
    "values", [[1.0], [1.0] * 9, [1e-300, 1e-290], [1e-8, 1.0, 1e12], [0.0] * 5, [0.0, 0.0, 4.0]]
)
def test_extreme_spectra_are_drawn(values):
    spec = rmtspec.Spectrum(values, n=20)
    ax = drawn(spec, {"exact": spec.numerical_rank})
    assert len(ax.get_yticks()) <= 7


def test_text_is_legible_on_a_dark_background():
    with mpl.style.context("dark_background"):
        ax = drawn(SPEC, {"bema": 3})
    assert {text.get_color() for text in ax.texts} == {"white"}
    with mpl.rc_context({"axes.facecolor": "black"}):
        ax = drawn(SPEC, {"bema": 3})
    assert {text.get_color() for text in ax.texts} == {"#e8eaed"}


def test_a_figure_of_its_own_grows_with_the_rules():
    from matplotlib import pyplot

    few = rmtspec.plot.plot_rules(SPEC, {"a": 1}).figure
    many = rmtspec.plot.plot_rules(SPEC, {str(k): k for k in range(10)}).figure
    assert many.get_size_inches()[1] > few.get_size_inches()[1] + 2
    assert np.isclose(many.get_size_inches()[0], few.get_size_inches()[0])
    pyplot.close(few)
    pyplot.close(many)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([3], "`ranks` is a list; expected a mapping"),
        ({}, "`ranks` is empty"),
        ({"a": 81}, r"`ranks\['a'\]` is 81; expected a whole number from 0 to 80"),
        ({"a": 1.5}, "whole number"),
    ],
)
def test_bad_ranks(ranks, words):
    with pytest.raises(rmtspec.RmtspecError, match=words):
        rmtspec.plot.plot_rules(SPEC, ranks)
