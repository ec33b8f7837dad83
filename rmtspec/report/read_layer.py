"""Reading the components of one layer: vectors, noise, nearest tokens, strongest examples."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._records import versions
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.directions import (
    Nearest,
    chance,
    leading_directions,
    nearest_entries,
    nearest_rows,
    random_directions,
)
from rmtspec.report.layer_components import (
    RANDOM,
    Direction,
    Examples,
    LayerComponents,
    NearestTokens,
    Token,
)
from rmtspec.report.matrix_report import MatrixReport, report_on
from rmtspec.report.options import AnalysisOptions
from rmtspec.terms import Kind, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTable:
    """What one side of a matrix is read against.

    Attributes
    ----------
    side : str
        "in" for the right singular vectors, "out" for the left ones, "rows" where the rows of the
        matrix are tokens: then their entries are read, and no table is needed.
    text : callable of int
        Returns the text of a token.
    blocks : callable, or None
        Returns the rows of the table, one per token, in pieces.
    seen : callable
        Turns directions, shape (d, k), into those that the rows are compared with.
    """

    side: str
    text: Callable[[int], str]
    blocks: Callable[[], Iterable[NDArray[Any]]] | None = None
    seen: Callable[[Float64Array], Float64Array] = lambda directions: directions


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the components of a layer are to be read.

    Attributes
    ----------
    k : int
        How many of them.
    most : int
        How many tokens and examples of each are listed.
    draws : int
        How many random directions they are compared with.
    rng : int
        Seed of the random directions.
    image_shape : tuple of int
        Of the right singular vectors as images, (height, width) or (channels, height, width); empty
        for none.
    channels_last : bool
        Whether it is (height, width, channels) instead.
    tables : sequence of TokenTable
    inputs : iterable of ndarray, or None
        What the layer reads of each example of a batch, shape (positions, columns).
    notes : sequence of str
    """

    k: int
    most: int = 5
    draws: int = 99
    rng: int = 0
    image_shape: tuple[int, ...] = ()
    channels_last: bool = False
    tables: Sequence[TokenTable] = ()
    inputs: Iterable[NDArray[Any]] | None = None
    notes: Sequence[str] = ()


def read_layer(
    W: NDArray[Any], name: str, reading: Reading, options: AnalysisOptions
) -> LayerComponents:
    """Return the leading components of a matrix as they are to be read."""
    kind = options.kind or Kind.MATRIX
    report = report_on(W, name, kind, options)
    rank, (rows, columns) = report.spectrum.numerical_rank, report.spectrum.shape
    hint = f"{name!r} is {rows} x {columns} and has rank {rank}: more components it has not."
    k = _checks.integer(reading.k, "k", 1, rank, hint=hint)
    generator = np.random.default_rng(reading.rng)
    left, right = leading_directions(W, k)
    beside = random_directions(columns, 1, generator), random_directions(rows, 1, generator)
    right, left = np.hstack([right, beside[0]]), np.hstack([left, beside[1]])
    tokens, drawn = _all_tokens(reading, left, right, generator)
    examples, random_rms = _strongest(reading, right)
    singular = [*report.spectrum.singular_values[::-1][:k].tolist()]
    singular.append(float(np.linalg.norm(np.asarray(W, dtype=np.float64) @ beside[0][:, 0])))
    found = [
        Direction(
            label=str(i + 1) if i < k else RANDOM, singular_value=singular[i],
            eigenvalue=singular[i] ** 2 / report.spectrum.n,
            beyond=_beyond(report, i) if i < k else None,
            **_estimates(report, i if i < k else k + rows + columns),
            left=left[:, i], right=right[:, i],
            image=_image(right[:, i], reading),
            tokens={side: each[i] for side, each in tokens.items()},
            examples=None if examples is None else examples[i],
        )
        for i in range(k + 1)
    ]  # fmt: skip
    notes = list(reading.notes)
    if report.noise.verdict == Verdict.NOT_NOISE_LIKE and not all(
        each.beyond for each in found[:-1]
    ):
        notes.append(f"{report.noise.verdict}: what is not beyond the noise may be structure too")
    if report.noise.model != "mp" and report.components is not None:
        notes.append(
            f"beyond the noise, overlaps: by the noise model {report.noise.model}, for the matrix "
            "with rows and columns scaled to equal variance"
        )
    chosen = {"k": k, "nearest": reading.most, "draws": reading.draws, "rng": reading.rng}
    return LayerComponents(
        name=name, kind=kind, directions=tuple(found[:-1]), random=found[-1], report=report,
        random_nearness=drawn, random_rms=random_rms, notes=tuple(notes),
        settings={**options.settings, **chosen}, versions=versions(),
    )  # fmt: skip


def _image(vector: Float64Array, reading: Reading) -> Float64Array | None:
    """Return a vector as an image: (height, width), or (channels, height, width)."""
    if not reading.image_shape:
        return None
    image = vector.reshape(reading.image_shape)
    if reading.channels_last:
        image = image.transpose(2, 0, 1)
    return image[0] if image.ndim == 3 and len(image) == 1 else image


def _beyond(report: MatrixReport, index: int) -> bool | None:
    count = report.noise.n_components
    return None if math.isnan(count) else index < count


def _estimates(report: MatrixReport, index: int) -> dict[str, float]:
    """Return strength and overlaps of a component, nan where there are none."""
    known = report.components
    if known is None or index >= known.n_components:
        return {"strength": math.nan, "left_overlap": math.nan, "right_overlap": math.nan}
    return {
        "strength": float(known.strengths[index]),
        "left_overlap": float(known.left_overlaps[index]),
        "right_overlap": float(known.right_overlaps[index]),
    }


def _all_tokens(
    reading: Reading, left: Float64Array, right: Float64Array, generator: np.random.Generator
) -> tuple[dict[str, list[NearestTokens]], dict[str, Float64Array]]:
    """Return the nearest tokens of each side, and how near random directions come."""
    tokens: dict[str, list[NearestTokens]] = {}
    drawn: dict[str, Float64Array] = {}
    for table in reading.tables:
        own = right if table.side == "in" else left
        count = own.shape[1]
        more = random_directions(len(own), reading.draws, generator)
        directions = table.seen(np.hstack([own, more]))
        if table.blocks is None:
            near = nearest_entries(directions, reading.most)
        else:
            near = nearest_rows(table.blocks(), directions, reading.most)
        drawn[table.side] = near.nearness[count:]
        tokens[table.side] = [
            NearestTokens(
                towards=_tokens(near, table, i, sign=1), against=_tokens(near, table, i, sign=-1),
                nearness=float(near.nearness[i]),
                pvalue=chance(near.nearness[i], drawn[table.side]) if i < count - 1 else math.nan,
            )
            for i in range(count)
        ]  # fmt: skip
    return tokens, drawn


def _tokens(near: Nearest, table: TokenTable, index: int, *, sign: int) -> tuple[Token, ...]:
    places = near.towards if sign > 0 else near.against
    cosines = near.towards_cosines if sign > 0 else near.against_cosines
    return tuple(
        Token(table.text(int(place)), int(place), float(cosine))
        for place, cosine in zip(places[index], cosines[index], strict=True)
        if sign * cosine > 0.0
    )


def _strongest(reading: Reading, right: Float64Array) -> tuple[list[Examples] | None, float]:
    """Return the examples that drive each direction most, and the rms of a random direction.

    The rms is the mean over all directions: that of the inputs divided by the root of their number
    of entries.
    """
    if reading.inputs is None:
        return None, math.nan
    strongest, places = [], []
    squares, energy, count = np.zeros(right.shape[1]), 0.0, 0
    for rows in reading.inputs:
        values = np.asarray(rows, dtype=np.float64)
        seen = values @ right
        place = np.abs(seen).argmax(axis=0) if len(seen) else np.zeros(right.shape[1], dtype=int)
        strongest.append(seen[place, np.arange(right.shape[1])] if len(seen) else 0.0 * squares)
        places.append(place)
        squares += np.square(seen).sum(axis=0)
        energy += float(np.square(values).sum())
        count += len(values)
    if not math.isfinite(energy):
        raise InvalidValueError(
            "`batch` makes the layer read nan or inf; expected finite numbers. Check the inputs, "
            "and the layers before."
        )
    peaks, positions = np.array(strongest), np.array(places)
    order = np.argsort(-np.abs(peaks), axis=0, kind="stable")[: reading.most]
    rms = np.sqrt(squares / max(count, 1))
    found = [
        Examples(
            indices=order[:, i], positions=positions[order[:, i], i],
            activations=peaks[order[:, i], i], rms=float(rms[i]),
        )
        for i in range(right.shape[1])
    ]  # fmt: skip
    return found, math.sqrt(energy / max(count * len(right), 1))
