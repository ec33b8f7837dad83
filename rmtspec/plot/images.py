"""Pictures of directions: the patterns that a layer looks for, side by side."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec.errors import InvalidValueError
from rmtspec.plot import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Blue is negative, red positive, white 0: told apart by colour-blind readers.
_COLOURS = "RdBu_r"
_GAP, _CAPTION = 0.16, 0.42
#: Inches of one picture.
_SIDE = 1.25


def plot_images(
    images: Sequence[NDArray[Any]],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw signed images in a grid, each with a caption below it.

    Each image has a scale of its own, symmetric about 0: blue for negative, white for 0, red for
    positive. One of three channels is drawn in colour, grey for 0. Of any other number of channels,
    each is a tile of the image.

    Parameters
    ----------
    images : sequence of ndarray
        Each of shape (height, width), or (channels, height, width).
    captions : sequence of str
        One for each image.
    columns : int, optional
        Of the grid, by default as many as there are images, 5 at most.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new pyplot figure if None.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    InvalidTypeError
        `ax` is no Axes.
    InvalidValueError
        There is no image, one is neither of 2 nor of 3 dimensions, or captions are missing.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> import rmtspec
    >>> ax = Figure().subplots()
    >>> ax = rmtspec.plot.plot_images([np.eye(8), -np.eye(8)], ["one", "other"], ax=ax)
    >>> [text.get_text() for text in ax.texts]
    ['one', 'other']
    """
    arrays = [_checks.floats(image, f"images[{i}]") for i, image in enumerate(images)]
    if not arrays or len(captions) != len(arrays):
        raise InvalidValueError(
            f"`images` has {len(arrays)} images and `captions` {len(captions)}; expected one or "
            "more, and as many captions."
        )
    default = min(len(arrays), 5)
    wide = default if columns is None else _checks.integer(columns, "columns", 1)
    wide = min(wide, len(arrays))
    tall = -(-len(arrays) // wide)
    size = (wide * _SIDE * (1.0 + _GAP), tall * _SIDE * (1.0 + _CAPTION))
    ax = axes.axes_for(ax, size)
    for place, (image, caption) in enumerate(zip(arrays, captions, strict=True)):
        left = (place % wide) * (1.0 + _GAP)
        top = -(place // wide) * (1.0 + _CAPTION)
        shown, options = rendered(image)
        height, width = shown.shape[:2]
        longest = max(height, width)
        across, down = width / longest, height / longest
        x = left + (1.0 - across) / 2.0
        extent = (x, x + across, top - down, top)
        ax.imshow(shown, extent=extent, interpolation="nearest", **options)
        words: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": "small"}
        ax.text(left + 0.5, top - 1.03, caption, parse_math=False, **words)
    ax.set(xlim=(-_GAP / 2, wide * (1.0 + _GAP) - _GAP / 2))
    ax.set(ylim=(-tall * (1.0 + _CAPTION) + 0.02, 0.05))
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def rendered(image: NDArray[Any]) -> tuple[Float64Array, dict[str, Any]]:
    """Return what is drawn of an image, numbers or colours, and the options of `imshow`."""
    values = np.asarray(image, dtype=np.float64)
    if values.ndim not in (2, 3) or not values.size:
        raise InvalidValueError(
            f"An image has shape {values.shape}; expected (height, width), or (channels, height, "
            "width)."
        )
    largest = float(np.abs(values).max()) or 1.0
    scaled = values / largest
    if values.ndim == 3 and len(values) == 3:
        return (scaled.transpose(1, 2, 0) + 1.0) / 2.0, {}
    flat = scaled if values.ndim == 2 else _tiled(scaled)
    return flat, {"cmap": _COLOURS, "vmin": -1.0, "vmax": 1.0}


def pixels(image: NDArray[Any]) -> bytes:
    """Return an image as the content of a PNG file, one pixel for each number."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    shown, options = rendered(image)
    if options:
        gaps = np.isnan(shown)
        shown = colormaps[_COLOURS]((shown + 1.0) / 2.0)
        shown[gaps] = 0.0  # transparent
    stream = io.BytesIO()
    imsave(stream, np.ascontiguousarray(np.clip(shown, 0.0, 1.0)), format="png")
    return stream.getvalue()


def _tiled(channels: Float64Array) -> Float64Array:
    """Return the channels of an image as one image, in a grid with gaps of nan."""
    count, height, width = channels.shape
    if count == 1:
        only: Float64Array = channels[0]
        return only
    across = int(np.ceil(np.sqrt(count * (height + 1) / (width + 1))))
    down = -(-count // across)
    sheet = np.full((down * (height + 1) - 1, across * (width + 1) - 1), np.nan)
    for i, channel in enumerate(channels):
        y, x = (i // across) * (height + 1), (i % across) * (width + 1)
        sheet[y : y + height, x : x + width] = channel
    return sheet
