"""The gradients that weigh a layer's outputs: which loss is differentiated, and by whose labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rmtspec.adapters.torch._calibration.batches import size_of
from rmtspec.adapters.torch._calibration.options import CalibrationOptions
from rmtspec.adapters.torch._outputs import Visible, linear_outputs, logits_of, tensors_of
from rmtspec.errors import InvalidTypeError, InvalidValueError

SAMPLED = "labels sampled from the model's own softmax"
PROBES = "random signs of the outputs"
GIVEN = "the given loss"


class Gradients:
    """What is differentiated, batch by batch, until enough gradients are there.

    Attributes
    ----------
    wanted : bool
        Whether the next batch is to be differentiated.
    words : str
        Where the gradients come from; "" if there are none.
    losses : int
        Number of tokens or samples whose loss was differentiated.
    problem : str
        Why a batch could not be differentiated; "" if all could.
    """

    def __init__(self, model: nn.Module, options: CalibrationOptions) -> None:
        self._options = options
        self._plain: set[int] = set()
        self._model = model
        # Of the CPU, whatever the model is on: generators of devices draw other numbers.
        self._generator = torch.Generator().manual_seed(options.rng % 2**63)
        self.wanted = options.objective != "outputs"
        self.words = self.problem = ""
        self.losses = 0

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Watch which tensors linear layers put out, as long as the context lasts."""
        if not self.wanted:
            yield
            return
        with linear_outputs(self._model) as self._plain:
            yield

    def run_loss(self, batch: Any, index: int) -> None:
        """Run the model by the user's loss; differentiate it if that is wanted."""
        value = self._loss_of(batch, index)
        if not (self.wanted and torch.is_grad_enabled()):
            return
        if not value.requires_grad:
            raise InvalidValueError(
                f"`loss` returned a tensor without gradient for batch {index}; expected one that "
                "depends on the model's output. Do not use .item(), .detach() or torch.no_grad()."
            )
        count: Any = self._options.loss_count
        number = float(count(batch) if callable(count) else count or size_of(batch))
        if not torch.isfinite(value).all():
            self.problem = self.problem or f"the loss of batch {index} is {value.detach().item()}"
            return
        torch.autograd.backward((value * number).sum())
        self._count(GIVEN, round(number))

    def _loss_of(self, batch: Any, index: int) -> torch.Tensor:
        loss: Any = self._options.loss
        try:
            value = loss(self._model, batch)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            kind = InvalidTypeError if isinstance(error, TypeError) else InvalidValueError
            raise kind(
                f"`loss` failed for batch {index}: {error}. It is called as loss(model, "
                "batch), with the batch on the model's device."
            ) from error
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
            raise InvalidTypeError(
                f"`loss` returned a {type(value).__name__}{shape} for batch {index}; expected a "
                "tensor of one number, the mean loss of the batch."
            )
        return value

    def take(self, output: Any, batch: Any, visible: Visible, index: int) -> None:
        """Differentiate what the model put out for a batch."""
        labels = self._options.labels
        logits = [] if labels == "probes" else logits_of(output, self._plain, batch)
        logits = [tensor for tensor in logits if tensor.requires_grad]
        self._plain.clear()
        if labels == "sampled" and not logits:
            raise InvalidValueError(
                "`labels` is 'sampled', and no logits were found in the model's output; expected a "
                'tensor named "logits", or one that a linear layer put out as it is. Pass `loss`, '
                "or labels='probes'."
            )
        tensors = logits or [tensor for tensor in tensors_of(output) if tensor.requires_grad]
        if not tensors:
            self._without_gradient(output)
            return
        if not all(bool(torch.isfinite(tensor.detach()).all()) for tensor in tensors):
            words = f"the model's output for batch {index} is nan or infinite"
            self.problem = self.problem or words
            return
        seeds = [self._sampled(t, visible) if logits else self._probe(t, visible) for t in tensors]
        torch.autograd.backward(tensors, [seed for seed, _ in seeds])
        self._count(SAMPLED if logits else PROBES, max(count for _, count in seeds))

    def _count(self, words: str, losses: int) -> None:
        self.words = words
        self.losses += losses
        self.wanted = self.losses < self._options.gradient_tokens

    def _without_gradient(self, output: Any) -> None:
        if self._options.objective == "loss":
            kind = type(output).__name__
            raise InvalidValueError(
                f"The output of the model is a {kind} without a floating tensor that depends on "
                "its layers, so no loss can be differentiated; expected one. Pass "
                "loss=function(model, batch), or objective='outputs'."
            )
        self.wanted = False

    def _sampled(self, logits: torch.Tensor, visible: Visible) -> tuple[torch.Tensor, int]:
        """Return the gradient of the sum of cross-entropies with sampled labels."""
        shares = torch.softmax(logits.detach().float(), dim=-1)
        flat = shares.reshape(-1, shares.shape[-1])
        drawn = torch.multinomial(flat.cpu(), 1, generator=self._generator).to(flat.device)
        flat.scatter_add_(1, drawn, torch.full_like(drawn, -1.0, dtype=flat.dtype))
        gradient = flat.reshape(shares.shape)
        mask = visible("", logits)
        if mask is not None:
            gradient = gradient * mask[(...,) + (None,) * (gradient.ndim - 2)]
        counted = len(flat) if mask is None else int(mask.sum()) * (len(flat) // mask.numel())
        return gradient.to(logits.dtype), counted

    def _probe(self, tensor: torch.Tensor, visible: Visible) -> tuple[torch.Tensor, int]:
        """Return random signs in the shape of a tensor, and how many positions it has."""
        signs = torch.randint(0, 2, tensor.shape, generator=self._generator)
        gradient = (2 * signs - 1).to(tensor)
        mask = visible("", tensor)
        if mask is None:
            return gradient, max(
                1, tensor.numel() // max(1, tensor.shape[-1] if tensor.ndim else 1)
            )
        return gradient * mask[(...,) + (None,) * (tensor.ndim - 2)].to(tensor), int(mask.sum())
