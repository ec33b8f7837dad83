"""The parts of the comparison that need a model, and what all parts share."""

import contextlib
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import rmtspec
from rmtspec._frameworks import eigensolver_on
from rmtspec.adapters import torch as rt
from rmtspec.runs.read_ahead import Held

Value = TypeVar("Value")
#: Largest relative difference of a statistic, and of the outputs of two float32 models.
OF_STATISTIC, OF_OUTPUTS = 1e-6, 1e-4
DIMS, SMALL_DIMS = (784, 1500, 1500, 500, 500, 10), (64, 128, 96, 10)


class Timed:
    """The eigensolver on a device, with the seconds of its two stages, and when they ran."""

    def __init__(self, device: str) -> None:
        self._solver = eigensolver_on(device)
        self.seconds: dict[str, float] = defaultdict(float)
        self.ran: list[tuple[float, float]] = []

    def gram(self, tall: np.ndarray) -> Any:
        """Return the Gram matrix."""
        return self._measured("gram_with_transfers", self._solver.gram, tall)

    def gram_with_sums(self, tall: np.ndarray, unit: float) -> Any:
        """Return it with the sums of squares and of fourth powers."""
        return self._measured(
            "gram_with_transfers", lambda W: self._solver.gram_with_sums(W, unit), tall
        )

    def __call__(self, gram: np.ndarray) -> Any:
        """Return the eigenvalues."""
        return self._measured("eigenvalues_with_transfers", self._solver, gram)

    def _measured(self, name: str, work: Callable[[Any], Any], array: np.ndarray) -> Any:
        started = time.perf_counter()
        result = work(array)
        ended = time.perf_counter()
        self.seconds[name] += ended - started
        self.ran.append((started, ended))
        return result


@contextlib.contextmanager
def reading_times() -> Iterator[list[tuple[float, float]]]:
    """Note when matrices are read ahead, each from begin to end."""
    times: list[tuple[float, float]] = []
    plain = Held.__init__

    def noted(self: Held, matrix: Any) -> None:
        started = time.perf_counter()
        plain(self, matrix)
        times.append((started, time.perf_counter()))

    Held.__init__ = noted  # type: ignore[method-assign]
    try:
        yield times
    finally:
        Held.__init__ = plain  # type: ignore[method-assign]


def in_common(some: list[tuple[float, float]], others: list[tuple[float, float]]) -> float:
    """Return the seconds in an interval of both lists, neither of which overlaps itself."""
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in some for b in others)


def timed(work: Callable[[], Value], device: str) -> tuple[Value, float]:
    """Return a result and the seconds until the device has it."""
    _wait(device)
    started = time.perf_counter()
    result = work()
    _wait(device)
    return result, time.perf_counter() - started


def model_part(device: str, *, small: bool) -> dict[str, Any]:
    """Return how a model on the device compares when it is analysed, pruned, merged and saved."""
    dims = SMALL_DIMS if small else DIMS
    torch.manual_seed(0)
    of_cpu = rt.MLP(dims)
    for parameter in of_cpu.parameters():  # a spike in each layer
        if parameter.ndim == 2:
            parameter.data += 0.5 * torch.outer(
                torch.randn(parameter.shape[0]), torch.randn(parameter.shape[1])
            ) / parameter.shape[1]  # fmt: skip
    of_device = rt.MLP(dims).to(device)
    of_device.load_state_dict(of_cpu.state_dict())
    inputs = torch.randn(256, dims[0])
    rt.analyze(of_device)
    ours, seconds = timed(lambda: rt.analyze(of_device), device)
    theirs, on_cpu = timed(lambda: rt.analyze(of_cpu), "cpu")
    apart = max(
        abs(a["fit_statistic"] - b["fit_statistic"]) / abs(b["fit_statistic"])
        for a, b in zip(ours.rows, theirs.rows, strict=True)
        if b["fit_statistic"]
    )
    batches = [torch.randn(64, dims[0]) for _ in range(4)]
    options: dict[str, Any] = {"bulk_keep": 0.2, "gate": None}
    outputs, ranks = [], []
    for model, place in ((of_device, device), (of_cpu, "cpu")):
        calibration = [batch.to(place) for batch in batches]
        for more in ({}, {"calibration": calibration}):
            smaller, report = rt.prune(model, **options, **more)
            ranks.append([(row["name"], row["action"], row["rank"]) for row in report.rows])
            with torch.no_grad():
                outputs.append(smaller(inputs.to(place)).cpu().double())
            if not more:
                outputs.append(_merged_and_saved(smaller, dims, inputs.to(place), place))
    half = len(outputs) // 2
    return {
        "dims": list(dims),
        "statistic_difference": apart,
        "statistic_limit": OF_STATISTIC,
        "outputs_difference": max(map(_apart, outputs[:half], outputs[half:])),
        "outputs_limit": OF_OUTPUTS,
        "ranks_differ": int(ranks[:2] != ranks[2:]),
        "spikes_differ": int(
            [r["n_spikes"] for r in ours.rows] != [r["n_spikes"] for r in theirs.rows]
        ),
        "analyze_device_seconds": seconds,
        "analyze_cpu_seconds": on_cpu,
    }


def training_part(device: str, *, small: bool) -> dict[str, Any]:
    """Return how a net trained and split on the device compares with the same on the CPU."""
    dims = SMALL_DIMS if small else DIMS
    ours, theirs = (_trained(dims, place) for place in (device, "cpu"))
    return {
        "dims": list(dims),
        "dims_differ": int(ours["dims"] != theirs["dims"]),
        "split_dims": ours["dims"],
        "losses": [ours["losses"], theirs["losses"]],
        "loss_difference": abs(ours["losses"][-1] - theirs["losses"][-1]) / theirs["losses"][-1],
        "loss_limit": 1e-2,
        "resumed_differ": ours["resumed"] + theirs["resumed"],
        "device_seconds": ours["seconds"],
        "cpu_seconds": theirs["seconds"],
    }


def _trained(dims: tuple[int, ...], device: str) -> dict[str, Any]:
    """Train four epochs of twenty batches with two cycles, and resume from a file."""
    started = time.perf_counter()
    torch.manual_seed(0)
    teacher = torch.randn(dims[0], dims[-1])
    model = rt.MLP(dims).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = rt.RMTPruner(model, optimizer, every=2, bulk_keep=0.2, fit_cutoff=None)
    penalty = rt.BulkPenalty(model, 1e-4)
    losses = []
    for _ in range(4):
        for images in _batches(dims[0]):
            labels = (images @ teacher).argmax(1).to(device)
            loss = torch.nn.functional.cross_entropy(model(images.to(device)), labels)
            total = loss + penalty() if pruner.epoch < 2 else loss
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
        pruner.step(loss)
    with tempfile.TemporaryDirectory() as folder:
        pruner.save(Path(folder, "training.pt"))
        again = rt.MLP(dims).to(device)
        fresh = torch.optim.SGD(again.parameters(), lr=0.05, momentum=0.9)
        rt.RMTPruner(again, fresh, every=2, bulk_keep=0.2, fit_cutoff=None).resume(
            Path(folder, "training.pt")
        )
    state = model.state_dict()
    resumed = again.state_dict()
    same = all(torch.equal(state[key], resumed[key]) for key in state)
    rt.shrink_singular_values(model, 1e-3)
    return {
        "dims": rt.layer_dims(model),
        "losses": losses,
        "resumed": int(not same),
        "seconds": time.perf_counter() - started,
    }


def _batches(width: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        yield torch.randn(128, width, generator=generator)


def _merged_and_saved(model: Any, dims: tuple[int, ...], inputs: torch.Tensor, place: str) -> Any:
    """Return the outputs of the model that was saved, loaded, and merged."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        rt.save(model, file)
        loaded = rt.load(rt.MLP(dims).to(place), file)
    with torch.no_grad():
        return rt.merge(loaded)(inputs).cpu().double()


def failures(record: dict[str, Any]) -> list[str]:
    """Return what is beyond its limit, differs, or did not run."""
    failed = []
    parts = [(name, part) for name, part in record.items() if name not in ("conditions", "seconds")]
    for name, part in parts:
        for row in part if isinstance(part, list) else [part]:
            if "error" in row:
                failed.append(f"{name}: {row['error']}")
            for key, value in row.items():
                limit = row.get(key.replace("largest_difference", "limit")
                                .replace("_difference", "_limit"))  # fmt: skip
                if key.endswith("difference") and not value <= limit:
                    failed.append(f"{name}: {key} {value:.3g} exceeds {limit:g}")
                if key.endswith("_differ") and value:
                    failed.append(f"{name}: {key}")
    return failed


def conditions(device: str) -> dict[str, Any]:
    """Return what the figures depend on."""
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "",
        "driver_cuda": torch.version.cuda,
        "float32_products": torch.get_float32_matmul_precision(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "cpu_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "rmtspec": rmtspec.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
