"""Verdicts in the pictures, legends, names that stay text, backgrounds, small Axes."""

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import rmtspec
from rmtspec import ensembles
from rmtspec.errors import InvalidOptionError, InvalidTypeError
from rmtspec.plot import plot_cdf_fit, plot_esd, plot_scree
from rmtspec.plot.look import look_of
from rmtspec.plot.words import wrapped

DRAW = [plot_esd, plot_cdf_fit, plot_scree]
NOISE = ensembles.wishart(120, 80, rng=0)
WALK = np.cumsum(np.random.default_rng(0).standard_normal((200, 150)), 1)
NAME = r"model.$x_1$.self_attn.q_proj_$y$ 50%\weight"


def axes(size=(7.0, 4.2)):
    return Figure(figsize=size, layout="constrained").subplots()


def title(ax):
    return " ".join(ax.get_legend().get_title().get_text().split())


def law(ax):
    return next(line for line in ax.get_lines() if line.get_label().startswith("Marchenko"))


@pytest.mark.parametrize("draw", [plot_esd, plot_cdf_fit])
def test_a_refused_fit_looks_refused(draw):
    drawn = {}
    for name, W in (("noise", NOISE), ("walk", WALK)):
        spec = rmtspec.spectrum(W)
        fit = rmtspec.bema(spec)
        test = rmtspec.fit_test(spec, fit)
        assert test.accepted is (name == "noise")
        ax = drawn[name] = draw(spec, fit, ax=axes())
        assert (
            title(ax)
            == f"fit {'accepted' if test.accepted else 'refused'}: p-value {test.pvalue:.3g}"
        )
    good, bad = law(drawn["noise"]), law(drawn["walk"])
    assert (good.get_linestyle(), bad.get_linestyle()) == ("-", "--")
    assert good.get_color() != bad.get_color()
    assert bad.get_label().endswith("refused")
    assert "refused" not in good.get_label()
    colours = [ax.get_legend().get_title().get_color() for ax in drawn.values()]
    assert colours[0] != colours[1]


def test_a_given_test_decides():
    spec = rmtspec.spectrum(NOISE)
    fit = rmtspec.bema(spec)
    test = rmtspec.fit_test(spec, fit, cutoff=1e-6)
    ax = plot_esd(spec, fit, test=test, ax=axes())
    assert title(ax).startswith("fit refused: statistic")
    assert "above 1e-06" in title(ax)
    assert law(ax).get_label().endswith("refused")


@pytest.mark.parametrize("kind", ["esd", "cdf", "scree"])
def test_the_verdict_of_the_noise_model_stands_first(kind):
    rows = ensembles.spiked(200, 120, [9.0], rng=0) * np.exp(
        np.random.default_rng(0).normal(size=(200, 1))
    )
    report = rmtspec.analyze(rows, name="scaled")
    assert report.noise.verdict == "noise-like bulk"
    assert not report.test.accepted
    ax = report.plot(axes(), kind=kind)
    assert title(ax).startswith(f"noise-like bulk: {report.noise.reason}")
    assert f"law of one variance refused: p-value {report.test.pvalue:.3g}" in title(ax)
    walk = rmtspec.analyze(WALK[:, ::-1] * 3, noise="mp").plot(axes(), kind=kind)
    assert "does not fit" in title(walk)


@pytest.mark.parametrize("draw", DRAW)
def test_legends(draw):
    spec = rmtspec.spectrum(NOISE)
    fit = rmtspec.bema(spec)
    inside, outside, none = (
        draw(spec, fit, ax=axes(), legend=legend) for legend in ("inside", "outside", None)
    )
    for ax in (inside, outside, none):
        ax.figure.draw_without_rendering()
    assert inside.get_legend().get_window_extent().x1 < inside.get_window_extent().x1
    assert outside.get_legend().get_window_extent().x0 > outside.get_window_extent().x1
    assert outside.get_legend().get_window_extent().x1 < outside.figure.bbox.x1
    assert none.get_legend() is None
    assert any("fit accepted" in text.get_text() for text in none.texts)
    for wrong in ("right", 3):
        with pytest.raises(InvalidOptionError, match=r"`legend` is .*'inside', 'outside' or None"):
            draw(spec, fit, ax=axes(), legend=wrong)


@pytest.mark.parametrize("draw", DRAW)
def test_words_and_lines_are_legible_on_any_background(draw):
    spec = rmtspec.spectrum(ensembles.spiked(150, 100, [2.0, 8.0], rng=0))
    fit = rmtspec.bema(spec)
    for style in ("default", "dark_background"):
        with mpl.style.context(style):
            ax = draw(spec, fit, ax=axes())
        paper = np.mean(mpl.colors.to_rgb(ax.get_facecolor()))
        texts = [*ax.get_legend().get_texts(), ax.get_legend().get_title(), *ax.texts]
        for colour in [t.get_color() for t in texts] + [x.get_color() for x in ax.get_lines()]:
            assert abs(np.mean(mpl.colors.to_rgb(colour)) - paper) > 0.3
        assert to_hex(ax.get_legend().get_frame().get_facecolor()) == to_hex(ax.get_facecolor())


def test_a_transparent_figure_goes_by_its_words():
    with mpl.style.context("dark_background"):
        ax = axes()
    ax.patch.set_alpha(0.0)
    ax.figure.patch.set_alpha(0.0)
    assert look_of(ax).law == "#ff8a6b"
    ax.xaxis.label.set_color("black")
    assert look_of(ax).law == "#c2371a"


@pytest.mark.parametrize("kind", ["esd", "cdf", "scree"])
def test_names_stay_text(kind):
    ax = rmtspec.analyze(NOISE, name=NAME).plot(axes(), kind=kind)
    ax.figure.draw_without_rendering()
    assert ax.get_title().replace("\n", "") == NAME
    assert not ax.title.get_parse_math()


def test_long_names_are_wrapped():
    assert wrapped("short", 20) == "short"
    lines = wrapped("model.layers.11.self_attn.q_proj.weight", 16).splitlines()
    assert "".join(lines) == "model.layers.11.self_attn.q_proj.weight"
    assert max(map(len, lines)) <= 17
    lines = wrapped("x" * 1000, 20).splitlines()
    assert len(lines) <= 4
    assert "..." in "".join(lines)
    assert "\n" not in wrapped("a\nb", 20)
    report = rmtspec.analyze(NOISE, name="block." * 50)
    for size in ((7.0, 4.2), (3.0, 2.0)):
        ax = report.plot(axes(size))
        ax.figure.draw_without_rendering()
        box = ax.title.get_window_extent()
        assert ax.figure.bbox.x0 <= box.x0
        assert box.x1 <= ax.figure.bbox.x1
        assert ax.get_window_extent().height > 0.3 * ax.figure.bbox.height


@pytest.mark.parametrize("kind", ["esd", "cdf", "scree"])
@pytest.mark.parametrize(
    "W",
    [
        np.random.default_rng(0).standard_normal((3, 1)),
        np.random.default_rng(0).standard_normal((12, 9)),
        np.ones((30, 20)),
        np.zeros((30, 20)),
        1e-140 * NOISE,
        1e120 * NOISE,
    ],
    ids=["one", "tiny", "rank 1", "zeros", "small", "large"],
)
def test_extreme_matrices_are_drawn_in_small_axes(kind, W):
    ax = rmtspec.analyze(W, noise="mp").plot(axes((3.0, 2.0)), kind=kind)
    ax.figure.draw_without_rendering()
    assert title(ax)


def test_all_kinds_side_by_side():
    from matplotlib import pyplot

    report = rmtspec.analyze(NOISE, name="W1")
    drawn = report.plot(kind="all")
    assert [ax.get_ylabel() for ax in drawn] == [
        "density", "share of the bulk at or below", "singular value $s$",
    ]  # fmt: skip
    pyplot.close(drawn[0].figure)
    three = Figure().subplots(1, 3)
    assert report.plot(three, kind="all") == tuple(three)
    for wrong in (axes(), three[:2], [1, 2, 3]):
        with pytest.raises(InvalidTypeError, match=r"plt.subplots"):
            report.plot(wrong, kind="all")
    with pytest.raises(InvalidOptionError, match=r"`kind` is 'pdf'; expected one of esd, cdf"):
        report.plot(kind="pdf")
    with pytest.raises(InvalidTypeError, match=r"`noise` is a FitTest; expected a NoiseFit"):
        plot_esd(report.spectrum, report.fit, noise=report.test, ax=axes())
