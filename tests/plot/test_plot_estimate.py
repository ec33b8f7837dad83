"""The picture of an estimated spectrum."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import rmtspec
from rmtspec.errors import InvalidOptionError, InvalidTypeError
from rmtspec.plot import plot_estimate

WORDS = "an estimate: nothing was tested"


@pytest.fixture(scope="module")
def estimate():
    W = rmtspec.ensembles.spiked(900, 600, [3, 20], rng=0)
    return rmtspec.estimate_spectrum(W, beta=0.01)


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_bars_law_edge_and_spikes(estimate):
    ax = plot_estimate(estimate, ax=Figure().subplots())
    said = texts(ax)
    assert ax.get_legend().get_title().get_text() == WORDS
    assert f"edge {estimate.bulk_edge:.4g} ± {estimate.bulk_edge_error:.2g}" in said
    assert any(words.startswith("spikes (2, from ") for words in said)
    bars = [patch for patch in ax.patches if patch.get_label() == "_nolegend_"]
    low = bars[0].get_x()
    edges = low + bars[0].get_width() * np.arange(41)
    np.testing.assert_allclose([bar.get_height() for bar in bars[:40]], estimate.density(edges)[0])
    assert ax.get_xlim()[1] >= estimate.largest[0]


@pytest.mark.parametrize("legend", ["outside", None])
def test_without_a_legend_it_says_that_it_is_an_estimate(estimate, legend):
    ax = plot_estimate(estimate, ax=Figure().subplots(), legend=legend)
    title = ax.get_legend().get_title().get_text() if legend else ""
    assert WORDS in title + " ".join(text.get_text() for text in ax.texts)


def test_small_axes_have_short_names(estimate):
    ax = plot_estimate(estimate, ax=Figure(figsize=(3.0, 2.0)).subplots())
    assert "spikes (2)" in texts(ax)


def test_noise_alone_needs_no_broken_axis():
    found = rmtspec.estimate_spectrum(rmtspec.ensembles.wishart(900, 600, rng=0), beta=0.01)
    ax = plot_estimate(found, ax=Figure().subplots())
    assert ax.get_xscale() == "linear"
    assert not any("spikes" in words for words in texts(ax))


def test_shares_with_their_errors(estimate):
    ax = plot_estimate(estimate, kind="cdf", ax=Figure().subplots())
    assert ax.get_legend().get_title().get_text() == WORDS
    assert f"edge {estimate.bulk_edge:.4g} ± {estimate.bulk_edge_error:.2g}" in texts(ax)
    (line,) = [line for line in ax.lines if line.get_label() == "estimated share (of 600)"]
    np.testing.assert_array_equal(line.get_ydata(), estimate.cdf(line.get_xdata()))
    band = ax.collections[0].get_datalim(ax.transData)
    assert band.y1 <= 1.0
    (law,) = [line for line in ax.lines if line.get_label() == "Marchenko-Pastur"]
    assert law.get_ydata()[-1] == pytest.approx(598 / 600)


def test_largest_by_rank(estimate):
    ax = plot_estimate(estimate, kind="scree", ax=Figure().subplots())
    spikes = ax.containers[0]
    assert spikes.get_label() == "spikes (2)"
    np.testing.assert_allclose(
        spikes.lines[0].get_ydata(), np.sqrt(900 * estimate.largest[:2]), rtol=1e-12
    )
    assert ax.containers[1].get_label().startswith("largest of the bulk (")
    assert f"threshold {np.sqrt(900 * estimate.threshold):.4g}" in texts(ax)


@pytest.mark.parametrize("kind", ["esd", "cdf", "scree"])
def test_more_spikes_than_were_found(kind):
    W = rmtspec.ensembles.spiked(900, 600, list(np.linspace(4.0, 9.0, 210)), rng=0)
    found = rmtspec.estimate_spectrum(W)
    assert found.n_spikes > len(found.largest)
    ax = plot_estimate(found, kind=kind, ax=Figure().subplots())
    if kind == "scree":
        assert f"spikes (150 of {found.n_spikes})" in texts(ax)


@pytest.mark.parametrize("kind", ["esd", "cdf", "scree"])
def test_a_matrix_of_low_rank(kind):
    W = np.outer(np.arange(1.0, 401.0), np.arange(1.0, 301.0))
    plot_estimate(rmtspec.estimate_spectrum(W), kind=kind, ax=Figure().subplots())


def test_a_new_figure_is_made(estimate):
    assert plot_estimate(estimate).figure is plt.gcf()
    plt.close("all")


def test_wrong_input_teaches(estimate):
    with pytest.raises(InvalidTypeError, match=r"rmtspec\.estimate_spectrum\(W\)"):
        plot_estimate(np.eye(3))
    with pytest.raises(InvalidTypeError, match="matplotlib Axes"):
        plot_estimate(estimate, ax=3)
    with pytest.raises(InvalidOptionError, match="`kind` is 'all'"):
        plot_estimate(estimate, kind="all")
    with pytest.raises(InvalidOptionError, match="legend"):
        plot_estimate(estimate, legend="below")
