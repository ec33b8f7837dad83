"""One training run of the experiments: resumable, every condition and epoch in one JSON file."""

import dataclasses
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from methods import METHODS, Method
from replayed import ReplayedSteps
from torch import nn

import rmtspec
from rmtspec.adapters import torch as rt

SCHEMA = 1
#: The unsplit run keeps its states after these epochs: runs that split first then start from them.
KEPT = (1, 2, 3)
#: Test images, or training images at the end, in one forward pass.
EVALUATED_AT_ONCE = 2000
#: On a GPU an epoch takes less time than its state to be written: seconds between two states.
SECONDS_BETWEEN_STATES = 30.0
#: Folder, beside the records, of those that do not reach the last epoch yet.
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Setup:
    """What decides a run; the defaults are the project's for the paper's examples."""

    example: str
    dims: tuple[int, ...]
    epochs: int
    seed: int = 0
    output_relu: bool = False
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch: int = 128
    device: str = "cpu"
    threads: int = 1
    method: str = "unsplit"
    options: dict[str, Any] = field(default_factory=dict)
    keep_weights: bool = False

    @property
    def name(self) -> str:
        """Name of the run's files: the same for the same conditions."""
        plain = {f.name: f.default for f in dataclasses.fields(self)}
        changed = ("optimizer", "lr", "momentum", "weight_decay", "batch", "device")
        other = {k: getattr(self, k) for k in changed if getattr(self, k) != plain[k]}
        marks = "".join(f"-{k}-{v}" for k, v in other.items())
        if self.options:
            text = json.dumps(self.options, sort_keys=True)
            marks += "-" + hashlib.sha256(text.encode()).hexdigest()[:6]
        output = "relu" if self.output_relu else "linear"
        return f"{self.example}-{self.method}-{output}{marks}-seed{self.seed}"

    @property
    def stem(self) -> str:
        """What all methods have in common until the first of them changes anything."""
        shared = dataclasses.asdict(self)
        for key in ("example", "epochs", "method", "options", "keep_weights"):
            del shared[key]
        digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
        return "-".join(map(str, self.dims)) + f"-seed{self.seed}-{digest[:8]}"


class Images:
    """Images and labels on the device: floats in [0, 1], flat."""

    def __init__(self, dataset: Any, device: str) -> None:
        def images(values: Any) -> torch.Tensor:
            return torch.from_numpy(values).to(device).flatten(1).float().div_(255)

        def labels(values: Any) -> torch.Tensor:
            return torch.from_numpy(values).to(device).long()

        self.train, self.train_labels = images(dataset.train_images), labels(dataset.train_labels)
        self.test, self.test_labels = images(dataset.test_images), labels(dataset.test_labels)


def train(
    setup: Setup,
    images: Images,
    results: Path,
    states: Path,
    *,
    say: Callable[[str], None] = print,
    until: float | None = None,
) -> dict[str, Any]:
    """Return the record of a run, which is read, gone on with or begun, whatever is there.

    With `until`, a value of `time.monotonic`, the first epoch to end after it is the last of this
    call. The record of the epochs so far is then written with each state, to the folder
    "unfinished".
    """
    file = results / f"{setup.name}.json"
    partial = results / UNFINISHED / file.name
    record = read_record(file)
    if record is not None and len(record["epochs"]) >= setup.epochs:
        return record
    torch.set_num_threads(setup.threads)
    torch.set_flush_denormal(True)
    run = _Run(setup, images, states)
    while len(run.epochs) < setup.epochs:
        run.one_epoch()
        late = until is not None and time.monotonic() >= until
        if run.is_due() or late:
            run.keep()
            if until is not None:
                partial.parent.mkdir(parents=True, exist_ok=True)
                write_whole(partial, json.dumps(run.record(), indent=1) + "\n")
        say(run.line())
        if late and len(run.epochs) < setup.epochs:
            return run.record()
    record = run.record()
    results.mkdir(parents=True, exist_ok=True)
    if setup.keep_weights:
        weights = run.model.state_dict()
        _write(states / f"{setup.name}.weights.pt", lambda path: torch.save(weights, path))
    write_whole(file, json.dumps(record, indent=1) + "\n")
    for file_of_less in (run.own, partial):
        file_of_less.unlink(missing_ok=True)
    return record


class _Run:
    """A run between two epochs."""

    def __init__(self, setup: Setup, images: Images, states: Path) -> None:
        self.setup, self.images = setup, images
        self.states = states
        self.own = states / f"{setup.name}.pt"
        torch.manual_seed(setup.seed)
        self.model = rt.MLP(setup.dims, output_relu=setup.output_relu).to(setup.device)
        self.optimizer = _optimizer(setup, self.model)
        self.method: Method = METHODS[setup.method](self.model, self.optimizer, **setup.options)
        self.epochs: list[dict[str, Any]] = []
        self.shared = 0
        self._kept = time.monotonic()
        self._replayed: ReplayedSteps | None = None
        self._resume()
        # A penalty changes between two epochs, and Adam counts its steps: neither can be recorded.
        unchanging = type(self.method).penalty is Method.penalty and setup.optimizer == "sgd"
        if setup.device == "cuda" and unchanging:
            self._replayed = ReplayedSteps(
                self.model, self.optimizer, images.train, images.train_labels, batch=setup.batch
            )

    def one_epoch(self) -> None:
        """Train one epoch, let the method act, and write down what came of it."""
        setup, images, epoch = self.setup, self.images, len(self.epochs) + 1
        size, started = len(images.train), time.perf_counter()
        # A seed for each epoch: a resumed run needs no state of a generator.
        generator = torch.Generator().manual_seed(1_000_003 * setup.seed + epoch)
        order = torch.randperm(size, generator=generator).to(setup.device)
        self.model.train()
        steps = self._plain_steps if self._replayed is None else self._replayed.epoch
        loss_sum, correct = steps(order)
        loss_mean = float(loss_sum) / size
        seconds = time.perf_counter() - started
        before = self._tested()
        started = time.perf_counter()
        change = self.method.after_epoch(loss_mean)
        after = self._tested() if change else before
        row = {
            "epoch": epoch,
            "train_loss": loss_mean,
            "train_accuracy": 100 * float(correct) / size,
        }
        row |= before | {"seconds": seconds, "change_seconds": time.perf_counter() - started}
        row |= {"parameters": rt.count_parameters(self.model), "dims": rt.layer_dims(self.model)}
        if change:
            row["change"] = change | {"test_accuracy": after["test_accuracy"]}
        self.epochs.append(row)

    def _plain_steps(self, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on the images in this order; return the sum of the losses, and the correct ones."""
        images, size = self.images, len(order)
        loss_sum = torch.zeros((), device=self.setup.device)
        correct = torch.zeros((), device=self.setup.device)
        for start in range(0, size, self.setup.batch):
            batch = order[start : start + self.setup.batch]
            labels = images.train_labels[batch]
            outputs = self.model(images.train[batch])
            loss = nn.functional.cross_entropy(outputs, labels)
            loss_sum += loss.detach() * len(batch)
            correct += (outputs.argmax(1) == labels).sum()
            penalty = self.method.penalty()
            self.optimizer.zero_grad(set_to_none=True)
            (loss if penalty is None else loss + penalty).backward()
            self.optimizer.step()
        return loss_sum, correct

    def is_due(self) -> bool:
        """Tell whether the state of this epoch is to be written."""
        own = self.setup.method == "unsplit" and len(self.epochs) in KEPT
        waited = time.monotonic() - self._kept >= SECONDS_BETWEEN_STATES
        return self.setup.device == "cpu" or own or waited

    def keep(self) -> None:
        """Write the state: over the run's last one, and beside it where other runs begin."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "epochs": self.epochs,
            "shared": self.shared,
        }
        self._kept = time.monotonic()
        self.states.mkdir(parents=True, exist_ok=True)
        _write(self.own, lambda path: torch.save(state, path))
        if self.setup.method == "unsplit" and len(self.epochs) in KEPT:
            _write(self._stem(len(self.epochs)), lambda path: torch.save(state, path))

    def record(self) -> dict[str, Any]:
        """Return the finished run: conditions, epochs, what it comes to."""
        last = self.epochs[-1]
        train_accuracy = self._accuracy(self.images.train, self.images.train_labels)[0]
        return {
            "schema": SCHEMA,
            "setup": dataclasses.asdict(self.setup),
            "conditions": _conditions(self.setup),
            "epochs_shared_with_unsplit": self.shared,
            "epochs": self.epochs,
            "test_accuracy": last["test_accuracy"],
            "peak_test_accuracy": max(row["test_accuracy"] for row in self.epochs),
            "train_accuracy": train_accuracy,
            "parameters": last["parameters"],
            "paper_parameters": rt.count_parameters(last["dims"], bias="every"),
            "dims": last["dims"],
            "seconds": sum(row["seconds"] + row["change_seconds"] for row in self.epochs),
        }

    def line(self) -> str:
        """Return a line on the last epoch, for the terminal."""
        row = self.epochs[-1]
        text = (
            f"{self.setup.name}: epoch {row['epoch']}/{self.setup.epochs}, "
            f"test {row['test_accuracy']:.2f} %, {row['parameters']:,} parameters, "
            f"{row['seconds'] + row['change_seconds']:.1f} s"
        )
        if "change" in row:
            text += f"; now {row['dims']}, test {row['change']['test_accuracy']:.2f} %"
        return text

    def _stem(self, epoch: int) -> Path:
        return self.states / f"{self.setup.stem}-epoch{epoch}.pt"

    def _resume(self) -> None:
        """Go on from the run's own state, else from one that the unsplit run kept."""
        unsplit = self.setup.method == "unsplit"
        shared = min(max(KEPT) if unsplit else self.method.unchanged_epochs, self.setup.epochs)
        places = [(self.own, 0)]
        places += [(self._stem(epoch), epoch) for epoch in range(shared, 0, -1)]
        found = next(((path, epoch) for path, epoch in places if path.is_file()), None)
        if found is None:
            return
        path, epoch = found
        state = torch.load(path, weights_only=True, map_location=self.setup.device)
        self.epochs, self.shared = state["epochs"], state["shared"]
        if epoch and not unsplit:  # that run's method did nothing so far, and nor had this one
            self.shared = epoch
            for _ in range(min(epoch, shared - 1)):  # the last of them is yet to act
                self.method.after_epoch(0.0)
        else:
            self.method.load_state_dict(state["method"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if epoch and not unsplit and len(self.epochs) == shared:
            self._change_last()

    def _change_last(self) -> None:
        """Let the method act after the last epoch of the unsplit run."""
        row, started = self.epochs[-1], time.perf_counter()
        change = self.method.after_epoch(row["train_loss"])
        row["change_seconds"] = time.perf_counter() - started
        row |= {"parameters": rt.count_parameters(self.model), "dims": rt.layer_dims(self.model)}
        if change:
            row["change"] = change | {"test_accuracy": self._tested()["test_accuracy"]}

    def _tested(self) -> dict[str, Any]:
        """Return the test accuracy, and how many outputs take no part."""
        accuracy, largest, classes = self._accuracy(self.images.test, self.images.test_labels)
        dead = int((largest <= 0).sum()) if self.setup.output_relu else 0
        return {
            "test_accuracy": accuracy,
            "dead_outputs": dead,
            "classes_never_predicted": int((classes == 0).sum()),
        }

    @torch.no_grad()
    def _accuracy(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Return the accuracy in per cent, each output's largest value and how often it wins."""
        self.model.eval()
        pieces = [self.model(part) for part in images.split(EVALUATED_AT_ONCE)]
        outputs = torch.cat(pieces)
        chosen = outputs.argmax(1)
        accuracy = 100 * float((chosen == labels).double().mean())
        return accuracy, outputs.amax(0), chosen.bincount(minlength=outputs.shape[1])


def _optimizer(setup: Setup, model: nn.Module) -> torch.optim.Optimizer:
    parameters, decay = model.parameters(), setup.weight_decay
    if setup.optimizer == "sgd":
        fused = {"fused": True} if setup.device == "cuda" else {}
        return torch.optim.SGD(parameters, setup.lr, setup.momentum, weight_decay=decay, **fused)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[setup.optimizer]
    return kind(parameters, setup.lr, weight_decay=decay)


def _conditions(setup: Setup) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "rmtspec": rmtspec.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "threads": setup.threads,
        "device": torch.cuda.get_device_name() if setup.device == "cuda" else platform.machine(),
        "float32_products": torch.get_float32_matmul_precision(),  # "highest": without tf32
        "date": time.strftime("%Y-%m-%d"),
    }


def read_record(file: Path) -> dict[str, Any] | None:
    """Return the record of a run, or None where there is none."""
    if not file.is_file():
        return None
    record: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return record


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    _write(path, lambda place: place.write_text(text, "utf-8"))


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def terminal_line(text: str) -> None:
    """Print at once, also into a log file."""
    print(text, file=sys.stderr, flush=True)
