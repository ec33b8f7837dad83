"""Splitting layers while transformers' Trainer trains: a callback."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch.callbacks._pruned_training import PrunerCallback, innermost
from rmtspec.adapters.torch.callbacks._split_as import make_layers
from rmtspec.errors import InvalidValueError, MissingDependencyError

try:
    from transformers.trainer_callback import ExportableState, TrainerCallback
except ImportError as error:
    raise MissingDependencyError(
        "rmtspec.adapters.torch.callbacks.transformers needs transformers, which is not installed. "
        'Install it, and accelerate for its Trainer, with: pip install "rmtspec[transformers]"'
    ) from error

#: Modes of the Trainer in which one process has the whole model.
_WHOLE = ("not_parallel", "not_distributed")

logger = logging.getLogger(__name__)


class RMTPrunerCallback(PrunerCallback, TrainerCallback, ExportableState):
    """Split a model's layers while transformers' Trainer trains it: `RMTPruner`, called by it.

    After the last step of each epoch, before the epoch's evaluation and checkpoint, the pruner's
    `step` is called with the last loss logged in the epoch, if any. What it decides goes to
    ``trainer.state.log_history`` as "rmtspec/parameters_before", "rmtspec/parameters_after" and
    "rmtspec/layers_split". The Trainer's checkpoints contain the state of the callback:
    ``trainer.train(resume_from_checkpoint=...)`` with a freshly built model continues from there.

    Parameters
    ----------
    every, bulk_keep, fit_cutoff, match_step, decay, **options
        As for `RMTPruner`, which is the attribute `pruner` once training has begun; `history` is
        the list of its reports.

    Raises
    ------
    InvalidValueError
        Before anything is trained: the Trainer uses several processes, FSDP or DeepSpeed.

    Notes
    -----
    To resume, pass the callback and a model when you make the Trainer, ``Trainer(model,
    callbacks=[...])``. After `add_callback`, with `model_init` or without the callback, the Trainer
    loads the weights into layers that are not split, and fails ("parameter group that doesn't match
    the size of optimizer's group").

    A callback cannot write to the Trainer's other reports (TensorBoard, Weights & Biases); at level
    INFO, `logging` shows what goes to the log history.

    ``from_pretrained`` cannot read a checkpoint with split layers. Load by hand::

        state = rt.read_state_dict("checkpoint-30/model.safetensors")
        model = split_as(AutoModelForMaskedLM.from_config(config), state)
        model.load_state_dict(state, strict=False)  # tied weights are saved once
        model.tie_weights()

    Examples
    --------
    Where the `Trainer` would be made:

    >>> from rmtspec.adapters.torch.callbacks.transformers import RMTPrunerCallback
    >>> pruning = RMTPrunerCallback(every=3, bulk_keep=0.2)
    >>> trainer = Trainer(model, args, train_dataset=texts, callbacks=[pruning])  # doctest: +SKIP
    >>> _ = trainer.train()  # doctest: +SKIP
    >>> len(pruning.history)  # doctest: +SKIP
    4
    """

    _followed: nn.Module | None = None
    _loss: float | None = None
    #: Set by the Trainer if it makes a new callback from a checkpoint.
    not_restored: Sequence[str] = ()

    def state(self) -> dict[str, Any]:
        """Return the state that the Trainer writes into its checkpoints as JSON."""
        plain = {name: value for name, value in self._options.items() if _is_plain(value)}
        lost = [name for name in self._options if name not in plain]
        return {
            "args": plain,
            "attributes": {"not_restored": lost},
            "training": self.state_dict(),
        }

    def on_init_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
        """Prepare for a checkpoint: the Trainer loads its weights before any other event."""
        _check_arguments(args)
        self._follow(held.get("model"), held.get("optimizer"))

    def on_train_begin(self, args: Any, state: Any, control: Any, **held: Any) -> None:
        """Make the pruner."""
        model: Any = held.get("model")
        _check_arguments(args)
        self._follow(model)  # for the best model, which is loaded at the end
        if self.not_restored:
            raise InvalidValueError(
                "The Trainer made a new RMTPrunerCallback from the checkpoint, which cannot hold "
                f"{', '.join(self.not_restored)}. Leave out restore_callback_states_from_checkpoint"
                ": the callback resumes from the checkpoint by itself."
            )
        name = type(self).__name__
        saved = state.stateful_callbacks.setdefault(name, {})
        if isinstance(saved, list):
            raise InvalidValueError(
                f"The Trainer has {len(saved)} callbacks of type {name}; expected one."
            )
        resumed = (saved.get("training") or None) if state.global_step else None
        if resumed is not None:
            _check_layers(model, resumed["pruner"]["splits"])
        self._begin(model, held.get("optimizer"), resumed)
        self._catch_up(int(float(state.epoch or 0.0) + 1e-6))  # whole epochs only

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget the loss of the epoch before."""
        self._loss = None

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Remember the loss."""
        self._loss = (logs or {}).get("loss", self._loss)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Call the pruner, and log what it decided."""
        figures = self._end_epoch(self._loss)
        if figures is not None:
            state.log_history.append({**figures, "epoch": state.epoch, "step": state.global_step})
            logger.info("epoch %s: %s", state.epoch, figures)

    def _follow(self, model: Any, optimizer: Any = None) -> None:
        """Make a model take over the split layers of any state that is loaded into it."""
        if isinstance(model, nn.Module) and model is not self._followed:
            hooked: Any = model  # the method has no types
            hooked.register_load_state_dict_pre_hook(_LayersOfLoadedState(optimizer))
            self._followed = model


class _LayersOfLoadedState:
    """A hook that splits a model's layers to match the weights that are loaded.

    An optimizer that exists already gets the factors; it is not copied or pickled with the model.
    """

    def __init__(self, optimizer: Any = None) -> None:
        self._optimizer = innermost(optimizer)

    def __call__(self, module: Any, state_dict: dict[str, Any], *_: Any) -> None:
        replaced = make_layers(module, state_dict)
        if self._optimizer is None:
            return
        for weight, factors in replaced:
            for group in self._optimizer.param_groups:
                for place in [i for i, held in enumerate(group["params"]) if held is weight]:
                    group["params"][place : place + 1] = factors
            self._optimizer.state.pop(weight, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _check_arguments(args: Any) -> None:
    """Raise if the Trainer would not know the new layers."""
    mode = str(getattr(args.parallel_mode, "value", args.parallel_mode))
    for used, what in (
        (args.fsdp, "FSDP"),
        (args.deepspeed, "DeepSpeed"),
        (mode not in _WHOLE, f"several processes ({mode})"),
    ):
        if used:
            raise InvalidValueError(
                f"The Trainer uses {what}, which would not know layers that are replaced during "
                "training. Train in one process, or prune before or after the training: "
                "rt.prune(model)."
            )


def _check_layers(model: nn.Module, splits: list[dict[str, Any]]) -> None:
    """Raise if the Trainer has loaded weights into other layers than those it saved."""
    modules = dict(model.named_modules())
    for entry in splits:
        if not isinstance(modules.get(entry["name"]), SplitLayer):
            raise InvalidValueError(
                f"The checkpoint has {entry['name']!r} split, but the model does not, so that its "
                "weights were not loaded. Pass the callback when you make the Trainer, "
                "Trainer(model, callbacks=[callback]), and a model, not `model_init`."
            )
