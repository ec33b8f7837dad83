"""LayerComponents: the leading directions of a layer as a person can read them."""

import base64
import html
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec._checks import Float64Array
from rmtspec._records import plain
from rmtspec._text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Item = tuple[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One end of a direction, its input or its output.

    Attributes
    ----------
    kind : str
        "image", "tokens" (nearest by the cosine with their embeddings), "entries" (the largest
        entries of the direction), or "examples" (inputs that drive it most).
    along, against : tuple of (str, float)
        What points most along the direction and against it, with the value.
    image : ndarray of shape (height, width) or (height, width, 3), or None
        The direction as an image, for the kind "image".
    closest, chance : float
        For tokens: the largest cosine in size, and what one in twenty random directions reaches;
        nan otherwise.
    """

    kind: str
    along: tuple[Item, ...] = ()
    against: tuple[Item, ...] = ()
    image: Float64Array | None = None
    closest: float = float("nan")
    chance: float = float("nan")

    def words(self, most: int = 5) -> str:
        """Return the reading in one line."""
        if self.kind == "image" and self.image is not None:
            shape = " x ".join(map(str, self.image.shape[:2]))
            return f"an image of {shape}, see plot()"
        shown = ", ".join(f"{printable(what)} {value:+.3g}" for what, value in self.along[:most])
        if self.against:
            other = ", ".join(f"{printable(w)} {value:+.3g}" for w, value in self.against[:most])
            shown = f"{shown} | {other}"
        if np.isfinite(self.closest):
            shown += f" (nearest {self.closest:.2f}, by chance {self.chance:.2f})"
        return shown


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """One singular direction of a layer, or the random one.

    Attributes
    ----------
    number : int
        1 for the strongest; 0 for the random direction.
    singular_value, energy_share : float
        Its singular value, and the share of ||W||^2 that it explains; nan for the random one.
    beyond_noise : bool or None
        Whether it is among the components that the noise model counts; None if that is not known.
    inputs, outputs : Reading
    examples : Reading or None
        The examples of the batch that drive it most, if one was given.
    """

    number: int
    singular_value: float
    energy_share: float
    beyond_noise: bool | None
    inputs: Reading
    outputs: Reading
    examples: Reading | None

    def title(self) -> str:
        """Return number, strength and standing in words."""
        if not self.number:
            return "random direction"
        stands = {True: "beyond the noise", False: "within the noise", None: "noise not known"}
        share = f"{self.energy_share:.1%} of ||W||^2"
        value = f"singular value {self.singular_value:.4g}"
        return f"{self.number}: {value}, {share}, {stands[self.beyond_noise]}"

    def readings(self) -> Iterator[tuple[str, Reading]]:
        """Yield "in", "out" and "examples" with their readings."""
        yield "in", self.inputs
        yield "out", self.outputs
        if self.examples is not None:
            yield "examples", self.examples


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class LayerComponents:
    """The leading directions of a layer, and a random one beside them.

    Attributes
    ----------
    name : str
        Name of the matrix.
    shape : tuple of int
        Rows (outputs) and columns (inputs).
    n_components : float
        How many components the noise model counts; nan if it cannot tell.
    verdict : str
        What is left without them: a `rmtspec.terms.Verdict`.
    directions : tuple of Direction
        The strongest first.
    random : Direction
        A random direction, read in the same way: what it shows, chance shows.
    notes : tuple of str
        What was read as what, and what could not be.
    """

    name: str
    shape: tuple[int, int]
    n_components: float
    verdict: str
    directions: tuple[Direction, ...]
    random: Direction
    notes: tuple[str, ...]

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.directions)

    def __len__(self) -> int:
        return len(self.directions)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values, images as nested lists."""
        content = {name: plain(getattr(self, name)) for name in ("name", "shape", "n_components")}
        content |= {"verdict": str(self.verdict), "notes": list(self.notes)}
        content["directions"] = [_direction(each) for each in self.directions]
        return content | {"random": _direction(self.random)}

    def plot(self, figure: "Figure | None" = None) -> "Figure":
        """Draw each direction, and the random one last: images, and bars of what has words.

        Parameters
        ----------
        figure : matplotlib.figure.Figure, optional
            Where to draw; a new pyplot figure if None.
        """
        columns = [*self.directions, self.random]
        lines = [[reading for _, reading in each.readings()] for each in columns]
        height = max(map(len, lines))
        if figure is None:
            from matplotlib import pyplot

            size = (1.9 * len(columns) + 0.4, 1.9 * height + 0.5)
            figure = pyplot.figure(figsize=size, layout="constrained")
        axes = figure.subplots(height, len(columns), squeeze=False)
        for column, (direction, readings) in enumerate(zip(columns, lines, strict=True)):
            for row, reading in enumerate(readings):
                _draw(axes[row, column], reading)
            title = f"{direction.number}" if direction.number else "random"
            if direction.beyond_noise is False:
                title += " (noise)"
            axes[0, column].set_title(title, fontsize="medium")
        for row, (word, _) in enumerate(columns[0].readings()):
            axes[row, 0].set_ylabel(word)
        figure.suptitle(printable(self.name).replace("$", r"\$"))
        return figure

    def _title(self) -> str:
        count = "-" if np.isnan(self.n_components) else f"{self.n_components:.0f}"
        rows, columns = self.shape
        return (
            f"LayerComponents {printable(self.name)}: {rows} x {columns}, {count} components, "
            f"{self.verdict}"
        )

    def __repr__(self) -> str:
        lines = [self._title()]
        for direction in (*self.directions, self.random):
            lines.append(f"  {direction.title()}")
            lines += [f"    {word + ':':<9} {r.words()}" for word, r in direction.readings()]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        left = "text-align: left; vertical-align: top"
        body = "".join(
            f'<tr><th scope="row" style="{left}">{html.escape(direction.title())}</th>'
            + "".join(f'<td style="{left}">{_html(r)}</td>' for _, r in direction.readings())
            + "</tr>"
            for direction in (*self.directions, self.random)
        )
        heads = ("", *(word for word, _ in self.random.readings()))
        head = "".join(f'<th scope="col" style="{left}">{word}</th>' for word in heads)
        notes = "".join(f"<p>{html.escape(printable(note))}</p>" for note in self.notes)
        return (
            '<div style="overflow-x: auto"><table class="rmtspec">'
            f'<caption style="{left}">{html.escape(self._title())}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}</div>"
        )


def _direction(direction: Direction) -> dict[str, Any]:
    names = ("number", "singular_value", "energy_share", "beyond_noise")
    content = {name: plain(getattr(direction, name)) for name in names}
    for word, reading in direction.readings():
        content[word] = {n: plain(getattr(reading, n)) for n in Reading.__slots__}
    return content


def _shown(image: Float64Array) -> Float64Array:
    """Return an image with values from 0 to 1: 0 of the direction in the middle."""
    most = float(np.abs(image).max()) or 1.0
    return np.clip(0.5 + 0.5 * image / most, 0.0, 1.0)


def _draw(ax: "Axes", reading: Reading) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    if reading.image is not None:
        ax.imshow(_shown(reading.image), cmap="RdBu_r", vmin=0.0, vmax=1.0)
        return
    items = [*reading.along[:5], *reading.against[:3][::-1]]
    places = np.arange(len(items))[::-1]
    values = [value for _, value in items]
    colours = ["#b2182b" if value > 0 else "#2166ac" for value in values]
    ax.barh(places, values, color=colours, alpha=0.35)
    most = max(map(abs, values), default=1.0) or 1.0
    ax.set_xlim(-1.05 * most, 1.05 * most)
    for place, (what, _) in zip(places, items, strict=True):
        words = printable(what)[:16].replace("$", r"\$")
        ax.text(0.0, place, words, ha="center", va="center", fontsize="x-small", clip_on=True)


def _html(reading: Reading) -> str:
    if reading.image is None:
        return html.escape(reading.words())
    from matplotlib import pyplot

    stream = io.BytesIO()
    pyplot.imsave(stream, _shown(reading.image), cmap="RdBu_r", vmin=0.0, vmax=1.0, format="png")
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    style = "width: 84px; image-rendering: pixelated"
    words = html.escape(reading.words())
    return f'<img alt="{words}" style="{style}" src="data:image/png;base64,{content}">'
