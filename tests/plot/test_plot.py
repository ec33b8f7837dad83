"""Plots: what is drawn, where, and under which name."""

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.plot import plot_cdf_fit, plot_esd, plot_scree

DRAW = [plot_esd, plot_cdf_fit, plot_scree]


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


@pytest.fixture(scope="module")
def planted():
    spec = rmtspec.spectrum(ensembles.spiked(500, 300, [1.7, 3.0, 20.0], rng=0))
    fit = rmtspec.bema(spec, beta=0.01)
    assert (fit.refinement, fit.n_removed, fit.n_spikes) == ("refined", 3, 3)
    return spec, fit


@pytest.fixture(scope="module")
def low_rank():
    rng = np.random.default_rng(0)
    spec = rmtspec.spectrum(rng.standard_normal((60, 3)) @ rng.standard_normal((3, 40)))
    fit = rmtspec.bema(spec)
    assert fit.reason == "no bulk"
    return spec, fit


def line(ax, start):
    """The one line whose legend entry begins with `start`."""
    found = [line for line in ax.get_lines() if line.get_label().startswith(start)]
    assert len(found) == 1
    return found[0]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def bars(ax):
    return [patch for container in ax.containers for patch in container]


def words(ax):
    return " ".join(text.get_text() for text in ax.texts).replace("\n", " ")


def test_esd_bars_are_a_density_over_all_eigenvalues(planted, ax):
    spec, _ = planted
    edges = np.linspace(0.0, 3.0, 31)
    plot_esd(spec, ax=ax, bins=edges, xlim=(0.0, 3.0))
    heights = [bar.get_height() for bar in bars(ax)]
    expected = np.histogram(spec.eigenvalues, edges)[0] / (300 * 0.1)
    assert_allclose(heights, expected, rtol=1e-12)  # edges by linspace
    assert_allclose(sum(heights) * 0.1, np.mean(spec.eigenvalues <= 3.0), rtol=1e-12)


def test_esd_scales_the_density_by_the_bulk_share(planted, ax):
    spec, fit = planted
    plot_esd(spec, fit, ax=ax)
    x, y = line(ax, "Marchenko-Pastur").get_data()
    assert_allclose(y, (300 - 3) / 300 * fit.law.pdf(x))
    # 512 points, dense at the edges: the trapezoid rule is good to a few 1e-4.
    assert_allclose(np.trapezoid(y, x), 297 / 300, rtol=1e-3)


def test_esd_marks_edges_threshold_and_every_spike(planted, ax):
    spec, fit = planted
    plot_esd(spec, fit, ax=ax)
    assert line(ax, "threshold").get_xdata()[0] == fit.threshold
    assert line(ax, "edges").get_xdata()[0] == fit.bulk_edge
    assert f"edges {fit.lower_edge:.4g} and {fit.bulk_edge:.4g}" in legend(ax)
    assert_allclose(line(ax, "spikes (3), the largest").get_xdata(), fit.spikes)
    low, high = ax.get_xlim()
    assert low == 0.0
    assert high > fit.spikes[-1] > 100.0 * fit.bulk_edge
    styles = {line(ax, name).get_linestyle() for name in ("Marchenko", "edges", "threshold")}
    assert len(styles) == 3  # told apart without colour


def test_esd_keeps_the_bulk_wide_where_spikes_are_far(planted, ax):
    spec, fit = planted
    plot_esd(spec, fit, ax=ax)
    ax.figure.draw_without_rendering()
    place = ax.transAxes.inverted().transform
    across = [place(ax.transData.transform((x, 0.0)))[0] for x in (fit.bulk_edge, *fit.spikes)]
    assert 0.5 < across[0] < 0.74
    assert (np.diff(across) > 0.01).all()
    assert across[-1] < 1.0
    assert "log scale" in words(ax)
    back = ax.transData.inverted().transform(ax.transData.transform((fit.spikes[-1], 0.5)))
    assert_allclose(back, (fit.spikes[-1], 0.5), rtol=1e-9)  # of a log and an exp


def test_esd_of_near_spikes_needs_no_second_scale(ax):
    spec = rmtspec.spectrum(ensembles.spiked(500, 300, [1.7, 2.0], rng=0))
    fit = rmtspec.bema(spec, beta=0.01)
    plot_esd(spec, fit, ax=ax)
    assert ax.get_xscale() == "linear"
    assert_allclose(line(ax, "spikes (2)").get_xdata(), fit.spikes)
    assert ax.get_xlim()[1] > fit.spikes[-1]


def test_esd_counts_in_words_the_spikes_outside_of_a_view(planted, ax):
    spec, fit = planted
    high = float(fit.spikes[1]) + 1.0
    plot_esd(spec, fit, ax=ax, xlim=(0.0, high))
    assert_allclose(line(ax, "spikes in view (2 of 3)").get_xdata(), fit.spikes[:2])
    assert "1 of 3 spikes beyond" in words(ax)
    assert f"{fit.spikes[-1]:.3g}" in words(ax)
    assert ax.get_xlim() == (0.0, high)


def test_esd_without_a_fit_shows_all_of_the_data(planted, ax):
    spec, _ = planted
    plot_esd(spec, ax=ax)
    assert ax.get_xlim()[1] > spec.eigenvalues[-1]
    beyond = line(ax, "eigenvalues beyond the bars").get_xdata()
    edge = max(bar.get_x() + bar.get_width() for bar in bars(ax))
    assert_allclose(beyond, spec.eigenvalues[spec.eigenvalues > edge])
    assert sorted(legend(ax)) == [
        "eigenvalues (p = 300)",
        f"eigenvalues beyond the bars ({len(beyond)})",
    ]
    assert ax.get_xlabel() == "eigenvalue $s^2 / n$"
    assert ax.get_ylabel() == "density"


def test_esd_counts_in_words_what_a_bare_view_leaves_out(planted, ax):
    spec, _ = planted
    plot_esd(spec, ax=ax, bins=10, xlim=(0.5, 2.0))
    assert len(bars(ax)) == 10
    assert f"{np.sum(spec.eigenvalues > 2.0)} eigenvalues beyond 2," in words(ax)
    assert f"{np.sum(spec.eigenvalues < 0.5)} eigenvalues below 0.5" in words(ax)


def test_esd_with_a_law_of_ones_own(planted, ax):
    spec, _ = planted
    law = rmtspec.MarchenkoPastur(0.6, 2.0)
    plot_esd(spec, law, ax=ax)
    x, y = line(ax, "Marchenko-Pastur, variance 2").get_data()
    assert_allclose(y, law.pdf(x))
    assert not any("threshold" in text for text in legend(ax))
    assert any(text.startswith("eigenvalues beyond the bars") for text in legend(ax))
    assert ax.get_legend().get_title().get_text() == ""  # no fit, no verdict


def test_esd_at_ratio_1_keeps_the_pole_out_of_the_scale(ax):
    spec = rmtspec.spectrum(ensembles.wishart(400, 400, rng=0))
    plot_esd(spec, rmtspec.bema(spec), ax=ax)
    highest = max(bar.get_height() for bar in bars(ax))
    assert highest < ax.get_ylim()[1] < 2.0 * highest
    assert np.isfinite(line(ax, "Marchenko-Pastur").get_ydata()).all()


def test_esd_of_a_far_narrow_bulk_fills_the_view(ax):
    spec = rmtspec.spectrum(ensembles.wishart(20_000, 50, rng=0))
    fit = rmtspec.bema(spec)
    plot_esd(spec, fit, ax=ax)
    low, high = ax.get_xlim()
    assert 0.0 < low < fit.lower_edge
    assert fit.bulk_edge - fit.lower_edge > 0.5 * (high - low)


def test_no_bulk_is_said(low_rank):
    spec, fit = low_rank
    for draw in DRAW:
        ax = draw(spec, fit, ax=Figure().subplots())
        assert ax.get_legend().get_title().get_text() == "no fit: no bulk"
        assert not any("threshold" in text or "Marchenko" in text for text in legend(ax))


def test_cdf_compares_the_lowest_eigenvalues_at_midpoints(planted, ax):
    spec, fit = planted
    test = rmtspec.fit_test(spec, fit)
    plot_cdf_fit(spec, fit, test=test, ax=ax)
    x, y = line(ax, "eigenvalues (lowest 297 of 300)").get_data()
    assert_allclose(x, spec.eigenvalues[:297])
    assert_allclose(y, (np.arange(1, 298) - 0.5) / 297)
    x, y = line(ax, "Marchenko-Pastur").get_data()
    assert_allclose(y, fit.law.cdf(x))
    gap = line(ax, "largest gap")
    assert_allclose(np.ptp(gap.get_ydata()), test.statistic, rtol=1e-9)  # a difference near 0.5
    shade = next(patch for patch in ax.patches if patch.get_label().startswith("compared"))
    ends = spec.eigenvalues[[fit.window.first - 1, fit.window.last - 1]]
    assert_allclose([shade.get_x(), shade.get_x() + shade.get_width()], ends)
    title = ax.get_legend().get_title().get_text()
    assert title == f"fit accepted: p-value {test.pvalue:.3g}"


def test_scree_puts_spikes_above_the_threshold_line(planted, ax):
    spec, fit = planted
    plot_scree(spec, fit, ax=ax)
    level = line(ax, "threshold").get_ydata()[0]
    assert_allclose(level, np.sqrt(500 * fit.threshold))
    spikes, bulk = line(ax, "spikes (3)"), line(ax, "bulk (297)")
    assert (spikes.get_ydata() > level).all()
    assert (bulk.get_ydata() <= level).all()
    assert list(spikes.get_xdata()) == [1, 2, 3]
    assert_allclose(
        np.concatenate([spikes.get_ydata(), bulk.get_ydata()]), spec.singular_values[::-1]
    )
    assert spikes.get_color() != bulk.get_color()
    assert spikes.get_marker() != bulk.get_marker()
    assert ax.get_yscale() == "log"


def test_scree_of_zeros():
    spec = rmtspec.Spectrum([0.0, 0.0, 1.0, 4.0], n=4)
    ax = plot_scree(spec, ax=Figure().subplots())
    assert "2 singular values of 0 not shown" in words(ax)
    assert_allclose(line(ax, "singular values (2)").get_ydata(), [4.0, 2.0])
    ax = plot_scree(rmtspec.Spectrum([0.0], n=4), ax=Figure().subplots())
    assert "1 singular value of 0 not shown" in words(ax)
    ax = plot_esd(rmtspec.Spectrum([0.0], n=4), ax=Figure().subplots())
    assert ax.get_xlim() == (0.0, 1.0)


@pytest.mark.parametrize("draw", DRAW)
def test_a_figure_is_made_only_where_no_axes_are_given(planted, draw, ax):
    spec, fit = planted
    before = pyplot.get_fignums()
    assert draw(spec, fit, ax=ax) is ax
    assert pyplot.get_fignums() == before
    made = draw(spec, fit)
    assert len(pyplot.get_fignums()) == len(before) + 1
    assert made.figure.get_layout_engine() is not None
    made.figure.draw_without_rendering()
    pyplot.close(made.figure)


@pytest.mark.parametrize("draw", DRAW)
def test_wrong_types_teach(planted, draw, ax):
    spec, fit = planted
    with pytest.raises(InvalidTypeError, match=r"`spectrum` is a ndarray.*rmtspec.spectrum\(W\)"):
        draw(np.eye(3), fit, ax=ax)
    with pytest.raises(InvalidTypeError, match=r"`fit` is a float; expected a BulkFit"):
        draw(spec, 2.0, ax=ax)
    with pytest.raises(InvalidTypeError, match=r"`ax` is a Figure; .*plt.subplots"):
        draw(spec, fit, ax=Figure())
    other = rmtspec.bema(rmtspec.spectrum(ensembles.wishart(60, 50, rng=0)))
    with pytest.raises(InvalidValueError, match=r"n, p = 60, 50"):
        draw(spec, other, ax=ax)


def test_wrong_options_teach(planted, ax):
    spec, fit = planted
    with pytest.raises(InvalidTypeError, match=r"`test` is a BulkFit; expected a FitTest"):
        plot_cdf_fit(spec, fit, test=fit, ax=ax)
    with pytest.raises(InvalidValueError, match=r"`bins` is 0; expected a whole number at least 1"):
        plot_esd(spec, fit, ax=ax, bins=0)
    with pytest.raises(InvalidValueError, match=r"at least two increasing edges"):
        plot_esd(spec, fit, ax=ax, bins=[1.0, 1.0])
    for view in ((2.0, 1.0), (0.0, np.inf), (0.0, 1.0, 2.0)):
        with pytest.raises(InvalidValueError, match=r"`xlim` is .* two finite increasing"):
            plot_esd(spec, fit, ax=ax, xlim=view)


def test_report_plot_carries_its_name(ax):
    report = rmtspec.analyze(ensembles.wishart(60, 50, rng=0), name="W1")
    assert report.plot(ax) is ax
    assert ax.get_title() == "W1"
