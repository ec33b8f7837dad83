"""The components of a layer as a person can read them: images, tokens, examples of a batch."""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec._files.writing import PathLike, json_text
from rmtspec._records import plain
from rmtspec._text import html_table, printable, text_table
from rmtspec.report.matrix_report import MatrixReport
from rmtspec.terms import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Version of the JSON format.
SCHEMA = 1
#: What the random direction is called.
RANDOM = "random"
_ENDS = {"towards": "+", "against": "-"}


class Token(NamedTuple):
    """A token near a direction: its text, its number, and the cosine of the two."""

    text: str
    number: int
    cosine: float


@dataclass(frozen=True, slots=True, eq=False)
class NearestTokens:
    """The tokens nearest to one side of a component, at both ends: it has no sign of its own.

    Attributes
    ----------
    towards, against : tuple of Token
        Nearest first.
    nearness : float
        The largest absolute cosine.
    pvalue : float
        Share of random directions that come as near to some token, this one counted among them;
        nan for a random direction.
    """

    towards: tuple[Token, ...]
    against: tuple[Token, ...]
    nearness: float
    pvalue: float


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """The examples of a batch that drive a component most, strongest first.

    Attributes
    ----------
    indices : ndarray of int
        Of the examples: along the first side of what the layer reads.
    positions : ndarray of int
        Where in the example: a token of a sequence, a patch of a picture; 0 where there is but one.
    activations : ndarray
        The input there times the right singular vector, with its sign; of each example the one
        that is largest in absolute value.
    rms : float
        Root mean square over all positions of the batch.
    """

    indices: NDArray[np.int64]
    positions: NDArray[np.int64]
    activations: Float64Array
    rms: float


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """One component of a layer, or the random direction beside them.

    Attributes
    ----------
    label : str
        "1" for the strongest, "random" for the random one.
    singular_value : float
        Of the matrix; for the random direction the length of the matrix times it.
    eigenvalue : float
        The square of that divided by n, in the units of a report.
    beyond : bool or None
        Whether it stands beyond the noise; None if that is not known.
    strength : float
        Without the noise, in units of ``sqrt(n variance)``: see `rmtspec.components`; or nan.
    left_overlap, right_overlap : float
        Estimated overlap of its singular vectors with those of the signal; or nan.
    left, right : ndarray
        Unit vectors of length rows and columns.
    image : ndarray or None
        `right` in the shape of a picture or filter.
    tokens : dict of str to NearestTokens
        By the side: "in", "out", or "rows" where the rows of the matrix are tokens.
    examples : Examples or None
    """

    label: str
    singular_value: float
    eigenvalue: float
    beyond: bool | None
    strength: float
    left_overlap: float
    right_overlap: float
    left: Float64Array
    right: Float64Array
    image: Float64Array | None
    tokens: Mapping[str, NearestTokens]
    examples: Examples | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the vectors as JSON-ready values (nan as None)."""
        names = ("label", "singular_value", "eigenvalue", "beyond", "strength", "left_overlap",
                 "right_overlap", "image")  # fmt: skip
        found = {name: plain(getattr(self, name)) for name in names}
        found["tokens"] = {
            side: {
                "nearness": plain(near.nearness),
                "pvalue": plain(near.pvalue),
                **{end: [token._asdict() for token in getattr(near, end)] for end in _ENDS},
            }
            for side, near in self.tokens.items()
        }
        e = self.examples
        found["examples"] = e and {name: plain(getattr(e, name)) for name in e.__slots__}
        return found


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class LayerComponents:
    """The leading components of a layer; what `components` of an adapter returns.

    Iterating over it, or an index, gives each `Direction`, strongest first.

    Attributes
    ----------
    name, kind : str
        Of the matrix.
    directions : tuple of Direction
    random : Direction
        A random direction, treated as the components are.
    report : MatrixReport
        The analysis that says what stands beyond the noise.
    random_nearness : dict of str to ndarray
        By the side, the largest absolute cosine with any token of each of many random directions.
    random_rms : float
        The rms activation of a random direction, over all of them; nan without a batch.
    notes : tuple of str
        What each side was read against, and what is not meaningful here.
    settings, versions : dict
    """

    name: str
    kind: str
    directions: tuple[Direction, ...]
    random: Direction
    report: MatrixReport
    random_nearness: Mapping[str, Float64Array]
    random_rms: float
    notes: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.directions)

    def __len__(self) -> int:
        return len(self.directions)

    def __getitem__(self, index: int) -> Direction:
        return self.directions[index]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the vectors and the full report as JSON-ready values."""
        rows, columns = self.report.spectrum.shape
        noise = self.report.noise
        return {
            "schema": SCHEMA, "name": self.name, "kind": self.kind, "rows": rows,
            "columns": columns, "n_components": plain(noise.n_components),
            "verdict": noise.verdict.value, "verdict_reason": noise.reason,
            "noise_model": noise.model,
            "components": [direction.to_dict() for direction in self.directions],
            "random": self.random.to_dict(),
            "random_nearness": plain(dict(self.random_nearness)),
            "random_rms": plain(self.random_rms), "notes": list(self.notes),
            "settings": plain(self.settings), "versions": self.versions,
        }  # fmt: skip

    def to_json(self, path: PathLike | None = None) -> str:
        """Return `to_dict` as JSON; write it to `path` if given."""
        return json_text(self.to_dict(), path)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the components, on `ax` or a new figure, with the random direction beside them.

        As images where there are any; else how near they come to tokens, or how strongly the
        batch drives them; else the singular values.
        """
        from rmtspec import plot
        from rmtspec.plot.axes import set_title

        if self.random.image is not None:
            shown = [each for each in self._all() if each.image is not None]
            images = [each.image for each in shown if each.image is not None]
            ax = plot.plot_images(images, [self._caption(each) for each in shown], ax=ax)
        elif self.random_nearness:
            side, drawn = next(iter(self.random_nearness.items()))
            near = [each.tokens[side].nearness for each in self.directions]
            label = f"|cosine| with the nearest token, {side}"
            ax = plot.plot_nearness(near, drawn.tolist(), label=label, ax=ax)
        elif self.random.examples is not None:
            rms = [each.examples.rms for each in self.directions if each.examples is not None]
            ax = plot.plot_nearness(rms, [self.random_rms], label="rms activation", ax=ax)
        else:
            ax = plot.plot_scree(self.report.spectrum, self.report.fit, ax=ax)
        set_title(ax, printable(self.name))
        return ax

    def _all(self) -> tuple[Direction, ...]:
        return (*self.directions, self.random)

    def __repr__(self) -> str:
        lines = [self._title(), *(f"  {printable(words)}" for words in self._remarks())]
        for title, header, rows in self._sections():
            lines += ["", *([f"  {title}"] if title else [])]
            lines += text_table(header, rows)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        first, *others = self._sections()
        parts = [html_table(self._title(), first[1], first[2], notes=self._remarks())]
        if self.random.image is not None:
            shown = [(each, self._caption(each)) for each in self._all()]
            parts.append(_pictures(shown))
        parts += [html_table(title, header, rows) for title, header, rows in others]
        return "".join(parts)

    def _caption(self, direction: Direction) -> str:
        if direction.label == RANDOM:
            return RANDOM
        noise = direction.beyond is False and self.report.noise.verdict == Verdict.NOISE_LIKE
        within = "\nin the noise" if noise else ""
        return f"{direction.label}: s = {direction.singular_value:.3g}{within}"

    def _title(self) -> str:
        rows, columns = self.report.spectrum.shape
        noise, shown = self.report.noise, len(self.directions)
        words = f"{self.name}: {self.kind}, {rows} x {columns}"
        count = "unknown how many" if np.isnan(noise.n_components) else f"{noise.n_components}"
        of = f"{shown} of {self.report.spectrum.p} components shown"
        return printable(f"LayerComponents {words}; {of}, {count} beyond the noise")

    def _remarks(self) -> list[str]:
        noise = self.report.noise
        return [f"{noise.verdict}: {noise.reason}", *filter(None, [noise.remarks]), *self.notes]

    def _sections(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Return title, header and lines of each table."""
        sections = [("", *self._numbers())]
        for side, drawn in self.random_nearness.items():
            what = "entries of the left singular vectors" if side == "rows" else "cosines"
            title = (
                f"tokens, {side}: {what}; random directions come within {drawn.mean():.3f} of "
                f"their nearest ({np.quantile(drawn, 0.05):.3f} to {np.quantile(drawn, 0.95):.3f})"
            )
            header = ["component", "nearest", "chance", "end", "tokens"]
            mean = float(drawn.mean())
            lines = [line for each in self._all() for line in _token_lines(each, side, mean)]
            sections.append((title, header, lines))
        if self.random.examples is not None:
            title = "examples: index, position if there are several, activation"
            lines = [[each.label, _examples(each.examples)] for each in self._all()]
            sections.append((title, ["component", "examples"], lines))
        return sections

    def _numbers(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the lines of the table of strengths."""
        columns: dict[str, list[str]] = {
            "component": [each.label for each in self._all()],
            "singular value": [f"{each.singular_value:.4g}" for each in self._all()],
            "eigenvalue": [f"{each.eigenvalue:.3g}" for each in self._all()],
            "beyond the noise": [_yes(each.beyond) for each in self.directions] + [""],
        }
        if self.report.components is not None:
            columns["overlap in"] = [_number(each.right_overlap) for each in self._all()]
            columns["overlap out"] = [_number(each.left_overlap) for each in self._all()]
        if self.random.examples is not None:
            columns["rms (x random)"] = [
                "" if e is None else _times(e.rms, self.random_rms)
                for e in (each.examples for each in self._all())
            ]
        lines = [list(line) for line in zip(*columns.values(), strict=True)]
        return list(columns), lines


def _yes(value: bool | None) -> str:
    return "not known" if value is None else "yes" if value else "no"


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"


def _times(rms: float, random: float) -> str:
    return f"{rms:.3g}" + (f" ({rms / random:.2g})" if random else "")


def _token_lines(direction: Direction, side: str, mean: float) -> list[list[str]]:
    near = direction.tokens[side]
    chance = "" if np.isnan(near.pvalue) else f"{near.pvalue:.2g}"
    ratio = f" ({near.nearness / mean:.2g} x random)" if mean else ""
    first = [direction.label, f"{near.nearness:.3f}{ratio}", chance]
    lines = []
    for end, sign in _ENDS.items():
        tokens: tuple[Token, ...] = getattr(near, end)
        listed = ", ".join(f"{token.text!r} {abs(token.cosine):.2f}" for token in tokens)
        lines.append([*(first if end == "towards" else ["", "", ""]), sign, printable(listed)])
    return lines


def _examples(examples: Examples | None) -> str:
    if examples is None:
        return ""
    several = bool(np.any(examples.positions))
    places = zip(examples.indices, examples.positions, examples.activations, strict=True)
    return ", ".join(
        f"{index}{f' at {position}' * several} ({activation:+.3g})"
        for index, position, activation in places
    )


def _pictures(captioned: list[tuple[Direction, str]]) -> str:
    """Return the images as figures for a notebook: PNG files inside the page."""
    from rmtspec.plot.images import pixels

    style = "width: 6rem; image-rendering: pixelated; border: 1px solid #888888"
    figures = "".join(
        '<figure style="display: inline-block; margin: 0.3rem; text-align: center; '
        'vertical-align: top">'
        f'<img alt="image of component {each.label}" style="{style}" '
        f'src="data:image/png;base64,{base64.b64encode(pixels(each.image)).decode()}">'
        f'<figcaption style="color: inherit">'
        f"{caption.replace(chr(10), '<br>')}</figcaption></figure>"
        for each, caption in captioned
        if each.image is not None
    )
    return f"<div>{figures}</div>"
