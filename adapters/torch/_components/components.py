"""The components of a layer as a person can read them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._components.examples import inputs_of
from rmtspec.adapters.torch._components.pictures import image_shape_of
from rmtspec.adapters.torch._components.run import check_batch
from rmtspec.adapters.torch._components.tokens import token_tables
from rmtspec.adapters.torch._components.vocabulary import vocabulary_of
from rmtspec.adapters.torch._layers.product_matrix import ProductMatrix, matrices_with_products
from rmtspec.adapters.torch._weights.layer_kinds import path_of
from rmtspec.adapters.torch._weights.matrices import check_model, weight_matrices
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import (
    AnalysisOptions,
    LayerComponents,
    Reading,
    TokenTable,
    checks,
    listed,
    nearest,
    read_layer,
    versions,
)
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError


def components(
    model: nn.Module,
    layer: str,
    k: int = 8,
    *,
    tokenizer: Any = None,
    image_shape: Sequence[int] | None = None,
    batch: Any = None,
    top: int = 5,
    draws: int = 99,
    rng: Any = 0,
    **options: Any,
) -> LayerComponents:
    """Show the leading components of a layer as images, tokens, or examples, whichever apply.

    A component is a singular value s with a right singular vector v, the pattern that it looks for
    in the input, and a left one u, which it then puts out: the layer adds ``s (v . x) u``. A random
    direction is treated as the components are and stands beside them; what is no more telling than
    that one tells nothing.

    Parameters
    ----------
    model : torch.nn.Module
        It is not changed.
    layer : str
        Name of a matrix, as `weight_matrices` and `analyze` list it.
    k : int
        How many components, at most the rank.
    tokenizer : optional
        Of transformers or of tokenizers, or the list of the texts of all tokens. See Notes.
    image_shape : sequence of int, optional
        Shape in which the layer reads pixels: (height, width), (channels, height, width), or
        (height, width, channels) with 1, 3 or 4 channels. Filters of convolutions need none.
    batch : tensor, tuple or mapping, optional
        Inputs of the model: the examples that drive each component most are found among them.
    top : int
        How many tokens, and examples, are listed of each component.
    draws : int
        With how many random directions the nearest tokens are compared.
    rng : int or numpy.random.Generator
        Seed of the random directions, and of the noise model.
    **options
        Of `rmtspec.analyze`, which says what stands beyond the noise; ``noise`` is "auto".

    Returns
    -------
    LayerComponents

    Raises
    ------
    InvalidTypeError
        `model` is no module, `tokenizer` no tokenizer, or `batch` no inputs.
    InvalidValueError
        No matrix has that name, or it cannot be read; `k` is above its rank; `image_shape` does not
        multiply to its columns; the tokenizer does not fit the embeddings; the model does not run
        on the batch, or does not use the layer.

    Notes
    -----
    Tokens are compared by cosine, on the sides where that has a meaning:

    ==========================  =====================================================
    layer                       its right (in) and left (out) singular vectors
    ==========================  =====================================================
    q, k, v, up, gate           in: the input embeddings, each through the norm whose
                                output the layer reads; out: inside the block
    attention output, down      in: inside the block; out: the rows of the output
                                head, with the norm before it (the logit lens)
    embeddings, output head     rows: each row is a token, its entries are listed
    others                      in, if the layer reads a norm or the embeddings
    ==========================  =====================================================

    The norms are found by running the model on a few tokens, or on `batch`. Positions, and blocks
    in between, are left out. A model without a head is read against its input embeddings.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model = rt.MLP([64, 100, 10])
    >>> with torch.no_grad():  # a picture of one grey, beyond the noise
    ...     _ = model.layers[0].weight.add_(torch.randn(100, 1) @ torch.ones(1, 64) / 20)
    >>> found = rt.components(model, "layers.0", 2, image_shape=(8, 8))
    >>> [each.beyond for each in found], found[0].image.shape
    ([True, False], (8, 8))
    """
    check_model(model)
    matrix = _matrix(model, layer)
    checks.integer(k, "k", 1, min(matrix.shape), hint=_size(matrix))
    seed = checks.seed(rng, "rng")
    given = {"noise": "auto", "rng": seed, **options}
    checked = AnalysisOptions.of(given, spectra_for="reading components")
    shape, channels_last = image_shape_of(matrix, image_shape)
    vocabulary = None if tokenizer is None else vocabulary_of(tokenizer)
    inputs = None if batch is None else check_batch(model, batch)
    module = model.get_submodule(path_of(matrix))
    tables: list[TokenTable] = []
    notes: list[str] = []
    if vocabulary is not None:
        tables, notes = token_tables(model, module, matrix, vocabulary, batch=inputs)
    reading = Reading(
        k=k, most=checks.integer(top, "top", 1), draws=checks.integer(draws, "draws", 19),
        rng=seed, image_shape=shape, channels_last=channels_last, tables=tables, notes=notes,
        inputs=None if inputs is None else inputs_of(model, module, matrix, inputs),
    )  # fmt: skip
    checked = dataclasses.replace(checked, kind=matrix.kind)
    found = read_layer(_array(matrix), matrix.name, reading, checked)
    return dataclasses.replace(found, versions=versions("torch"))


def _matrix(model: nn.Module, name: Any) -> WeightMatrix:
    """Return the matrix of that name, of its layer, or of its parameter, if there is only one."""
    if not isinstance(name, str):
        raise InvalidOptionTypeError(
            f"`layer` is a {type(name).__name__}", "the name of a matrix, as rt.analyze lists it"
        )
    known = {**matrices_with_products(model), **dict(weight_matrices(model))}
    found = {name: known[name]} if name in known else {}
    found = found or {key: matrix for key, matrix in known.items() if name in matrix.names}
    readable = [key for key, matrix in known.items() if not matrix.reason]
    if not found:
        hint = nearest(name, readable) or f"They are {listed(readable, most=5)}."
        expected = f"one of the {len(readable)} matrices of the model"
        raise InvalidOptionError(f"`layer` is {name!r}", expected, hint.strip())
    usable = {key: matrix for key, matrix in found.items() if not matrix.reason}
    if not usable:
        reason = next(iter(found.values())).reason
        raise InvalidOptionError(f"`layer` is {name!r}, which cannot be read: {reason}.")
    if len(usable) > 1:
        raise InvalidOptionError(
            f"`layer` is {name!r}, which has {len(usable)} matrices",
            f"one of {listed(map(repr, usable), most=8)}",
        )
    return next(iter(usable.values()))


def _size(matrix: WeightMatrix) -> str:
    return f"{matrix.name!r} is {matrix.shape[0]} x {matrix.shape[1]}."


def _array(matrix: WeightMatrix) -> NDArray[Any]:
    if isinstance(matrix, ProductMatrix):  # multiplied out: its vectors are wanted
        outer, inner = (factor.astype(np.float64) for factor in matrix.factors())
        product: NDArray[Any] = outer @ inner
        return product
    return matrix()
