"""The state of a refit: kept in a file, and read back only into the same training."""

import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rmtspec.adapting import PathLike, finished_file
from rmtspec.errors import FileError, InvalidValueError

_FORMAT = "rmtspec refit 1"


class RefitState:
    """What a refit has done so far, with its file, if there is one.

    Attributes
    ----------
    losses, rates : list of float
        One for each step done.
    tokens : int
        Positions seen.
    seconds : float
        That earlier calls took.
    """

    def __init__(
        self,
        path: PathLike | None,
        names: list[str],
        start: list[torch.Tensor],
        settings: dict[str, Any],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._path = None if path is None else Path(path)
        same = {name: settings[name] for name in settings if name != "save_every"}
        self._identity = {
            "options": same,
            "optimizer": type(optimizer).__name__,
            "model": _digest(names, start),
        }
        self._optimizer = optimizer
        self._began = time.perf_counter()
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.tokens, self.seconds = 0, 0.0

    def note(self, loss: float, rate: float, tokens: int) -> None:
        """Note a step."""
        self.losses.append(loss)
        self.rates.append(rate)
        self.tokens += tokens

    def read(self, parameters: list[nn.Parameter], schedule: Any) -> float | None:
        """Continue from the file, and return the loss on held-out batches before; None without."""
        if self._path is None or not self._path.exists():
            return None
        try:
            content: Any = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception as error:
            words = (str(error).splitlines() or [type(error).__name__])[0]
            raise FileError(
                f"{self._path} cannot be read: {words}. Delete it to start anew."
            ) from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise FileError(f"{self._path} is no state of a refit; expected a file it wrote.")
        for key, here in self._identity.items():
            there = content["identity"].get(key)
            if there != here:
                raise InvalidValueError(
                    f"{self._path} is the state of another refit: its {key} is {there}, here it is "
                    f"{here}. Use another file, or delete it."
                )
        with torch.no_grad():
            for parameter, value in zip(parameters, content["parameters"], strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(content["optimizer"])
        schedule.load_state_dict(content["schedule"])
        self.losses, self.rates = content["losses"], content["rates"]
        self.tokens, self.seconds = content["tokens"], content["seconds"]
        return float(content["measured"])

    def write(self, parameters: list[nn.Parameter], schedule: Any, measured: float) -> None:
        """Write the file, if there is one to be; the old one stays until the new is complete."""
        if self._path is None:
            return
        content = {
            "format": _FORMAT, "identity": self._identity,
            "parameters": [parameter.detach() for parameter in parameters],
            "optimizer": self._optimizer.state_dict(), "measured": measured,
            "schedule": schedule.state_dict(),
            "losses": self.losses, "rates": self.rates, "tokens": self.tokens,
            "seconds": self.seconds + time.perf_counter() - self._began,
        }  # fmt: skip
        with finished_file(self._path) as unfinished:
            torch.save(content, unfinished)


def _digest(names: list[str], tensors: list[torch.Tensor]) -> str:
    """Return what identifies the parameters as they were at the start."""
    digest = hashlib.sha256()
    for name, tensor in zip(names, tensors, strict=True):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
