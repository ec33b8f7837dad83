"""The options of a calibration as one value, checked before the model runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rmtspec.adapting import OBJECTIVES, Progress, checks
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError

LABELS = ("auto", "sampled", "probes")
OUTPUT_MOMENTS = ("diagonal", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """The options of `calibrate`, which describes them; a wrong one raises here."""

    objective: str | None = None
    loss: Callable[[Any, Any], Any] | None = None
    loss_count: float | Callable[[Any], float] | None = None
    labels: str = "auto"
    output_moment: str = "diagonal"
    gradient_tokens: int = 2048
    holdout: float = 0.1
    clip: float | None = None
    rng: Any = 0
    memory: int | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.objective is not None:
            checks.choice(self.objective, "objective", OBJECTIVES)
        checks.choice(self.labels, "labels", LABELS)
        checks.choice(self.output_moment, "output_moment", OUTPUT_MOMENTS)
        hint = "It is a number of tokens, or of samples of a classifier."
        checks.integer(self.gradient_tokens, "gradient_tokens", 1, hint=hint)
        hint = "It is the share of the batches that errors are measured on; 0 for none."
        if checks.inside(self.holdout, "holdout", 0.0, 1.0, closed=True, hint=hint) == 1.0:
            raise InvalidOptionError(
                "`holdout` is 1", "a share below 1", "Some must be left to fit."
            )
        if self.clip is not None:
            hint = "It is a multiple of the median norm of a layer's inputs; None clips nothing."
            if checks.positive(self.clip, "clip", hint) < 1.0:
                raise InvalidOptionError(f"`clip` is {self.clip!r}", "a number of at least 1", hint)
        if self.memory is not None:
            checks.integer(self.memory, "memory", 1, hint="It is a number of bytes.")
        object.__setattr__(self, "rng", checks.seed(self.rng, "rng"))
        self._check_loss()

    def _check_loss(self) -> None:
        if self.loss is not None and not callable(self.loss):
            kind = type(self.loss).__name__
            expected = "a function that takes the model and a batch and returns a number"
            raise InvalidOptionTypeError(f"`loss` is a {kind}", expected)
        if self.loss is not None and self.objective == "outputs":
            raise InvalidOptionError(
                "`loss` is given, and `objective` is 'outputs'", "one of them",
                "The objective 'outputs' preserves the outputs of each layer, whatever the loss.",
            )  # fmt: skip
        count = self.loss_count
        if count is not None and self.loss is None:
            raise InvalidOptionError("`loss_count` is given without `loss`", "both or neither")
        if count is not None and not callable(count):
            hint = "It is the number of tokens or samples that the loss is the mean of."
            checks.positive(count, "loss_count", hint)

    def record(self) -> dict[str, Any]:
        """Return what a report says of them, as JSON values."""
        names = ("output_moment", "gradient_tokens", "holdout", "clip", "rng")
        return {name: getattr(self, name) for name in names}
