"""Regularisers against the noise in weight matrices: on the bulk, or on all singular values."""

from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._weights.subject import subject_of
from rmtspec.adapters.torch._weights.tensors import to_numpy, to_tensor
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import AnalysisOptions, Pattern, Selection, checks, report_on, split
from rmtspec.errors import InvalidValueError

NORMS = ("l1", "l2")


class BulkPenalty:
    """A penalty on the bulk of each weight matrix, to be added to the loss.

    The spikes are not penalised: if U has their left singular vectors at the last `refresh`, the
    penalty is ``strength / 2 * |W - U U^T W|^2`` ("l2"), or ``strength`` times the sum of the
    absolute values of the entries of W - U U^T W ("l1"). See arXiv:2310.03165.

    Parameters
    ----------
    model : torch.nn.Module
    strength : float
        Above 0.
    norm : {"l1", "l2"}
    include, exclude
        As for `prune`.
    **options
        Of `rmtspec.analyze`: `alpha`, `beta`, ...

    Raises
    ------
    InvalidTypeError, InvalidValueError
        An option is out of range, or there is no matrix to act on.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> _ = torch.manual_seed(0)
    >>> model = rt.MLP([64, 100, 10])
    >>> penalty = rt.BulkPenalty(model, 1e-3)
    >>> loss = model(torch.ones(8, 64)).square().mean() + penalty()
    >>> loss.backward()
    >>> penalty.refresh()  # once per epoch
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        *,
        norm: str = "l2",
        include: Pattern | None = None,
        exclude: Pattern | None = None,
        **options: Any,
    ) -> None:
        self.strength = checks.positive(strength, "strength")
        self.norm = checks.choice(norm, "norm", NORMS)
        self._model = model
        self._chosen = (include, exclude)
        self._options = AnalysisOptions.of(options, spectra_for="a penalty on components")
        self._terms: list[tuple[WeightMatrix, torch.Tensor | None]] = []
        self.refresh()

    def refresh(self) -> None:
        """Find the spikes again; call it once per epoch, and after every split."""
        terms: list[tuple[WeightMatrix, torch.Tensor | None]] = []
        for matrix in _trained(self._model, *self._chosen):
            values = matrix()
            spikes = report_on(values, matrix.name, matrix.kind, self._options).fit.n_spikes
            if spikes != spikes:  # nothing could be fitted, so there is no bulk to act on
                continue
            vectors = None
            if spikes:
                outer = to_tensor(split(values, spikes).outer, matrix.parameter)
                vectors = outer / outer.norm(dim=0)
            terms.append((matrix, vectors))
        self._terms = terms

    def __call__(self) -> torch.Tensor:
        """Return the penalty, a scalar through which gradients flow."""
        total = torch.zeros(())
        for matrix, vectors in self._terms:
            weight = matrix.tensor()
            bulk = weight if vectors is None else weight - vectors @ (vectors.mT @ weight)
            size = bulk.abs().sum() if self.norm == "l1" else 0.5 * bulk.square().sum()
            total = total.to(size.device) + self.strength * size
        return total


@torch.no_grad()
def shrink_singular_values(
    model: nn.Module,
    amount: float,
    *,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
) -> None:
    """Reduce all singular values of the weight matrices by `amount`, not below 0, in place.

    This is the proximal step of a nuclear-norm penalty on the loss. For a penalty of strength c and
    one call per epoch, `amount` is c times the sum of the epoch's learning rates.

    Parameters
    ----------
    model : torch.nn.Module
    amount : float
        Above 0.
    include, exclude
        As for `prune`.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        The amount is out of range, or there is no matrix to act on.

    Examples
    --------
    >>> import torch
    >>> from rmtspec.adapters import torch as rt
    >>> model = rt.MLP([64, 100, 10])
    >>> rt.shrink_singular_values(model, 0.3)
    >>> int(torch.linalg.matrix_rank(model.layers[0].weight)) < 64
    True
    """
    amount = checks.positive(amount, "amount")
    for matrix in _trained(model, include, exclude):
        tensor = matrix.tensor()
        precise = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        left, values, right = torch.linalg.svd(precise, full_matrices=False)
        matrix.write(to_numpy((left * (values - amount).clamp(min=0.0)) @ right))


def _trained(
    model: nn.Module, include: Pattern | None, exclude: Pattern | None
) -> list[WeightMatrix]:
    """Return the chosen matrices that are trained; raise if there are none, or one has nan."""
    chosen = subject_of(model, Selection(include, exclude)).matrices.values()
    trained = [m for m in chosen if not m.reason and m.parameter.requires_grad]
    if not trained:
        raise InvalidValueError(
            f"No weight matrix of this {type(model).__name__} is trained: requires_grad is False "
            "for all that are chosen."
        )
    for matrix in trained:
        if not matrix.is_finite():
            raise InvalidValueError(
                f"{matrix.name!r} has nan or infinite entries; expected finite numbers. The "
                "training has diverged; a lower learning rate may help."
            )
    return trained
