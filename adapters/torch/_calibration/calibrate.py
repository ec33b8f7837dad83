"""Calibration of a model: the function that users call, and what pruning asks of it."""

import dataclasses
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from rmtspec.adapters.torch._calibration.batches import Batches, check_batches
from rmtspec.adapters.torch._calibration.hidden_units import HiddenUnits
from rmtspec.adapters.torch._calibration.options import CalibrationOptions
from rmtspec.adapters.torch._calibration.passes import Pass, bytes_of, groups_within, shared_memory
from rmtspec.adapters.torch._weights.layer_kinds import ROOT, path_of
from rmtspec.adapters.torch._weights.subject import subject_of
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import (
    Calibration,
    HiddenLayer,
    Kind,
    Pattern,
    Progress,
    Selection,
    Weights,
    hidden_layers,
    listed,
)
from rmtspec.errors import InvalidOptionError, InvalidValueError

#: Kinds of layer whose weight multiplies the inputs that a hook sees.
_CALIBRATED = (Kind.LINEAR, Kind.TRANSPOSED_LINEAR, Kind.CONV1D, Kind.CONV2D, Kind.CONV3D)


def calibrate(
    model: nn.Module,
    batches: Batches,
    *,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    objective: str | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    loss_count: float | Callable[[Any], float] | None = None,
    labels: str = "auto",
    output_moment: str = "diagonal",
    gradient_tokens: int = 2048,
    holdout: float = 0.1,
    clip: float | None = None,
    rng: Any = 0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run a model on data, and keep what pruning needs of it.

    Kept are the second moment C = E[x x^T] of the inputs x of each layer and, for the objective
    "loss", the second moment E[g g^T] of the gradients g of the loss at its outputs, or its
    diagonal. The result can be saved, loaded, and handed to any number of calls of `plan`, `prune`
    and `trade_off` for the same model.

    Parameters
    ----------
    model : torch.nn.Module
        It is run in evaluation mode. Its weights, their gradients, modes, hooks and the state of
        the random number generators are afterwards as before, whatever happens.
    batches : iterable of model inputs, or callable
        Each input is a tensor, a tuple of positional arguments or a mapping of keyword arguments; a
        callable takes the model and runs it. Positions that an `attention_mask`, or another mask
        that transformers or torch layers take by name, hides do not count.
    include, exclude : str, pattern, predicate on (name, module), or several
        Which matrices; by default all linear and convolutional layers that can be split, but no
        output head. Embeddings and heads only if `include` names them.
    objective : {"loss", "outputs"}, optional
        "loss" (the default, wherever the output of the model has a gradient): what is lost by
        pruning is measured by the loss. "outputs": by the outputs of each layer.
    loss : callable, optional
        ``loss(model, batch)`` returns the loss to differentiate, a mean. By default no labels are
        needed: see `labels`.
    loss_count : number or callable, optional
        How many tokens or samples that mean is of: a number, or ``loss_count(batch)``; by default
        the number of samples in the batch.
    labels : {"auto", "sampled", "probes"}
        "sampled": cross-entropy of the logits with labels drawn from their own softmax, which gives
        the Fisher information. "probes": the outputs times random signs, for models without
        logits. "auto" takes logits where it finds them: in an output by that name, or in a tensor
        that comes from a linear layer as it is.
    output_moment : {"diagonal", "full"}
        One number for each output of a layer, or a matrix, which takes rows^2 * 8 bytes for each
        layer and loses a little less.
    gradient_tokens : int
        Number of tokens (samples of a classifier) after which no more gradients are taken; the
        inputs of all batches count.
    holdout : float
        Share of the batches, at least one where there are two, on which the errors in reports are
        measured; the fit does not see them.
    clip : float, optional
        Inputs whose norm exceeds that multiple of the median of their batch are scaled down to it
        in C: a few tokens of language models have a thousand times the norm of the others.
    rng : int or Generator
        Seed of the sampled labels and of the probes.
    memory : int, optional
        Bytes that the sums may take at a time, by default half of the machine's memory. Where all
        layers need more, the batches are gone through several times, a group of layers each, and
        the moments lie in temporary files.
    progress : callable, optional
        Called with the number of batches done, of all (or None), and the name of the pass.

    Returns
    -------
    Calibration

    Raises
    ------
    InvalidTypeError, InvalidValueError
        The batches or an option cannot be used, the batches never reach a layer, inputs or
        gradients are nan, or nothing in the output has a gradient although `objective` is "loss".

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model = rt.MLP([64, 100, 50, 10])
    >>> stats = rt.calibrate(model, [torch.randn(200, 64) for _ in range(4)])
    >>> stats
    Calibration
      objective     loss
      layers        3, with 3 different inputs
      rows          600 of each input
      held out      200 rows of each input
      gradients     labels sampled from the model's own softmax, 600 losses, 3 layers
      hidden units  can leave; hidden layers: 1
      size          0.2 MiB
    >>> smaller, report = rt.prune(model, calibration=stats, budget=0.6)
    """
    options = CalibrationOptions(
        objective=objective, loss=loss, loss_count=loss_count, labels=labels,
        output_moment=output_moment, gradient_tokens=gradient_tokens, holdout=holdout, clip=clip,
        rng=rng, memory=memory, progress=progress,
    )  # fmt: skip
    subject = subject_of(model, Selection(include, exclude))
    matrices = [
        matrix
        for name, matrix in subject.matrices.items()
        if can_be_calibrated(matrix) and (subject.targets[name].named or not matrix.on_request)
    ]
    if not matrices:
        raise InvalidValueError(
            f"No layer of this {type(model).__name__} can be calibrated; expected linear or "
            "convolutional layers that can be split. rt.analyze(model) says why each is not."
        )
    return calibrated(model, matrices, check_batches(batches), options)


class Asked(NamedTuple):
    """What a user passed as `calibration`, and how it is to be used."""

    calibration: Calibration | Batches
    options: CalibrationOptions

    @classmethod
    def of(
        cls, calibration: Any, objective: str | None, loss: Callable[[Any, Any], Any] | None
    ) -> "Asked | None":
        """Return it checked; None without calibration."""
        options = CalibrationOptions(objective=objective, loss=loss)
        if calibration is None:
            for name, value in {"objective": objective, "loss": loss}.items():
                if value is not None:
                    raise InvalidOptionError(
                        f"`{name}` is given without `calibration`", "both or neither",
                        "Pass batches, or what `calibrate` returned, as `calibration`.",
                    )  # fmt: skip
            return None
        if not isinstance(calibration, Calibration):
            return cls(check_batches(calibration), options)
        if loss is not None:
            raise InvalidOptionError(
                "`loss` is given, and `calibration` holds gradients already", "one of them",
                "Pass `loss` to `calibrate`.",
            )  # fmt: skip
        calibration.check_objective(objective)
        return cls(calibration, options)


class Known(NamedTuple):
    """What calibration says about the matrices of a model.

    Attributes
    ----------
    weights : dict of str to Weights
        By name of the matrix.
    hidden : dict of str to HiddenLayer
        Where hidden units can leave, by name of the matrix that reads them.
    settings : dict
        For the report.
    """

    weights: dict[str, Weights]
    hidden: dict[str, HiddenLayer]
    settings: dict[str, Any]


#: Without calibration.
NOTHING = Known({}, {}, {})


def can_be_calibrated(matrix: WeightMatrix) -> bool:
    """Tell whether the inputs of a matrix can be seen, and it can be split by them."""
    hindered = matrix.reason or matrix.fixed or matrix.unsplittable
    return (matrix.kind in _CALIBRATED or matrix.kind == Kind.EMBEDDING) and not hindered


def known_weights(model: nn.Module, matrices: Collection[WeightMatrix], asked: Asked) -> Known:
    """Return what calibration says about the matrices."""
    wanted = [matrix for matrix in matrices if can_be_calibrated(matrix)]
    stats, options = asked
    if not isinstance(stats, Calibration):
        stats = calibrated(model, wanted, stats, options)
    looked_up = {m.name for m in wanted if m.kind == Kind.EMBEDDING}
    unknown = [m for m in wanted if m.layer not in stats]
    missing = sorted({m.layer for m in unknown if m.name not in looked_up})
    if missing:
        raise InvalidValueError(
            f"`calibration` says nothing about {len(missing)} of {len(wanted)} layers: "
            f"{listed(map(repr, missing), most=5)}. Calibrate them too, or leave them out with "
            "`exclude`."
        )
    objective = stats.check_objective(options.objective)
    known = {
        matrix.name: stats.weights(matrix.layer, matrix.shape, _group(matrix), objective)
        for matrix in wanted
        if matrix.layer in stats and (objective == "loss" or matrix.name not in looked_up)
    }
    settings = {"objective": objective, "calibration": dict(stats.settings)}
    if objective == "loss":
        settings["gradient"] = stats.gradient
    names = {matrix.layer: matrix.name for matrix in wanted}
    return Known(known, hidden_layers(stats.hidden_units, names, known), settings)


def _group(matrix: WeightMatrix) -> int:
    """Return which group of a convolution a matrix is."""
    if not isinstance(matrix.part, slice):
        return 0
    return int(matrix.part.start) // matrix.shape[0]


def calibrated(
    model: nn.Module,
    matrices: Sequence[WeightMatrix],
    batches: Batches,
    options: CalibrationOptions,
) -> Calibration:
    """Return the calibration of the layers that hold these matrices."""
    layers: Mapping[str, nn.Module] = {m.layer: model.get_submodule(path_of(m)) for m in matrices}
    hidden = HiddenUnits(model, {name: layers[name] for name in layers if name != ROOT})
    with hidden.watched():
        found = _moments(model, layers, batches, options)
    if found.objective != "loss":
        return found
    return dataclasses.replace(found, hidden_units=hidden.found())


def _moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    options: CalibrationOptions,
) -> Calibration:
    """Return the moments of layers, in groups where they need more memory than there is."""
    needed = {name: bytes_of(layer, options) for name, layer in layers.items()}
    groups = groups_within(needed, options.memory or shared_memory(model))
    if len(groups) == 1:
        return Pass(model, layers, options).run(batches)
    if not callable(batches):
        batches = list(batches)  # each pass sees the same batches in the same order
    parts = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for number, names in enumerate(groups, 1):
            these = {name: layers[name] for name in names}
            where = f"pass {number} of {len(groups)}"
            part = Pass(model, these, options, where).run(batches)
            file = Path(folder) / f"{number}.safetensors"
            part.save(file)
            del part
            parts.append(Calibration.load(file))  # mapped: its memory is that of the file
    return Calibration.joined(parts)
