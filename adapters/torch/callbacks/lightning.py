"""Splitting layers while Lightning trains: a callback."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch.callbacks._pruned_training import PrunerCallback
from rmtspec.adapters.torch.callbacks._split_as import fits, make_layers
from rmtspec.errors import InvalidValueError, MissingDependencyError

if TYPE_CHECKING:
    from lightning.pytorch import Callback
elif "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning import Callback  # the same library under its old name
else:
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        try:
            from pytorch_lightning import Callback
        except ImportError:
            raise MissingDependencyError(
                "rmtspec.adapters.torch.callbacks.lightning needs Lightning, which is not "
                'installed. Install it with: pip install "rmtspec[lightning]"'
            ) from error

#: Strategies under which each process has the whole model; DDP's wrapper is replaced at a split.
_WHOLE = ("SingleDeviceStrategy", "DDPStrategy")
_OTHERS = ("SingleDeviceXLAStrategy", "XLAStrategy", "DeepSpeedStrategy")
#: Callbacks that keep a copy of the model, whose layers would not be split.
_COPIES = ("StochasticWeightAveraging", "WeightAveraging")


class RMTPrunerCallback(PrunerCallback, Callback):
    """Split a LightningModule's layers while it trains: `RMTPruner`, called by the trainer.

    After the last step of each epoch and the epoch's validation, the pruner's `step` is called with
    the mean of the losses that `training_step` returned. What it decides is logged as
    "rmtspec/parameters_before", "rmtspec/parameters_after" and "rmtspec/layers_split". Lightning's
    checkpoints contain the state of the callback: ``trainer.fit(model, ckpt_path=...)`` with a
    freshly built model continues from there, and ``trainer.test(model, ckpt_path=...)`` works too.

    Parameters
    ----------
    every, bulk_keep, fit_cutoff, match_step, decay, **options
        As for `RMTPruner`, which is the attribute `pruner` once training has begun; `history` is
        the list of its reports.

    Raises
    ------
    InvalidValueError
        By `fit`, before anything is trained: there are several optimizers, or a callback that
        averages weights, or the strategy shards the model or starts processes by spawn or fork. DDP
        is supported.

    Notes
    -----
    ``LightningModule.load_from_checkpoint`` ignores callbacks. Load by hand::

        state = rt.read_state_dict("last.ckpt")
        model = split_as(Net(), state)  # from rmtspec.adapters.torch.callbacks
        model.load_state_dict(state)

    Examples
    --------
    Where Lightning's `Trainer` would be made:

    >>> from rmtspec.adapters.torch.callbacks.lightning import RMTPrunerCallback
    >>> pruning = RMTPrunerCallback(every=3, bulk_keep=0.2)
    >>> trainer = Trainer(max_epochs=12, callbacks=[pruning])  # doctest: +SKIP
    >>> trainer.fit(model, batches)  # doctest: +SKIP
    >>> len(pruning.history)  # doctest: +SKIP
    4
    """

    _state: dict[str, Any] | None = None
    _held: dict[str, Any] | None = None
    _fitting = False
    _hook: Any = None
    _loss: Any = 0.0
    _batches = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Prepare for a checkpoint: Lightning loads the weights before it makes the optimizer."""
        self._fitting = stage == "fit"
        if self._fitting:
            _check_trainer(trainer)
        self._state = self._held = None
        self._unhook()
        self._hook = pl_module.register_load_state_dict_pre_hook(self._before_load)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until there is an optimizer."""
        self._state = state_dict if self._fitting else None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the pruner and, if a training is resumed, the split layers with their weights."""
        self._unhook()
        held, self._held = self._held, None
        state, self._state = self._state, None
        if state is None and held is not None:
            raise InvalidValueError(
                "The checkpoint has split layers but no state of RMTPrunerCallback; expected one "
                "that was written in a training with this callback. To start from its weights, "
                "call split_as(model, state_dict) and load them."
            )
        if len(trainer.optimizers) != 1:
            raise InvalidValueError(
                f"The training has {len(trainer.optimizers)} optimizers; expected one that holds "
                "all parameters that are trained. Return a single one from configure_optimizers, "
                "with a parameter group for each of these."
            )

        def load() -> None:
            pl_module.load_state_dict(held, strict=pl_module.strict_loading)

        optimizer = trainer.optimizers[0]
        self._begin(pl_module, optimizer, state, load if held is not None else None)
        _wrap_again(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count the epochs that a checkpoint has finished."""
        if self._catch_up(trainer.fit_loop.epoch_progress.current.processed):
            _wrap_again(trainer)
        self._loss, self._batches = 0.0, 0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch's loss to the epoch's, on its device."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            self._loss = self._loss + loss.detach().float().reshape(())
            self._batches += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Call the pruner, and log what it decided."""
        loss = self._loss / self._batches if self._batches else None
        self._loss, self._batches = 0.0, 0
        if loss is not None:
            loss = trainer.strategy.reduce(loss, reduce_op="mean")
        figures = self._end_epoch(loss)
        if figures is None:
            return
        if figures["rmtspec/layers_split"]:
            _wrap_again(trainer)
        if not trainer.barebones:
            logged = {name: float(value) for name, value in figures.items()}
            pl_module.log_dict(logged, sync_dist=trainer.world_size > 1)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        self._unhook()

    def _before_load(self, module: Any, state_dict: dict[str, Any], *_: Any) -> None:
        """Hold a checkpoint's weights back until there is an optimizer, if they need split layers.

        The optimizer is then configured over the layers that the module builds, as when the
        training began; once the layers are split, its groups are those of the checkpoint.
        """
        if fits(module, state_dict):
            return
        if not self._fitting or any(isinstance(part, SplitLayer) for part in module.modules()):
            make_layers(module, state_dict)
            return
        self._held = dict(state_dict)
        state_dict.clear()
        state_dict.update(module.state_dict())

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _check_trainer(trainer: Any) -> None:
    """Raise if the strategy or a callback would not know the new layers."""
    strategy = trainer.strategy
    bases = {base.__name__ for base in type(strategy).__mro__}
    if not bases.intersection(_WHOLE) or bases.intersection(_OTHERS):
        raise InvalidValueError(
            f"The strategy is {type(strategy).__name__}, which would not know layers that are "
            'replaced during training. Use a single device, or Trainer(strategy="ddp").'
        )
    if type(strategy.launcher).__name__ == "_MultiProcessingLauncher":
        raise InvalidValueError(
            "The strategy starts its processes by spawn or fork and cannot bring split layers "
            'back from them. Use Trainer(strategy="ddp"), or a single device.'
        )
    for callback in trainer.callbacks:
        if any(base.__name__ in _COPIES for base in type(callback).__mro__):
            raise InvalidValueError(
                f"{type(callback).__name__} keeps a copy of the model, whose layers would not be "
                "split. Leave it out while layers are split, and average in a later training."
            )


def _wrap_again(trainer: Any) -> None:
    """Make DistributedDataParallel know the new layers."""
    strategy = trainer.strategy
    if isinstance(strategy.model, DistributedDataParallel):
        strategy.model = trainer.lightning_module
        strategy.configure_ddp()
