"""The figures of directions: pictures in a grid, and nearness against random directions."""

import io

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.testing import assert_allclose

import rmtspec
from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.plot.images import pixels, rendered

RNG = np.random.default_rng(0)


def grid(images, captions=None, **options):
    names = captions or [str(i) for i in range(len(images))]
    ax = rmtspec.plot.plot_images(images, names, ax=Figure().subplots(), **options)
    ax.figure.canvas.draw()
    return ax


def test_images_stand_side_by_side_and_do_not_touch():
    ax = grid([RNG.standard_normal((8, 8)) for _ in range(7)], columns=3)
    extents = [image.get_extent() for image in ax.images]
    assert len({extent[3] for extent in extents}) == 3  # rows
    assert extents[1][0] > extents[0][1]
    assert extents[3][3] < extents[0][2]
    for image, words in zip(ax.images, ax.texts, strict=True):
        left, right, bottom, _ = image.get_extent()
        assert left < words.get_position()[0] < right
        assert words.get_position()[1] < bottom


def test_the_scale_is_symmetric_about_0():
    (image,) = grid([np.array([[0.0, 1.0], [-2.0, 0.0]])]).images
    assert image.get_clim() == (-1.0, 1.0)
    assert_allclose(image.get_array(), [[0.0, 0.5], [-1.0, 0.0]])


def test_three_channels_are_colours_with_grey_for_0():
    channels = np.zeros((3, 2, 2))
    channels[0, 0, 0], channels[2, 1, 1] = 4.0, -4.0
    shown, options = rendered(channels)
    assert options == {}
    assert_allclose(shown[0, 0], [1.0, 0.5, 0.5])
    assert_allclose(shown[1, 1], [0.5, 0.5, 0.0])


def test_other_numbers_of_channels_are_tiles():
    channels = np.arange(1, 17, dtype=float)[:, None, None] * np.ones((16, 3, 3))
    shown, _ = rendered(channels)
    assert shown.shape == (15, 15)
    assert np.isnan(shown[3]).all()
    assert_allclose(shown[::4, ::4].ravel() * 16, np.arange(1, 17))


def test_an_image_that_is_wide_keeps_its_proportions():
    (image,) = grid([np.ones((4, 16))]).images
    left, right, bottom, top = image.get_extent()
    assert_allclose((top - bottom) / (right - left), 0.25)


def test_zeros_are_drawn_and_pixels_are_a_png():
    grid([np.zeros((3, 3))])
    picture = imread(io.BytesIO(pixels(np.array([[1.0, -1.0, 0.0]]))))
    assert picture.shape == (1, 3, 4)
    red, blue, white = picture[0, :, :3]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert white.min() > 0.95
    tiles = imread(io.BytesIO(pixels(np.ones((2, 2, 2)))))
    assert tiles[..., 3].min() == 0.0  # the gap is transparent


def test_captions_are_legible_on_a_dark_background_and_no_formulas():
    with mpl.rc_context({"text.color": "white"}):
        ax = grid([np.eye(2)], ["a_1 $x"])
    assert ax.texts[0].get_color() == "white"
    assert not ax.texts[0].get_parse_math()


def test_wrong_images_are_refused():
    for images, names in (([], []), ([np.eye(2)], []), ([np.eye(2)], ["a", "b"])):
        with pytest.raises(InvalidValueError, match="expected one or more, and as many captions"):
            rmtspec.plot.plot_images(images, names)
    with pytest.raises(InvalidValueError, match=r"has shape \(3,\); expected"):
        grid([np.ones(3)])
    with pytest.raises(InvalidTypeError, match="expected matplotlib Axes"):
        rmtspec.plot.plot_images([np.eye(2)], ["a"], ax="here")


def test_nearness_stands_before_the_range_of_random_directions():
    ax = rmtspec.plot.plot_nearness([0.5, 0.1], np.linspace(0, 0.2, 101), ax=Figure().subplots())
    mean, values = ax.lines
    assert_allclose(mean.get_ydata(), 0.1)
    assert_allclose(values.get_ydata(), [0.5, 0.1])
    (band,) = ax.patches
    assert_allclose([band.get_y(), band.get_y() + band.get_height()], [0.01, 0.19])
    with pytest.raises(InvalidValueError, match="one number or more"):
        rmtspec.plot.plot_nearness([], [1.0])
