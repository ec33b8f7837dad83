"""`components`: the leading directions of a layer of a model, as a person can read them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from rmtspec.adapters.torch._interpretation.driving import driving_examples
from rmtspec.adapters.torch._interpretation.tokens import Tokens
from rmtspec.adapters.torch._weights.layer_kinds import path_of
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import (
    AnalysisOptions,
    Direction,
    Float64Array,
    Kind,
    LayerComponents,
    Reading,
    checks,
    leading_directions,
    listed,
    nearest,
    report_on,
)
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError, InvalidValueError

_COUNT = 8
#: Channels that an image can have.
_COLOURS = (1, 3)


def components(
    model: nn.Module,
    layer: str,
    k: int = 8,
    *,
    tokenizer: Any = None,
    image_shape: Sequence[int] | None = None,
    batch: Any = None,
    rng: Any = 0,
    **options: Any,
) -> LayerComponents:
    """Return the leading singular directions of a layer as a person can read them.

    W = sum of s_i u_i v_i^T: input that points along v_i comes out along u_i, s_i times as long.
    Each end is read as what it is: an image where the layer reads pixels, the nearest tokens where
    it reads or writes the hidden states of a language model, else its largest entries; and the
    examples of a batch that drive it most. A random direction, read in the same way, stands beside
    them: what it shows, chance shows.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed.
    layer : str
        Name of a matrix, layer or parameter, as `analyze` lists them.
    k : int
        Number of directions, at most the numerical rank.
    tokenizer : optional
        Of transformers. Inputs of query, key, value, up and gate are read against the input
        embeddings, by the cosine of the angle, after the scale of the norm before the layer;
        outputs of attention output and down against the output embeddings, after that of the last
        norm. Ends of an embedding or a head over the vocabulary are tokens by their entries.
    image_shape : sequence of int, optional
        (height, width), or (channels, height, width) with 1 or 3 channels, of what the layer
        reads. Kernels over 1 or 3 channels are images without it.
    batch : tensor, or tuple or mapping of what the model takes, optional
        Examples, first axis.
    rng : int
        Seed of the random directions.
    **options
        Of `rmtspec.analyze`, which tells what stands beyond the noise.

    Returns
    -------
    LayerComponents

    Raises
    ------
    InvalidValueError
        The model has no such layer, or it cannot be read as a matrix.
    InvalidOptionError, InvalidOptionTypeError
        `k` is larger than the rank, the image has not as many pixels as the layer has inputs, or
        the tokenizer or the batch does not fit the model.

    Notes
    -----
    Whether a direction stands beyond the noise is told by the count of components: the noise model
    counts n of them, and the n strongest directions are taken for these. Where rows or columns
    differ in scale, the components of the equalized matrix may lie a little otherwise.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model = rt.MLP([64, 100, 10])
    >>> with torch.no_grad():
    ...     picture = torch.eye(8).flatten()
    ...     _ = model.layers[0].weight.add_(torch.outer(torch.ones(100), picture))
    >>> found = rt.components(model, "layers.0", k=2, image_shape=(8, 8))
    >>> [direction.beyond_noise for direction in found]
    [True, False]
    >>> found.directions[0].inputs.image.shape
    (8, 8)
    """
    matrix = _matrix(model, layer)
    analysis = AnalysisOptions.of({"noise": "auto", **options})
    seed = checks.seed(rng, "rng")
    W = np.asarray(matrix(), dtype=np.float64)
    image = _image_shape(matrix, image_shape)
    tokens = None if tokenizer is None else Tokens(model, tokenizer)
    report = report_on(W, matrix.name, str(matrix.kind), analysis)
    found = leading_directions(W, k, report.spectrum.numerical_rank, seed)
    notes: list[str] = []
    inputs = _entries(found.inputs)
    outputs = _entries(found.outputs)
    if image is not None:
        inputs = [Reading("image", image=_pixels(each, image)) for each in found.inputs]
    if tokens is not None:
        inputs, outputs, notes = _as_tokens(tokens, matrix, found, (inputs, outputs), seed=seed)
    examples: list[Reading | None] = [None] * (k + 1)
    if batch is not None:
        module = model.get_submodule(path_of(matrix))
        word = None if tokens is None else tokens.word
        examples = list(driving_examples(model, module, batch, found.inputs, word=word))
    total = float(np.square(W).sum())
    directions = [
        Direction(
            number=i + 1, singular_value=float(value), energy_share=float(value**2 / total),
            beyond_noise=_beyond(report.noise.n_components, i),
            inputs=inputs[i], outputs=outputs[i], examples=examples[i],
        )
        for i, value in enumerate(found.values)
    ]  # fmt: skip
    nan = float("nan")
    random = Direction(
        0, nan, nan, None, inputs=inputs[k], outputs=outputs[k], examples=examples[k]
    )
    return LayerComponents(
        matrix.name, (W.shape[0], W.shape[1]), float(report.noise.n_components),
        verdict=str(report.noise.verdict), directions=tuple(directions), random=random,
        notes=tuple(notes),
    )  # fmt: skip


def _matrix(model: nn.Module, layer: str) -> WeightMatrix:
    known = {name: matrix for name, matrix in weight_matrices(model) if matrix.kind}
    if not isinstance(layer, str):
        raise InvalidOptionTypeError(f"`layer` is a {type(layer).__name__}", "the name of a layer")
    fits = [matrix for matrix in known.values() if layer in matrix.names]
    if len(fits) == 1 or layer in known:
        matrix = known.get(layer, fits[0])
        if matrix.reason:
            raise InvalidValueError(f"`layer` {layer!r} cannot be read: {matrix.reason}.")
        return matrix
    if fits:
        ones = listed((repr(matrix.name) for matrix in fits), most=8)
        raise InvalidValueError(
            f"`layer` {layer!r} has several matrices: {ones}. Name one of them."
        )
    hint = nearest(layer, known)
    raise InvalidValueError(
        f"`layer` {layer!r} is none of the {len(known)} matrices of this {type(model).__name__}."
        f"{hint} rt.weight_matrices(model) lists them."
    )


def _image_shape(matrix: WeightMatrix, given: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return (channels, height, width) of the image that a layer reads; None if it reads none."""
    columns = matrix.shape[1]
    if given is None:
        if matrix.kind == Kind.CONV2D and matrix.parameter.ndim == 4 and not matrix.transposed:
            sides = tuple(matrix.parameter.shape[1:])
            if sides[0] in _COLOURS and int(np.prod(sides)) == columns and min(sides[1:]) > 1:
                return sides
        return None
    try:
        sides = tuple(int(side) for side in given)
    except (TypeError, ValueError):
        sides = ()
    if len(sides) == 2:
        sides = (1, *sides)
    if len(sides) != 3 or min(sides) < 1 or sides[0] not in _COLOURS:
        raise InvalidOptionError(
            f"`image_shape` is {given!r}",
            "(height, width), or (channels, height, width) with 1 or 3 channels",
        )
    if int(np.prod(sides)) != columns:
        raise InvalidOptionError(
            f"`image_shape` {tuple(given)} has {int(np.prod(sides))} pixels",
            f"{columns}, the number of inputs of {matrix.name!r}",
        )
    return sides


def _pixels(direction: Float64Array, sides: tuple[int, ...]) -> Float64Array:
    image = direction.reshape(sides)
    return image[0] if sides[0] == 1 else np.moveaxis(image, 0, -1)


def _entries(directions: Float64Array) -> list[Reading]:
    """Return the largest entries of each direction, by index."""
    found = []
    for direction in directions:
        order = np.argsort(direction, kind="stable")
        pairs = [(str(int(i)), float(direction[i])) for i in order]
        found.append(Reading("entries", tuple(pairs[::-1][:_COUNT]), tuple(pairs[:_COUNT])))
    return found


def _as_tokens(
    tokens: Tokens, matrix: WeightMatrix, found: Any, plain: tuple[Any, Any], *, seed: int
) -> tuple[list[Reading], list[Reading], list[str]]:
    """Return the readings of both ends where tokens tell more than entries, and the notes."""
    inputs, outputs = plain
    read, written, notes = tokens.tables(matrix)
    if read is not None:
        inputs = tokens.readings(read, found.inputs, seed)
    if written is not None:
        outputs = tokens.readings(written, found.outputs, seed)
    vocabulary = len(tokens.inputs)
    if matrix.shape[0] == vocabulary:
        outputs = [tokens.entries(each) for each in found.outputs]
        notes = ["Outputs are tokens: the largest entries of each direction."]
    elif matrix.shape[1] == vocabulary:
        inputs = [tokens.entries(each) for each in found.inputs]
        notes = ["Inputs are tokens: the largest entries of each direction."]
    return inputs, outputs, notes


def _beyond(count: float, number: int) -> bool | None:
    return None if np.isnan(count) else number < count
